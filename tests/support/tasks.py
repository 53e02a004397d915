"""Tasks that end in every way a task can end."""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from asyncio import CancelledError

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded


def note(what, task_id=None, **facts):
    """Add a line to the file in which workers record for the tests what they saw."""
    row = {"what": what, "id": task_id, "at": time.time(), "pid": os.getpid(), **facts}
    file = os.open(os.environ["MEMSYNC_TEST_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, json.dumps(row).encode() + b"\n")
    finally:
        os.close(file)


@shared_task
def add(x, y):
    return x + y


@shared_task
def total(numbers):
    return sum(numbers)


@shared_task(ignore_result=True)
def nothing():
    pass


@shared_task
def fail(message="it went wrong"):
    raise ValueError(message)


@shared_task(bind=True)
def sleep(self, seconds):
    note("begin", self.request.id)
    time.sleep(seconds)
    note("end", self.request.id)


@shared_task(bind=True, max_retries=3)
def retry_once(self, countdown=0.0):
    memsync = self.app.memsync
    if not self.request.retries:
        memsync.progress(40, 100, "downloading")
        raise self.retry(countdown=countdown, exc=OSError("the line is busy"))
    return memsync.get_task_progress(self.request.id)


@shared_task(bind=True, max_retries=3)
def retry_then(self, what):
    memsync = self.app.memsync
    if not self.request.retries:
        memsync.progress(40, 100)
        raise self.retry(countdown=0)
    if what == "replace":
        memsync.progress(70, 100)
        raise self.replace(fail.s("the replacement failed"))
    raise ValueError(what)


@shared_task(bind=True, max_retries=0)
def retry_too_often(self):
    raise self.retry(exc=OSError("the line is busy"))


@shared_task(bind=True, autoretry_for=(OSError,), max_retries=2, default_retry_delay=0)
def fail_twice(self):
    if self.request.retries < 2:
        raise OSError("the line is busy")


@shared_task
def ignore():
    raise Ignore()


@shared_task(bind=True)
def end_by_update_state(self, state):
    """Store an end by Celery's own means, and keep Celery from storing another."""
    self.update_state(
        state=state,
        meta={"exc_type": "ValueError", "exc_message": "as requested", "exc_module": "builtins"})
    raise Ignore()


@shared_task
def end_when_terminated(how):
    """Go on after the signal of a soft time limit."""
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        time.sleep(1)  # until its worker has recorded the revoke
        if how == "fail":
            raise


@shared_task(acks_late=True)
def reject():
    raise Reject("no worker may run it", requeue=False)


@shared_task(bind=True, acks_late=True)
def requeue_once(self):
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not here", requeue=True)


@shared_task(bind=True, acks_late=True)
def sleep_acks_late(self, seconds):
    note("begin", self.request.id)
    time.sleep(seconds)


@shared_task(bind=True, acks_late=True)
def wait_acks_late(self, path):
    """Go on for as long as a file is not there."""
    note("begin", self.request.id)
    while not os.path.exists(path):
        time.sleep(0.05)


@shared_task(acks_late=True)
def add_acks_late(x, y):
    return x + y


@shared_task
def kill_own_process():
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
def kill_own_process_once(self, after):
    if not self.request.delivery_info["redelivered"]:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)


class KillsItsProcessAfterwards(Task):
    def on_success(self, *args):
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=KillsItsProcessAfterwards)
def add_and_die(x, y):
    return x + y


@shared_task(bind=True, retry_on_worker_lost=True, max_retries=3, default_retry_delay=0)
def kill_own_process_until_the_second_retry(self):
    if self.request.retries < 2:
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task
def leave(code):
    os._exit(code)


@shared_task
def leave_politely(code):
    sys.exit(code)


@shared_task(bind=True)
def count_to(self, last, pause=0.0):
    """Report progress for each number; return the seconds of all calls and of the longest."""
    memsync = self.app.memsync
    longest = 0.0
    begun = time.monotonic()
    for number in range(1, last + 1):
        before = time.monotonic()
        memsync.progress(number, last)
        longest = max(longest, time.monotonic() - before)
    seconds = time.monotonic() - begun
    time.sleep(pause)
    return {"seconds": seconds, "longest": longest}


