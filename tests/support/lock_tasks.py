"""Tasks under locks that end in every way a task can end."""
from __future__ import annotations

import os
import signal
import time

from celery import shared_task
from celery.exceptions import Ignore, Reject

from celery_memsync import LockNotAcquired, MemSync
from tests.support.tasks import note

#: Bound to no app: in a worker the locks are those of the app whose task runs.
memsync = MemSync()


@shared_task(bind=True, acks_late=True)
@memsync.locked("{name}")
def end(self, name, how, seconds=0.0):
    """Take a lock, and end in some way."""
    note("begin", self.request.id)
    time.sleep(seconds)
    if how == "raise":
        raise ValueError("it went wrong")
    if how == "ignore":
        raise Ignore()
    if how == "reject":
        raise Reject("no worker may run it", requeue=False)
    if how == "retry" and not self.request.retries:
        raise self.retry(countdown=1.0)
    if how == "retry at once" and self.request.retries < 3:
        raise self.retry(countdown=0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leave":
        os._exit(3)
    if how == "exit":
        raise SystemExit(3)
    note("end", self.request.id)
    return self.request.retries


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
@memsync.locked("{name}", wait=10)
def kill_once(self, name):
    note("begin", self.request.id)
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
@memsync.locked("{name}", on_locked="skip")
def skip_again(self, name, seconds):
    """Take so long the first time only."""
    note("begin", self.request.id)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(seconds)


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
@memsync.locked("{name}")
def fail_again(self, name, seconds):
    """Take so long the first time only."""
    note("begin", self.request.id)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(seconds)


@shared_task(bind=True)
def forget(self, name, how="return"):
    """Take locks by hand and never give them back."""
    self.app.memsync.lock(name).acquire()
    self.app.memsync.acquire_task_lock(self.request.id)
    note("begin", self.request.id)
    if how == "raise":
        raise ValueError("it went wrong")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, max_retries=0)
@memsync.locked("{name}", on_locked="retry", retry_delay=0.4)
def try_again(self, name):
    note("begin", self.request.id)
    return self.request.retries


@shared_task(bind=True, max_retries=1)
@memsync.locked("{name}", on_locked="retry", retry_delay=0.2, count_retries=True)
def try_again_once(self, name):
    note("begin", self.request.id)


@shared_task
@memsync.locked("{name}", on_locked="skip")
def skip(name, value=None):
    return value


@shared_task(autoretry_for=(LockNotAcquired,), max_retries=20, default_retry_delay=0.2)
@memsync.locked("{name}")
def insist(name):
    return "done"


@shared_task(bind=True, acks_late=True)
@memsync.exclusive(retry_delay=0.5)
def alone(self, seconds):
    note("begin", self.request.id)
    time.sleep(seconds)
    note("end", self.request.id)


@shared_task
@memsync.locked("sum:{x}", wait=10)
def add(x, y=0, *, z=0):
    """Add up."""
    return x + y + z


@shared_task
@memsync.locked("total", wait=10)
def total(numbers):
    return sum(numbers)


@shared_task(bind=True)
@memsync.locked("{name}", ttl=1.0, wait=10)
def stand_still(self, name, result):
    """Note when it goes on after it was paused."""
    self.app.memsync.progress(10, 100)
    note("begin", self.request.id)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        time.sleep(0.05)
    note("end", self.request.id)
    return result
