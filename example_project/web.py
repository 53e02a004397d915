"""Show the progress of a census in a web page.

A Redis, a worker and a web server are started, and stopped at the end.
"""
from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from processes import HERE, DemoError, Worker, redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from celery_memsync import StoreError
from celery_memsync.contrib.asgi import progress

#: Modules of a census.
LIMIT = 24

#: Nothing but what this server sends may run in the page, or be read by it.
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'"

PAGE = HERE / "page"


def main() -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="web-") as location:
            run(Path(location), port)
    except (DemoError, StoreError) as exc:
        print(f"web.py: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    print("All that was started is stopped.")
    return 0


def interrupt(*_: Any) -> None:
    """End in good order, whichever signal it was."""
    raise KeyboardInterrupt


def run(location: Path, port: int) -> None:
    """Start all that is needed, and serve the page."""
    with redis(location / "redis") as app, Worker("w1@demo", location):
        print(f"Open http://localhost:{port}; Ctrl-C ends it.", flush=True)
        uvicorn.run(site(app.memsync, location), port=port, log_level="warning")


def site(memsync: Any, location: Path) -> Starlette:
    """Return the web application.

    Args:
        location: Where the reports of a census go.
    """
    from proj.tasks import census

    def start(request: Request) -> Response:
        """Send a census; a real application would check here who may."""
        task_id = f"census-{secrets.token_hex(4)}"
        census.apply_async((str(location), LIMIT), task_id=task_id)
        # The report comes last, and its progress is that of the whole.
        return JSONResponse({"token": memsync.token(f"{task_id}-report")})

    def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    def script(request: Request) -> Response:
        return FileResponse(PAGE / "progress.js")

    return Starlette(routes=[
        Route("/", page), Route("/progress.js", script), Route("/start", start, methods=["POST"]),
        Route("/progress/{token}", progress(memsync))])


if __name__ == "__main__":
    sys.exit(main())
