"""What is done with the queue is done once, shown by a history: processes and their threads, lost answers, late questions.

With ``MEMSYNC_STRESS=1`` that takes a minute; ``MEMSYNC_SEED=1`` repeats a history.
"""
from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import pytest

from celery_memsync import MemorySyncManager
from tests.support.late_proxy import LateProxy
from tests.support.paths import ROOT
from tests.support.stress import stressed
from tests.support.waiting import eventually

SECONDS = stressed(60.0, 3.0)
SEED = int(os.environ.get("MEMSYNC_SEED", random.SystemRandom().randrange(10 ** 6)))
PLAYERS = 4


class Torment:
    """Players behind a proxy, and all that befalls them."""

    def __init__(self, server, folder, seed):
        self.server = server
        self.folder = folder
        self.chance = random.Random(seed)
        self.proxy = LateProxy(server.port, random.Random(seed + 1))
        self.players = []
        self.befallen = Counter()
        for _ in range(PLAYERS):
            self.start_player()

    def start_player(self):
        command = [sys.executable, "-m", "tests.support.queue_player", self.proxy.url, str(self.folder),
                   str(self.chance.randrange(10 ** 9))]
        self.players.append(subprocess.Popen(command, cwd=ROOT))

    def strike(self):
        what = self.chance.choice((self.kill, self.cut, self.freeze, self.forget_scripts))
        self.befallen[what.__name__] += 1
        what()

    def kill(self):
        player = self.players.pop(self.chance.randrange(len(self.players)))
        player.kill()
        player.wait()
        self.start_player()

    def cut(self):
        with self.server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def freeze(self):
        self.server.pause()
        time.sleep(self.chance.uniform(0.05, 0.6))
        self.server.resume()

    def forget_scripts(self):
        with self.server.client() as client:
            client.script_flush()

    def end(self):
        """Let the players come to their end, without harm from now on."""
        self.proxy.harm = 0.0
        (self.folder / "stop").touch()
        for player in self.players:
            assert player.wait(40) == 0

    def kill_all(self):
        for player in self.players:
            with contextlib.suppress(ProcessLookupError):
                player.send_signal(signal.SIGKILL)
            player.wait()
        self.proxy.listener.close()

    def rows(self):
        """Return what was noted, by process."""
        rows = defaultdict(list)
        for path in self.folder.glob("notes-*"):
            for line in path.read_text().splitlines():
                # A killed process may have left half a line.
                with contextlib.suppress(ValueError):
                    rows[path.name.split("-")[1]].append(json.loads(line))
        return rows


class History:
    """How often what was done with each task, and how often it may have been done.

    Args:
        rows: What was noted.
    """

    def __init__(self, rows):
        self.answers = {what: defaultdict(list) for what in ("enqueue", "dequeue", "complete")}
        begun = Counter()
        for what, task_id, answer in rows:
            if what in self.answers:
                begun[what, task_id if what != "dequeue" else ""] += 1 if answer is None else -1
                if answer is not None:
                    self.answers[what][task_id].append(answer)
        #: Calls that were begun and not answered.
        self.in_doubt = begun

    def done(self, what, task_id):
        return self.answers[what][task_id].count(True)

    def violations(self, queue):
        """Return what can't be, if no more was done than what was answered, and what is in doubt.

        Args:
            queue: Its lists at the end.
        """
        found = []
        for task_id in {*self.answers["enqueue"], *self.answers["dequeue"]} - {""}:
            put, taken, completed = (self.done(what, task_id) for what in self.answers)
            maybe_put = self.in_doubt["enqueue", task_id]
            left = sum(task_id in ids for ids in queue.values())
            if taken > put + maybe_put:
                found.append(f"{task_id}: put {put} times, perhaps {maybe_put} more, and taken {taken} times")
            if put > taken + left:
                found.append(f"{task_id}: put {put} times, taken {taken} times, {left} are left")
            if False in self.answers["complete"][task_id]:
                found.append(f"{task_id}: was not there when it was completed")
            if taken > completed + self.in_doubt["complete", task_id] + left:
                found.append(f"{task_id}: taken {taken} times, completed {completed} times")
        return found


@pytest.mark.timeout(SECONDS + 120)
def test_what_is_done_with_the_queue_is_done_once(own_server, tmp_path):
    print(f"seed {SEED}")
    torment = Torment(own_server, tmp_path, SEED)
    try:
        eventually(lambda: sum(len(rows) for rows in torment.rows().values()) > 200, timeout=30)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(torment.chance.uniform(0.05, 0.4))
            torment.strike()
        torment.end()
    finally:
        torment.kill_all()

    by_process = torment.rows()
    rows = [row for some in by_process.values() for row in some]
    with contextlib.closing(MemorySyncManagerOf(own_server)) as memsync:
        rows += drain(memsync)
        queue, counters = memsync.get_queue(limit=100_000), memsync.get_coordination_metrics()
    history = History(rows)
    print(dict(torment.befallen), dict(torment.proxy.harmed), {what: len(ids) for what, ids in history.answers.items()})
    assert history.violations(queue) == []
    check_counters(by_process, counters)
    assert sum(torment.proxy.harmed.values()) > 5 * SECONDS


class MemorySyncManagerOf(MemorySyncManager):
    """A manager on a server, without harm."""

    def __init__(self, server):
        super().__init__(worker_id="referee", url=server.url)

    close = MemorySyncManager.shutdown


def drain(memsync):
    """Take all that is pending; return rows as players note them."""
    rows = []
    while task_id := memsync.dequeue():
        rows += [["dequeue", "", None], ["dequeue", task_id, True], ["complete", task_id, None]]
        rows.append(["complete", task_id, memsync.complete(task_id)])
    return rows


def check_counters(by_process, counters):
    """What a process has counted is added up; of one that was killed, what it had not written may be missing."""
    for process, rows in by_process.items():
        counted = sum(what == "count" for what, _, _ in rows)
        has_ended = any(what == "end" for what, _, _ in rows)
        assert counters.get(f"n-{process}", 0) <= counted + (0 if has_ended else 4), process
        if has_ended:
            assert counters.get(f"n-{process}", 0) == counted, process
