"""The app and its shared memory."""
from __future__ import annotations

import os
from urllib.parse import quote, unquote

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemSync
from celery_memsync.store import embedded

#: Redis URL of the memory; ``embedded://`` is a private server that the first process starts and the last one leaves.
MEMORY = os.environ.get("CENSUS_MEMORY", "embedded://")


def beside(memory: str) -> str:
    """Return the URL, as Celery wants it, of another database in the memory's private server."""
    if not memory.startswith("embedded://"):
        raise ImproperlyConfigured("set CENSUS_BROKER too when CENSUS_MEMORY is a Redis of your own")
    folder = unquote(memory.removeprefix("embedded://"))
    embedded.start(folder)
    return f"redis+socket://{quote(embedded.socket_path(folder))}?virtual_host=1"


app = Celery("proj", include=["proj.tasks"])
app.conf.broker_url = os.environ.get("CENSUS_BROKER") or beside(MEMORY)
app.conf.result_backend = os.environ.get("CENSUS_RESULTS") or app.conf.broker_url
app.conf.broker_connection_retry_on_startup = True
app.conf.task_default_queue = "census"
app.conf.memsync_backend = MEMORY
app.conf.memsync_namespace = "census"
app.conf.memsync_heartbeat_interval = 1.0

memsync = MemSync(app)
