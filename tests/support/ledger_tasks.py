"""Fifty tasks that write into files what becomes of each of their runs."""
from __future__ import annotations

import json
import os
import signal
import threading
import time

from celery import shared_task, signals
from celery.exceptions import Ignore

NAMES = tuple(f"ledger.task{number:02}" for number in range(50))

#: Those whose message goes back to the broker if their child is killed.
LATE = frozenset(NAMES[45:])


def write(request, what, seconds=None):
    """Add a line to the ledger of this process."""
    row = {"name": request.task, "queue": request.delivery_info["routing_key"], "id": request.id, "retries": request.retries,
           "what": what, "seconds": seconds, "run": id(request), "pid": os.getpid()}
    with open(f"{os.environ['MEMSYNC_TEST_NOTES']}.{os.getpid()}", "a") as file:
        file.write(json.dumps(row) + "\n")


def rows(notes_file):
    """Return all lines."""
    return [json.loads(line) for file in notes_file.parent.glob(f"{notes_file.name}.*")
            for line in file.read_text().splitlines()]


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


@signals.task_prerun.connect
def on_begin(task, **_):
    task.request.began = time.monotonic()


@signals.task_postrun.connect
def on_end(task, **_):
    """Write how long a run took, with what Celery does around its body."""
    if hasattr(task.request, "what"):
        write(task.request, task.request.what, time.monotonic() - task.request.began)


def body(task, how, seconds):
    request = task.request
    redelivered = os.path.exists(f"{os.environ['MEMSYNC_TEST_NOTES']}-{request.id}")
    write(request, "begin")
    if how == "hang":
        time.sleep(300)
    time.sleep(seconds)
    if how == "die" and not redelivered:
        open(f"{os.environ['MEMSYNC_TEST_NOTES']}-{request.id}", "w").close()
        kill_self()
    retries = how == "retry" and not request.retries
    ends = {"fail": "failed", "fail and die": "failed", "ignore": "ignored"}
    request.what = "retried" if retries else ends.get(how, "succeeded")
    if how.endswith("and die"):
        threading.Timer(0.03, kill_self).start()
    if retries:
        raise task.retry(countdown=0.05, max_retries=3)
    if how.startswith("fail"):
        raise ValueError("it went wrong")
    if how == "ignore":
        raise Ignore


for one in NAMES:
    late = {"acks_late": True, "reject_on_worker_lost": True} if one in LATE else {}
    shared_task(body, name=one, bind=True, ignore_result=True, **late)