@shared_task(bind=True)
def count_to_in_halves(self, last, sign):
    """As `count_to`, with a break in the middle that ends when a file is there."""
    memsync = self.app.memsync
    seconds = longest = 0.0
    for half in (range(1, last // 2 + 1), range(last // 2 + 1, last + 1)):
        begun = time.monotonic()
        for number in half:
            before = time.monotonic()
            memsync.progress(number, last)
            longest = max(longest, time.monotonic() - before)
        seconds += time.monotonic() - begun
        note("half", self.request.id)
        while not os.path.exists(sign):
            time.sleep(0.02)
    return {"seconds": seconds, "longest": longest}


def _report_by_signs(self, sign, last):
    """Report each number when a file of its name is there, and then end."""
    for number in range(1, last + 1):
        while not os.path.exists(f"{sign}{number}"):
            time.sleep(0.02)
        self.app.memsync.progress(number, last)


@shared_task(bind=True)
def report_by_signs(self, sign, last):
    _report_by_signs(self, sign, last)


@shared_task(bind=True, memsync_stall_after=0)
def report_by_signs_and_never_stall(self, sign, last):
    _report_by_signs(self, sign, last)


@shared_task(bind=True, memsync_recover="requeue")
def hold_again(self, key, seconds=60.0, **facts):
    """Take long the first time, and no time when it is sent again."""
    memsync = self.app.memsync
    with open(os.environ["MEMSYNC_TEST_NOTES"]) as notes:
        again = any((row["what"], row["id"]) == ("begin", self.request.id) for row in map(json.loads, notes))
    mark = getattr(self.request, "mark", None)
    note("begin", self.request.id, key=key, facts=facts, argsrepr=self.request.argsrepr, mark=mark)
    memsync.progress(3, 10)
    if not again:
        time.sleep(seconds)
    note("end", self.request.id, before=(memsync.get_task_progress(self.request.id).get("previous") or {}).get("current"))
    return key


@shared_task(bind=True, memsync_recover="requeue", acks_late=True)
def hold_late(self, seconds=60.0):
    note("begin", self.request.id)
    time.sleep(seconds)


@shared_task(bind=True)
def note_args(self, *args):
    note("note_args", self.request.id, args=args)
    return args


@shared_task(bind=True, memsync_recover="requeue", memsync_max_recoveries=2)
def kill_own_worker(self):
    note("begin", self.request.id)
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


ENDINGS = {"exit": SystemExit, "generator": GeneratorExit, "keyboard": KeyboardInterrupt, "cancelled": CancelledError}


@shared_task
def end_by(how):
    """End as no Exception does."""
    raise ENDINGS[how]("as requested")


@shared_task(bind=True)
def be_replaced(self, pause):
    raise self.replace(sleep.s(pause) | add.si(2, 3))


@shared_task(bind=True)
def be_replaced_later(self, countdown):
    raise self.replace(add.si(2, 3).set(countdown=countdown))


@shared_task(bind=True, max_retries=3)
def retry_in(self, countdown):
    raise self.retry(countdown=countdown, exc=OSError("the line is busy"))


@shared_task(bind=True)
def count_by_update_state(self, number, seconds):
    """Report by Celery's own means only."""
    for current in range(1, number + 1):
        self.update_state(state="COUNTING", meta={"current": current, "total": number, "description": "counting"})
    time.sleep(seconds)


@shared_task(bind=True)
def report_badly(self):
    """Report what is no progress; return what was taken of it."""
    memsync = self.app.memsync
    memsync.progress("many", 10, 5, rows=7, bad=object())
    memsync.progress(3, float("nan"))
    memsync.agent("a/b").sync(object())
    return memsync.get_task_progress(self.request.id)


@shared_task(bind=True)
def add_eagerly_while_handling(self, x, y):
    """Run a task eagerly while an exception is handled."""
    try:
        raise ValueError("it went wrong")
    except ValueError:
        return add.apply((x, y), task_id=f"eager-{self.request.id}").get(disable_sync_subtasks=False)


class HookedTask(Task):
    """A task whose hook of the name that it gets as first argument raises."""

    def before_start(self, task_id, args, kwargs):
        self._raise("before_start", args)

    def on_success(self, retval, task_id, args, kwargs):
        self._raise("on_success", args)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._raise("on_failure", args)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._raise("on_retry", args)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._raise("after_return", args)

    def _raise(self, name, args):
        if args[0] == name:
            raise LookupError(f"no {name}")


@shared_task(bind=True, base=HookedTask, max_retries=1)
def raise_in_hook(self, hook, body="return"):
    """Return, fail, or try again once; the named hook raises."""
    if body == "fail":
        raise ValueError("the body failed")
    if body == "retry":
        raise self.retry(countdown=0.5)
