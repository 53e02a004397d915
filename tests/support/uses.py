"""What a manager may be used for that could keep it alive."""
from __future__ import annotations

import contextlib
import gc
import os
import threading

from celery_memsync.closing import closer
from tests.support.waiting import eventually


def forget(find):
    gc.collect()
    return find() is None


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("memsync-")}


def descriptors():
    """Return what each file descriptor of this process stands for, such as ``socket:[4026]``."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


def write(memsync):
    memsync.write("a", 1)


def report(memsync):
    memsync.sync_task_progress("t1", 50)


def read(memsync):
    memsync.read("a")


def subscribe(memsync):
    memsync.subscribe("*", lambda key, value: memsync.events, lambda key: memsync.events)


def watch(memsync):
    return memsync.watch("*")


def listen(memsync):
    memsync.on("batch-flushed", lambda **details: memsync.events)
    memsync.write("a", 1)


def hold(memsync):
    lock = memsync.lock("one", ttl=30)
    assert lock.acquire()
    return lock


def hold_task(memsync):
    assert memsync.acquire_task_lock("t1", ttl=30)


USES = [write, report, read, subscribe, watch, listen, hold, hold_task]


class Surroundings:
    """What is in this process beside what was there before, once nothing is closing any more."""

    def __init__(self):
        gc.collect()
        eventually(lambda: not closer._forgotten and not closer._closing.locked())
        self.before = threads(), descriptors(), set(closer._open)

    def more(self):
        """Return threads, file descriptors, and what is to be closed."""
        before = self.before
        return threads() - before[0], descriptors() - before[1], set(closer._open) - before[2]
