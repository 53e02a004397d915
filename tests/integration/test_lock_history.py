"""Mutual exclusion, shown by a history of holders, while processes and Redis are tormented.

With ``MEMSYNC_STRESS=1`` that takes a minute; ``MEMSYNC_SEED=1`` repeats a history.
"""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise

import pytest
import redis as redis_py

from celery_memsync.models.entry import StoredEntry
from tests.support.lock_player import TTL
from tests.support.paths import ROOT
from tests.support.stress import stressed
from tests.support.waiting import eventually

SECONDS = stressed(60.0, 2.0)
SEED = int(os.environ.get("MEMSYNC_SEED", random.SystemRandom().randrange(10 ** 6)))
PLAYERS = 8


class Torment:
    """Players on a Redis, and all that befalls them."""

    def __init__(self, server, folder, seed):
        self.server = server
        self.folder = folder
        self.chance = random.Random(seed)
        self.players = []
        self.befallen = defaultdict(int)
        #: What was seen in each register, in the order of its versions.
        self.registers = defaultdict(dict)
        for name in "ab":
            (folder / f"counter-{name}").write_text("0 0\n")
        for _ in range(PLAYERS):
            self.start_player()

    def start_player(self):
        command = [sys.executable, "-m", "tests.support.lock_player", self.server.url, str(self.folder),
                   str(self.chance.randrange(10 ** 9))]
        self.players.append(subprocess.Popen(command, cwd=ROOT))

    def strike(self):
        what = self.chance.choice((self.pause, self.pause, self.kill, self.cut, self.still, self.freeze))
        self.befallen[what.__name__] += 1
        what()

    def pause(self):
        player = self.chance.choice(self.players)
        player.send_signal(signal.SIGSTOP)
        self.watch(self.chance.uniform(0.1, 2.5) * TTL)
        player.send_signal(signal.SIGCONT)

    def kill(self):
        player = self.players.pop(self.chance.randrange(len(self.players)))
        player.kill()
        player.wait()
        self.start_player()

    def cut(self):
        with self.server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", self.chance.choice(("normal", "pubsub")), "SKIPME", "yes")

    def still(self):
        with self.server.client() as client:
            client.execute_command("CLIENT", "PAUSE", self.chance.randrange(50, 700))

    def freeze(self):
        self.server.pause()
        time.sleep(self.chance.uniform(0.05, 1.0))
        self.server.resume()

    def watch(self, seconds):
        """Look at the registers for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with self.server.client() as client:
                    for name in "ab":
                        text = client.get(f"task-sentinel/register-{name}")
                        if text:
                            stored = StoredEntry.parse(text)
                            self.registers[name][stored.header.version] = stored
            except redis_py.RedisError:
                pass
            time.sleep(0.01)

    def end(self):
        for player in self.players:
            player.kill()
            player.wait()

    def history(self):
        """Return what was noted of each lock: rows of fence, what and time."""
        rows = defaultdict(list)
        for path in self.folder.glob("notes-*"):
            for line in path.read_text().splitlines():
                # A killed process may have left half a line.
                if line.count(" ") == 3 and len(line.rpartition(".")[2]) == 6:
                    what, name, fence, at = line.split()
                    rows[name].append((int(fence), what, float(at)))
        return rows


@pytest.mark.timeout(SECONDS + 60)
def test_no_two_processes_own_one_lock_at_the_same_time(own_server, tmp_path):
    print(f"seed {SEED}")
    torment = Torment(own_server, tmp_path, SEED)
    try:
        eventually(lambda: sum(len(rows) for rows in torment.history().values()) > 100, timeout=30)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            torment.watch(torment.chance.uniform(0.05, 0.4))
            torment.strike()
        torment.watch(2 * TTL)
    finally:
        torment.end()

    history = torment.history()
    for name in "ab":
        check_exclusion(name, history[name])
        check_counter(history[name], (tmp_path / f"counter-{name}").read_text())
        check_register(name, torment.registers[name])
    events = [what for rows in history.values() for _, what, _ in rows]
    print(dict(torment.befallen), {what: events.count(what) for what in sorted(set(events))})
    assert events.count("taken") > 3 * SECONDS


def check_exclusion(name, rows):
    """Check that no process took the lock while another owned it, and that fences are in order."""
    begins = {fence: at for fence, what, at in rows if what == "taken"}
    ends = {}
    for fence, what, at in rows:
        if what == "owned":
            ends[fence] = max(at, ends.get(fence, at))
    before = sorted(begins)
    assert len(before) == sum(what == "taken" for _, what, _ in rows), f"two holders of {name} have one fence"
    for earlier, later in pairwise(before):
        assert ends.get(earlier, begins[earlier]) <= begins[later], \
            f"{name}: {earlier} was owned until {ends[earlier]}, {later} was taken at {begins[later]}"


def check_counter(rows, text):
    """The counter has what was noted as added; a process may have been killed between adding and noting it."""
    last, count = map(int, text.split())
    noted = sum(what in ("added", "late") for _, what, _ in rows)
    tried = sum(what in ("owned", "lost") for _, what, _ in rows)
    assert noted <= count <= tried
    assert last <= max(fence for fence, _, _ in rows)


def check_register(name, seen):
    """What was written under a lock has the fence of its writer, and no fence is followed by a lower one."""
    fences = [seen[version].header.fence for version in sorted(seen)]
    assert fences == sorted(fences), f"register {name} went back"
    assert [stored.header.fence for stored in seen.values()] == [stored.value for stored in seen.values()]
    assert len(fences) > SECONDS
