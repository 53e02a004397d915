"""Wait for what comes from another thread or process."""
from __future__ import annotations

import time

from celery_memsync import StoreError


def eventually(check, timeout=10.0, message="it did not come true"):
    """Return what ``check()`` answers as soon as that is true; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{message}: {answer!r} after {timeout} s"
        time.sleep(0.02)


def succeeds(action):
    """Call ``action()``; return whether Redis let it be done."""
    try:
        action()
    except StoreError:
        return False
    return True
