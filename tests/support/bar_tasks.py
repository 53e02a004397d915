"""Tasks with bars of tqdm that report."""
from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery import shared_task
from tqdm import std

from celery_memsync.contrib.tqdm import tqdm, trange

# As libraries do that load something when they are imported: the lock of tqdm is made here, in the main process.
std.tqdm(disable=True)


@shared_task
def resize(sign, last):
    """Count to 10, with a bar inside of each step, and stay at a step until a file is there."""
    for number in trange(10, desc="resizing", mininterval=0):
        for _ in trange(100, desc="reading", leave=False):
            pass
        while number == last and not Path(sign).exists():
            time.sleep(0.02)


@shared_task
def two_loops():
    for _ in trange(5, desc="downloading"):
        pass
    for _ in tqdm(iter("abc"), desc="converting"):
        pass


@shared_task(acks_late=False)
def die_in_a_bar():
    """Be killed while the bar holds its lock."""
    with trange(3), tqdm.get_lock():
        os.kill(os.getpid(), signal.SIGKILL)
