"""The figure of a big chord: it equals the truth, never goes back, and costs next to nothing."""
from __future__ import annotations

import signal
import threading

import pytest
from celery import chord, group
from celery.signals import before_task_publish

from tests.support.fleet import TASKS
from tests.support.flows import FLOWS, sig
from tests.support.redis_calls import calls_of, round_trips
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(flow_fleet):
    return flow_fleet


#: Processes of two workers, of which one is killed.
SLOTS = 5


class Watcher:
    """Reads a group again and again, as another process, from its first message on."""

    def __init__(self, fleet):
        self.seen = []
        self._reader = fleet.reader
        self._group_id = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _on_publish(self, headers, **_):
        self._group_id = self._group_id or headers["group"]

    def _watch(self):
        while not self._stop.wait(0.02):
            found = self._group_id and self._reader.get_group(self._group_id)
            if found:
                self.seen.append(found)

    def __enter__(self):
        before_task_publish.connect(self._on_publish)
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        before_task_publish.disconnect(self._on_publish)
        self._stop.set()
        self._thread.join()


def runs_slow_ones(fleet, worker):
    """Return whether all slots of a worker of two are taken by tasks that have begun a while ago."""
    record, now = fleet.record(worker), fleet.reader.runtime.store.clock.now()
    return record and len(record.running) == 2 and all(now - one["started_at"] > 0.7 for one in record.running)


def run_chord(fleet, members, kills, timeout, victim=None):
    """Run a chord with failures, retries and killed children; return its group as others have seen it, and the truth.

    Args:
        victim: A worker that is killed in the middle.
    """
    # A worker keeps the messages of tasks that take long enough: some fill all slots when it is killed.
    slow = [] if victim is None else list(range(members // 3, members // 3 + SLOTS))
    header = [sig(fleet, "any_end", number, kills=kills, slow=slow) for number in range(members)]
    with Watcher(fleet) as watcher:
        parts = chord(header, sig(fleet, "ok")).apply_async().parent
        header_id = parts.id
        if victim is not None:
            # Celery finds after some seconds only that a process was killed, and its worker knows how its tasks ended.
            killed = [parts.results[8 * number + 7].id for number in range(kills)]
            eventually(lambda: all(fleet.status(one) == "FAILURE" for one in killed), timeout)
            eventually(lambda: runs_slow_ones(fleet, victim), timeout)
            victim.stop(signal.SIGKILL)
        eventually(lambda: (one := fleet.reader.get_group(header_id)) and one.done == members, timeout)
    ends = fleet.reader.runtime.workflows.tasks(header_id, True, members)
    return fleet.reader.get_group(header_id), watcher.seen, [one["state"]["status"] for one in ends]


def check(fleet, members, kills, timeout, victim=None):
    last, seen, statuses = run_chord(fleet, members, kills, timeout, victim)

    assert len(statuses) == members
    assert (last.succeeded, last.failed) == (statuses.count("SUCCESS"), statuses.count("FAILURE"))
    assert last.failed == members // 8 + kills
    assert (last.total, last.done, last.percent, last.running) == (members, members, 100, 0)
    assert {one.total for one in seen} == {members}
    assert [one.percent for one in seen] == sorted(one.percent for one in seen)
    assert [one.done for one in seen] == sorted(one.done for one in seen)


def test_figure_of_a_chord_with_300_members_is_the_truth_and_never_goes_back(fleet):
    check(fleet, 304, 1, 90)


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("members", [400, 10_000])
def test_figure_of_a_chord_stays_the_truth_when_a_worker_is_killed(make_fleet, members):
    # What a killed worker has received in advance comes back after the visibility timeout only.
    fleet = make_fleet(
        include=[TASKS, FLOWS], memsync_worker_ttl=2.0, worker_prefetch_multiplier=1, worker_disable_prefetch=True,
        broker_transport_options={"visibility_timeout": 20, "unacked_restore_interval": 1, "unacked_restore_throttle": 1})
    victim = fleet.worker("-c", "2")
    fleet.start_all(victim, fleet.worker("-c", "3"))

    check(fleet, members, 3, 60 + members / 10, victim)

    lost = [row for worker in fleet.workers for row in worker.output().splitlines() if "Requeued task" in row]
    assert lost


def test_group_is_read_in_one_round_trip(fleet):
    result = group(sig(fleet, "ok") for _ in range(50)).apply_async()
    eventually(lambda: (one := fleet.reader.get_group(result.id)) and one.done == 50)

    assert round_trips(fleet.reader, lambda: fleet.reader.get_group(result.id)) == 1


@pytest.mark.acceptance
def test_member_costs_hardly_more_commands_than_a_plain_task(fleet):
    """Batches are as large as they come, so the one measured is the best of three."""
    def cost(send, count):
        with fleet.store.client() as client:
            client.config_resetstat()
            send()
            eventually(lambda: fleet.reader.get_queue() == {"pending": [], "processing": []}, 60)
            fleet.app.memsync.force_sync()
            return sum(calls_of(client).values()) / count

    def plain():
        results.extend(sig(fleet, "ok").apply_async() for _ in range(500))

    def members():
        results.append(group(sig(fleet, "ok") for _ in range(500)).apply_async())

    results = []
    costs = [(cost(members, 500), cost(plain, 500)) for _ in range(3)]

    print("commands a member, and a plain task:", costs)
    assert min(grouped / alone for grouped, alone in costs) < 1.1
