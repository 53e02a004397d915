"""Tasks that are cancelled, or cancel others."""
from __future__ import annotations

import os
import time

from celery import shared_task

from celery_memsync import TaskCancelled
from tests.support.tasks import note


@shared_task(bind=True)
def check(self, seconds=30.0):
    """Work until it is cancelled, by `check_cancelled`."""
    note("begin", self.request.id)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            self.app.memsync.check_cancelled()
            time.sleep(0.02)
    except TaskCancelled as exc:
        note("cancelled", self.request.id, reason=exc.reason, by=exc.worker_id, task=exc.task_id)
        raise
    note("end", self.request.id)


@shared_task(bind=True)
def track(self, number=1500):
    """Work until it is cancelled, by `track`."""
    note("begin", self.request.id)
    for _ in self.app.memsync.track(range(number)):
        time.sleep(0.02)
    note("end", self.request.id)


@shared_task(bind=True)
def check_once(self, seconds):
    """Look once only, long after it has begun."""
    note("begin", self.request.id)
    time.sleep(seconds)
    self.app.memsync.check_cancelled()
    note("end", self.request.id)


@shared_task(bind=True)
def hold(self, seconds=30.0):
    """Work without a look; hold a lock meanwhile."""
    note("begin", self.request.id)
    with self.app.memsync.lock(f"of-{self.request.id}"):
        time.sleep(seconds)
    note("end", self.request.id)


@shared_task(bind=True)
def hold_and_check(self, seconds=30.0):
    """Hold two locks, one of which it does not release itself, until it is cancelled."""
    memsync = self.app.memsync
    memsync.acquire_task_lock(self.request.id)
    with memsync.lock(f"of-{self.request.id}"):
        note("begin", self.request.id)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            memsync.check_cancelled()
            time.sleep(0.02)


@shared_task(bind=True)
def step(self, seconds=0.05, workflow=None):
    """One of many steps of a workflow."""
    note("begin", self.request.id, workflow=workflow)
    time.sleep(seconds)


@shared_task(bind=True)
def cancel_own_root(self):
    """Cancel the workflow that this is a part of, and look."""
    note("begin", self.request.id)
    self.app.memsync.cancel(self.request.root_id, "enough")
    self.app.memsync.check_cancelled()
    time.sleep(1.0)
    self.app.memsync.check_cancelled()
    note("end", self.request.id)


@shared_task(bind=True, max_retries=3)
def retry_after(self, seconds):
    """Work without a look, and retry then."""
    note("begin", self.request.id)
    time.sleep(seconds)
    raise self.retry(countdown=0.1, exc=OSError("busy"))


@shared_task(bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def retry_by_itself(self, seconds=30.0):
    """Work until it is cancelled; Celery retries it for any exception."""
    note("begin", self.request.id)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        self.app.memsync.check_cancelled()
        time.sleep(0.02)


@shared_task(bind=True)
def check_in_fork(self, seconds=5.0):
    """Look, fork a process, and look in there until it is cancelled."""
    self.app.memsync.check_cancelled()
    note("begin", self.request.id)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.app.memsync.check_cancelled()
            time.sleep(0.02)
    except TaskCancelled:
        note("cancelled", self.request.id)
    finally:
        os._exit(0)
