"""A process whose threads use the shared queue, and note what they begin and what they are answered.

    python -m tests.support.queue_player URL FOLDER SEED

Each thread appends rows of JSON to a file of its own: what, the task, the answer; None: the call begins.  It ends when
there is a file named ``stop``.
"""
from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

from celery_memsync import MemorySyncManager, StoreError

THREADS = 4

#: Seconds that an answer is waited for.
TIMEOUT = 0.3

#: Tasks a second that all put into the queue at the same time.
CONTESTED = 5


class Player:
    """What one thread does."""

    def __init__(self, memsync, folder, seed):
        self.memsync = memsync
        self.folder = folder
        self.chance = random.Random(seed)
        self.name = f"{os.getpid()}-{seed}"
        self.notes = open(folder / f"notes-{self.name}", "a", buffering=1)
        self.made = 0

    def note(self, *row):
        self.notes.write(json.dumps(row) + "\n")

    def call(self, what, *args, depth=0):
        """Make a call until it is answered, perhaps with others between the tries; return the answer, None in doubt."""
        self.note(what, args[0] if args else "", None)
        while True:
            try:
                answer = getattr(self.memsync, what)(*args)
            except StoreError as exc:
                if getattr(exc, "maybe_done", False):
                    return None
                if depth < 2 and self.chance.random() < 0.3:
                    self.step(depth + 1)
                continue
            self.note(what, args[0] if args else answer or "", bool(answer))
            return answer

    def step(self, depth=0):
        if self.chance.random() < 0.5:
            self.made += 1
            task_id = f"{self.name}-{self.made}"
            if self.chance.random() < 0.3:
                task_id = f"all-{int(time.time() * CONTESTED)}"
            self.call("enqueue", task_id, depth=depth)
            return
        # Between the tries of a dequeue another one would be a second try of it.
        task_id = self.call("dequeue", depth=2)
        if task_id:
            self.call("complete", task_id, depth=depth)
            self.memsync.increment_metrics(**{f"n-{os.getpid()}": 1})
            self.note("count", "", True)

    def play(self):
        while not (self.folder / "stop").exists():
            self.step()
            time.sleep(self.chance.random() * 0.01)


def main(url, folder, seed):
    options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": 5}
    memsync = MemorySyncManager(worker_id=f"player-{os.getpid()}", url=url, backend_options=options, batch_interval=0.02)
    players = [Player(memsync, Path(folder), int(seed) * 10 + number) for number in range(THREADS)]
    threads = [threading.Thread(target=player.play) for player in players]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync(timeout=20)
    players[0].note("end", str(os.getpid()), True)
    memsync.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
