"""Tasks that run under faults; they note their results in a file that no fault touches."""
from __future__ import annotations

import time

from celery import shared_task

from celery_memsync import LockError, StoreError
from tests.support.tasks import note

#: Lease of the locks, in seconds: short, so that it often expires while a holder is stopped.
LEASE = 2.0


@shared_task(bind=True)
def early(self, steps, pause, key):
    return work(self, steps, pause, key)


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late(self, steps, pause, key):
    return work(self, steps, pause, key)


@shared_task(bind=True, memsync_recover="requeue", memsync_max_recoveries=9)
def again(self, steps, pause, key):
    return work(self, steps, pause, key)


def work(task, steps, pause, key):
    """Report progress, hold a lock for a while, write under it; note what happened."""
    memsync, task_id = task.app.memsync, task.request.id
    note("begin", task_id, name=task.name, redelivered=task.request.delivery_info["redelivered"])
    for number in range(1, steps + 1):
        memsync.progress(number, steps)
        time.sleep(pause)
    lock = memsync.lock(key, ttl=LEASE, wait=5)
    try:
        with lock:
            note("held", task_id, key=key, fence=lock.fence)
            memsync.write(f"locked/{key}", {"fence": lock.fence, "task": task_id}, fence=lock)
            time.sleep(pause)
            owned = lock.owned
            note("left", task_id, key=key, fence=lock.fence, owned=owned)
    except (LockError, StoreError) as exc:
        note("refused", task_id, key=key, error=type(exc).__name__)
    memsync.sync_task_state(task_id, {"steps": steps})
    note("end", task_id, steps=steps)
    return steps
