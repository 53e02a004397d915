"""A process that takes locks, uses them and notes all it does; for ``tests/integration/test_lock_history.py``.

Every line of its notes: what, name of the lock, fence, monotonic time, which is the same clock in all processes of a host.
"""
from __future__ import annotations

import fcntl
import os
import random
import sys
import time

from celery_memsync import LockLost, MemorySyncManager, StoreError

TTL = 0.5


def increment(path, fence):
    """Add one to a counter in a file, unless a later holder has; return whether that was done."""
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        last, count = map(int, file.read().split())
        if fence < last:
            return False
        file.seek(0)
        file.write(f"{fence} {count + 1}\n")
        file.truncate()
    return True


def play(url, folder, seed):
    chance = random.Random(seed)
    notes = os.open(f"{folder}/notes-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    memsync = MemorySyncManager(url=url, batch_interval=0.005, lock_ttl=TTL)

    def note(what, name, fence, at):
        os.write(notes, f"{what} {name} {fence} {at:.6f}\n".encode())

    while True:
        name = chance.choice("aab")
        lock = memsync.lock(name, wait=chance.choice((0.0, 0.3, 3.0)))
        try:
            taken = lock.acquire()
        except StoreError:
            time.sleep(0.05)
            continue
        if not taken:
            time.sleep(0.005)
            continue
        fence = lock.fence
        note("taken", name, fence, time.monotonic())
        end = time.monotonic() + chance.choice((0.0, 0.0, 0.005, 0.005, 0.05, 0.05, 2 * TTL))
        while True:
            before = time.monotonic()
            try:
                lock.check()
            except LockLost:
                note("lost", name, fence, before)
                done = increment(f"{folder}/counter-{name}", fence)
                note("late" if done else "refused", name, fence, before)
                break
            note("owned", name, fence, before)
            done = increment(f"{folder}/counter-{name}", fence)
            note("added" if done else "refused", name, fence, before)
            memsync.write(f"register-{name}", fence, fence=lock)
            if before >= end:
                break
            time.sleep(0.005)
        try:
            lock.release()
        except StoreError:
            pass
        memsync.write(f"register-{name}", fence, fence=fence)


if __name__ == "__main__":
    play(sys.argv[1], sys.argv[2], int(sys.argv[3]))
