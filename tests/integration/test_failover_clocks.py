"""Failover to a replica whose clock is an hour behind, or ahead: histories of locks, subscriptions and runs."""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
import time

import pytest

from celery_memsync import LockLost, StoreError
from celery_memsync.models.order import delivered_key, published_key
from celery_memsync.models.task import TaskRun
from tests.support.mirror import Mirror, contents
from tests.support.stepped_pair import SteppedPair
from tests.support.stress import stressed
from tests.support.waiting import eventually

HOUR = 3600

#: Longer than all that the clocks differ, so that what was written is there after any failover.
TTL = 10 * HOUR

LOCKS, KEYS = ("a", "b"), [f"k/{number}" for number in range(5)]


@pytest.fixture(params=[-HOUR, HOUR], ids=["behind", "ahead"])
def pair(request, tmp_path):
    pair = SteppedPair(tmp_path, request.param)
    pair.ahead = request.param
    yield pair
    pair.stop()


@pytest.fixture
def managers(pair, make_memsync):
    return [make_memsync(url=pair.url, batch_interval=0.01, default_ttl=TTL, timeout=1.0) for _ in range(2)]


@dataclasses.dataclass
class Grant:
    """An acquisition of a lock: the monotonic times of request, grant and end."""

    name: str
    fence: int
    requested: float
    granted: float
    owned: float = 0.0


class Play:
    """Threads that use the shared state at random until they are to end, and the history of what they did.

    Attributes:
        grants: All that were owned.
        steps: Of each task the run keys that were written, in order.
    """

    def __init__(self, seed, managers):
        self.managers = managers
        self.grants, self.steps = [], {}
        self.over = threading.Event()
        self.failed = []
        self.threads = [threading.Thread(target=self._play, args=(act, random.Random(f"{seed} {number} {act.__name__}")))
                        for number, act in enumerate((self.use_lock, self.use_lock, self.use_lock, self.write, self.run))]
        for thread in self.threads:
            thread.start()

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(20)
        for memsync in self.managers:
            eventually(lambda: self._sync(memsync), timeout=10)

    @staticmethod
    def _sync(memsync):
        with contextlib.suppress(StoreError, LockLost):
            memsync.force_sync()
            return True

    def _play(self, act, chance):
        try:
            while not self.over.is_set():
                with contextlib.suppress(StoreError, LockLost):
                    act(chance.choice(self.managers), chance)
        except BaseException as exc:
            self.failed.append(exc)

    def use_lock(self, memsync, chance):
        name = chance.choice(LOCKS)
        lock = memsync.lock(name, ttl=2.0, wait=chance.choice((0.0, 0.5)))
        requested = time.monotonic()
        if not lock.acquire():
            return
        grant = Grant(name, lock.fence, requested, time.monotonic())
        self.grants.append(grant)
        end = time.monotonic() + chance.choice((0.0, 0.005, 0.05))
        while True:
            before = time.monotonic()
            if not lock.owned:
                return
            grant.owned = before
            memsync.write(f"register/{name}", lock.fence, fence=lock)
            if before > end:
                break
            time.sleep(0.002)
        lock.release()

    def write(self, memsync, chance):
        key = chance.choice(KEYS)
        memsync.write(key, chance.random()) if chance.random() < 0.9 else memsync.delete(key)
        time.sleep(0.001)

    def run(self, memsync, chance):
        task_id = f"t{chance.randrange(3)}"
        steps = self.steps.setdefault(task_id, [])
        key = delivered_key(published_key(f"c{task_id}", before=steps[-1] if steps else None), f"r{len(steps)}")
        steps.append(key)
        for status in ("STARTED", "RETRY"):
            memsync.sync_task_run(task_id, TaskRun(status, run=key.rpartition(".")[2]), key)
        self._sync(memsync)


def out_of_order(grants):
    """Return pairs of grants, of any locks, of which the later one has the lower fence, or the same."""
    by_fence = sorted(grants, key=lambda grant: grant.fence)
    return [(one, other) for one, other in itertools.pairwise(by_fence)
            if other.granted < one.requested or one.fence == other.fence]


def overlaps(grants, jumps):
    """Return pairs of grants of one lock that were owned at the same time.

    Args:
        jumps: When Redis's clock jumped ahead, from and to: then leases end, and a holder learns that at its next renewal.
    """
    for name in LOCKS:
        rows = sorted((grant for grant in grants if grant.name == name), key=lambda grant: grant.fence)
        for one, other in itertools.pairwise(rows):
            has_ended = any(begin < other.granted and one.requested < end for begin, end in jumps)
            if other.granted < one.owned and not has_ended:
                yield one, other


@pytest.mark.parametrize("seed", [20261130])
def test_a_failover_to_another_clock_breaks_no_order(pair, managers, seed):
    registers = {name: [] for name in LOCKS}
    for name, values in registers.items():
        managers[0].subscribe(f"register/{name}", lambda key, value, values=values: values.append(value))
    mirrors = [Mirror(memsync, "k/*") for memsync in managers]
    play, end = Play(seed, managers), time.monotonic() + stressed(60.0, 1.2)

    jumps = []
    for ahead in itertools.cycle((pair.ahead, -pair.ahead)):
        time.sleep(0.6)
        began = time.monotonic()
        pair.fail_over()
        jumps += [(began, time.monotonic())] * (ahead > 0)
        if began > end:
            break
    play.end()

    assert play.failed == []
    assert len(play.grants) > 20
    assert out_of_order(play.grants) == []
    assert list(overlaps(play.grants, jumps)) == []
    assert all(values == sorted(values) for values in registers.values())
    assert eventually(lambda: mirrors[0].values == mirrors[1].values == contents(managers[0], "k/*"), timeout=10)
    assert [mirror.backward for mirror in mirrors] == [[], []]
    for task_id, steps in play.steps.items():
        runs = [run["run"] for run in managers[1].get_task(task_id)["runs"]]
        assert runs == [key.rpartition(".")[2] for key in steps][-len(runs):], task_id


@pytest.fixture
def lagging(tmp_path):
    """A pair whose clocks were ahead, and are right again."""
    pair = SteppedPair(tmp_path, 0)
    yield pair
    pair.stop()


def test_write_in_place_of_one_lost_by_a_failover_is_received(lagging, make_memsync):
    memsync, other = (make_memsync(url=lagging.url, batch_interval=60.0, default_ttl=TTL) for _ in range(2))
    received = []
    memsync.subscribe("k/*", lambda key, value: received.append(value))
    lagging.master.set_clock(600)
    other.write("k/1", "first")
    other.force_sync()
    with lagging.master.client() as old, lagging.replica.client() as new:
        eventually(lambda: new.get("task-sentinel/k/1") == old.get("task-sentinel/k/1"))
        lagging.master.set_clock(0)
        new.replicaof("NO", "ONE")
    other.write("k/1", "lost")
    other.force_sync()
    eventually(lambda: received[-1:] == ["lost"])

    third = make_memsync(url=lagging.replica.url, batch_interval=60.0, default_ttl=TTL)
    third.write("k/1", "kept")
    third.force_sync()
    lagging.proxy.port = lagging.replica.port
    lagging.proxy.cut()

    eventually(lambda: received[-1] == "kept", timeout=5)
