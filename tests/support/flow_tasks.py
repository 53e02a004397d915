"""Tasks of workflows, which take whatever the step before them returns."""
from __future__ import annotations

import os
import signal
import time

from celery import chain, group, shared_task
from celery.exceptions import Ignore, Reject


@shared_task
def ok(*args):
    return 1


@shared_task
def bad(*args):
    raise ValueError("bad")


@shared_task
def bad_later(*args):
    time.sleep(0.8)
    raise ValueError("bad")


@shared_task(bind=True)
def wait(self, *args, seconds=60.0):
    for _ in self.app.memsync.track(range(int(seconds * 20))):
        time.sleep(0.05)


@shared_task
def ignored(*args):
    raise Ignore()


@shared_task
def rejected(*args):
    raise Reject("no", requeue=False)


@shared_task(bind=True, max_retries=2)
def retried(self, *args):
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)


@shared_task
def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, memsync_recover="requeue")
def any_end(self, number, kills=0, slow=()):
    """End in a way that depends on the number: of eight one fails, one is retried, and one may kill its process."""
    time.sleep(8.0 if number in slow else 0.0)
    if number % 8 == 3:
        raise ValueError(number)
    if number % 8 == 5 and not self.request.retries:
        raise self.retry(countdown=0)
    if number % 8 == 7 and number // 8 < kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@shared_task(bind=True)
def replaced(self, *args):
    raise self.replace(chain(ok.si(), ok.si()))


@shared_task(bind=True)
def replaced_by_failure(self, *args):
    raise self.replace(chain(ok.si(), bad_later.si()))


@shared_task(bind=True)
def adding(self, *args):
    self.add_to_chord(ok.s())


@shared_task
def note_failure(task_id):
    return task_id


@shared_task
def spawning(*args):
    return [group(ok.s(), ok.s()).delay().id, ok.delay().id]
