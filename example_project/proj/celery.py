"""The app and its shared state."""
from __future__ import annotations

import os
from urllib.parse import quote, unquote

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemSync
from celery_memsync.store import embedded

#: URL of the Redis with the shared state; ``embedded://`` is a private one.
BACKEND = os.environ.get("CENSUS_BACKEND", "embedded://")


def broker_beside(backend: str) -> str:
    """Return the URL, as Celery wants it, of another database in the private Redis."""
    if not backend.startswith("embedded://"):
        raise ImproperlyConfigured("set CENSUS_BROKER too if CENSUS_BACKEND is your own Redis")
    folder = unquote(backend.removeprefix("embedded://"))
    embedded.start(folder)
    return f"redis+socket://{quote(embedded.socket_path(folder))}?virtual_host=1"


app = Celery("proj", include=["proj.tasks", "proj.words"])
app.conf.broker_url = os.environ.get("CENSUS_BROKER") or broker_beside(BACKEND)
app.conf.result_backend = os.environ.get("CENSUS_RESULTS") or app.conf.broker_url
app.conf.broker_connection_retry_on_startup = True
app.conf.task_default_queue = "census"

# A worker takes a message only when a process is free, because Redis, as a broker, delivers what a
# killed worker has received and not started again after an hour. Celery 5.5 takes some anyway.
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_disable_prefetch = True

app.conf.memsync_backend = BACKEND
app.conf.memsync_namespace = "census"

# A worker without a heartbeat for 3 seconds is lost; the default of 15 is long for an example. The
# key signs the messages of running tasks, which another worker then sends again.
app.conf.memsync_heartbeat_interval = 0.5
app.conf.memsync_worker_ttl = 3.0
app.conf.memsync_signing_key = os.environ.get("CENSUS_SIGNING_KEY")

memsync = MemSync(app)
