"""The app that the workers of these tests run; its configuration comes in the environment."""
from __future__ import annotations

import gc
import json
import os
import threading

from celery import Celery, signals
from celery.worker.control import control_command

from celery_memsync import MemSync
from tests.support.tasks import note

app = Celery("proj")
app.conf.update(json.loads(os.environ["MEMSYNC_TEST_CONF"]))
memsync = MemSync(app)


@signals.task_failure.connect
def on_failure(task_id, exception, **_):
    note("failure", task_id, type=type(exception).__name__)


@signals.task_retry.connect
def on_retry(request, **_):
    note("retry", request.id)


@signals.task_revoked.connect
def on_revoked(request, **_):
    note("revoked", request.id)


@signals.worker_shutting_down.connect
def collect_soon(**_):
    """Let what nothing refers to be gone soon: by itself it is after a minute or so."""
    timer = threading.Timer(0.2, gc.collect)
    timer.daemon = True
    timer.start()


def note_event(name, subject):
    memsync.on(name, lambda **details: note(name, details[subject], details=details))


note_event("worker-online", "worker_id")
note_event("worker-lost", "worker_id")
note_event("task-lost", "task_id")
note_event("task-stalled", "task_id")


@control_command()
def go_deaf(state):
    """Consume no more, with all connections as they were."""
    state.consumer.task_consumer.cancel()
