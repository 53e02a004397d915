"""An application of Starlette that shows progress; uvicorn serves it in a process of its own."""
from __future__ import annotations

import os
import threading

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from celery_memsync.contrib import answers, asgi, live_tasks
from tests.support.proj import app as celery_app

if longest := os.environ.get("MEMSYNC_TEST_LONGEST_TEXT"):
    # So that many large events come in a second.
    answers.MAX_TEXT, live_tasks.READ_PAUSE = int(longest), 0.0

endpoint = asgi.progress(celery_app.memsync, max_streams=int(os.environ.get("MEMSYNC_TEST_STREAMS", "1000")))


def numbers(request):
    """Answer with what this process has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return JSONResponse({
        "streams": endpoint.streams,
        "subscriptions": len(celery_app.memsync.runtime.subscriptions),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
    })


app = Starlette(routes=[Route("/progress/{token}", endpoint), Route("/numbers", numbers)])
