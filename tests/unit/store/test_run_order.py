"""The order of a task's runs depends on no clock, and on the order of arrival only where nothing else is known."""
from __future__ import annotations

import itertools
import random
import time
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_memsync.keys import PROGRESS, STAGE, Keys
from celery_memsync.models.order import rank_of, run_key_of
from celery_memsync.models.progress import encode_progress
from celery_memsync.models.task import TaskRun
from celery_memsync.reading.projections import progress_of, runs_of, state_of
from celery_memsync.store import EntryWrite, Store
from celery_memsync.store.client import connect
from celery_memsync.store.clock import Clock
from celery_memsync.store.entries import MAX_RUNS
from celery_memsync.writing.figures import progress_rank

KEYS = Keys("task-sentinel")

#: What the runs of a task write of their stage, the last of all first.
ENDS = ("SUCCESS", "FAILURE", "RETRY", "LOST", "STARTED")

#: Milliseconds by which the clocks of processes are wrong.
SKEWS = (0, 90_000, -90_000, 3_600_000, -1_000_000)


def is_kept(chains):
    """Whether a record keeps all entries: stages and progress of earlier runs, and what was published."""
    return 2 * (sum(map(sum, chains)) - 1) + sum(map(len, chains)) <= MAX_RUNS


#: Two messages under one id, the steps of the chains that they begin, and how often each step was delivered.
histories = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=3), min_size=1, max_size=2).filter(
    lambda chains: sum(map(sum, chains)) <= 5 and is_kept(chains))


@pytest.fixture
def store(redis_url):
    store = Store(connect(redis_url, {}), KEYS, "w", "tokenone", 7200.0)
    yield store
    store.close()


class Task:
    """A task whose runs write past the buffers, each process with a clock of its own."""

    def __init__(self, store, seed=0):
        self.store = store
        self.task_id = str(uuid.uuid4())
        self.random = random.Random(seed)
        self.serials = itertools.count(1)
        self.skews = {}

    def write(self, key, what):
        """Write a stage of a run, by its status, or its progress, by its percents."""
        is_stage = isinstance(what, str)
        run = key.rpartition(".")[2]
        if is_stage:
            rank, body = rank_of(what), TaskRun(what, run=run).encode(self.task_id)
        else:
            rank, body = progress_rank(what, None), encode_progress((what, None, None, None, None, 1.0, 2.0, run, None))
        location = KEYS.task_location(self.task_id, STAGE if is_stage else PROGRESS)
        skew = self.skews.setdefault((key, rank), self.random.choice(SKEWS))
        serial, now = next(self.serials), time.monotonic()
        process = self.store.with_token(f"t{serial:07}")
        process.clock = Clock()
        process.clock.learn(time.time() + skew / 1000, now, now)
        (outcome,) = process.write_entries([EntryWrite(location, "run", key, rank, 0, now, 7_200_000, serial, body)])
        return outcome.status

    def read(self):
        (task,) = self.store.read_tasks([self.task_id])
        return task

    @property
    def status(self):
        return state_of(self.task_id, self.read().slots)["status"]

    @property
    def runs(self):
        """Ids and statuses of its runs, oldest first."""
        return [(run["run"], run["status"]) for run in runs_of(self.task_id, self.read())]

    @property
    def progress(self):
        """Run and percents of the present progress, and of the one before."""
        shown = progress_of(self.read(), None)
        before = shown.get("previous") or {}
        return (shown["run"], shown["progress"]), (before.get("run"), before.get("progress"))


def writes_of(chains, statuses):
    """Return all that the producers, workers and children of a history write: run keys and what."""
    writes = []
    for chain, steps in zip("ab", chains):
        for step, deliveries in enumerate(steps):
            writes.append((f"{chain}.{step}", "PENDING"))
            for number in range(deliveries):
                key = f"{chain}.{step}.{chain}{step}{number}"
                writes += [(key, what) for what in ("RECEIVED", "STARTED", next(statuses), 40, 70)]
    return writes


def order_of(writes):
    """Return the runs of a history in their order: by chain, step and delivery, in the order of their first writes."""
    first = {}
    for at, (key, _) in enumerate(writes):
        first.setdefault(key, at)
        first.setdefault(key.partition(".")[0], at)
    runs = [key for key in first if key.count(".") == 2]
    return sorted(runs, key=lambda key: (first[key.partition(".")[0]], int(key.split(".")[1]), first[key]))


def furthest(writes, run):
    return max((what for key, what in writes if key == run and isinstance(what, str)), key=rank_of)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(chains=histories, data=st.data(), seed=st.integers(0, 10_000))
def test_runs_are_in_the_order_of_the_model_however_their_writes_arrive(store, chains, data, seed):
    ends = data.draw(st.lists(st.sampled_from(ENDS), min_size=5, max_size=5))
    writes = data.draw(st.permutations(writes_of(chains, iter(ends))))
    task = Task(store, seed)

    for key, what in [*writes, *writes[::-1]]:
        task.write(key, what)

    runs = order_of(writes)
    shown = [(key.rpartition(".")[2], furthest(writes, key)) for key in runs]
    assert task.runs == shown
    assert task.status == ("SUCCESS" if "SUCCESS" in ends[:len(runs)] else shown[-1][1])
    assert task.progress == ((shown[-1][0], 70), (shown[-2][0], 70) if len(runs) > 1 else (None, None))


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::3], ids=str)
def test_steps_of_one_chain_end_the_same_in_every_order_of_arrival(store, order):
    task = Task(store, sum(order[:3]))
    writes = [("c.0", "PENDING"), ("c.0.x", "RETRY"), ("c.0.x", 90),
              ("c.1.y", "RECEIVED"), ("c.1.y", "STARTED"), ("c.1.y", 10)]

    for number in order:
        task.write(*writes[number])

    assert task.runs == [("x", "RETRY"), ("y", "STARTED")]
    assert task.progress == (("y", 10), ("x", 90))


@pytest.mark.parametrize("lost", [["c.2.z"], ["c.1.y", "c.2.z"], ["c.1", "c.2.z"]])
def test_a_run_that_is_written_late_is_behind_those_that_came_from_it(store, lost):
    task = Task(store)
    task.write("c.0.x", "RETRY")
    for key in reversed(lost):
        task.write(key, "STARTED" if key.count(".") == 2 else "PENDING")

    answer = task.write("c.1.late", "FAILURE")

    assert answer == "kept"
    assert task.runs[-1] == ("z", "STARTED")
    assert ("late", "FAILURE") in task.runs


def test_a_task_that_is_sent_again_by_hand_follows_whatever_it_was(store):
    task = Task(store)
    for key, what in (("a.0.x", "RETRY"), ("a.5.y", "FAILURE")):
        task.write(key, what)

    seen = [(task.write(*one), task.status) for one in (("b.0", "PENDING"), ("b.0.z", "STARTED"), ("a.5.y", "FAILURE"))]

    assert seen == [("ok", "PENDING"), ("ok", "STARTED"), ("kept", "STARTED")]
    assert task.runs == [("x", "RETRY"), ("y", "FAILURE"), ("z", "STARTED")]


def test_a_message_that_is_delivered_again_is_a_later_run(store):
    task = Task(store)
    for key, what in (("c.0", "PENDING"), ("c.0.dead", "STARTED"), ("c.0.dead", 50)):
        task.write(key, what)

    answers = [task.write(*one) for one in (("c.0.x", "RECEIVED"), ("c.0.x", "STARTED"), ("c.0.x", 5))]
    late = [task.write(*one) for one in (("c.0", "PENDING"), ("c.0.dead", 60), ("c.0.dead", "FAILURE"))]

    assert (answers, late) == (["ok"] * 3, ["kept"] * 3)
    assert task.runs == [("dead", "FAILURE"), ("x", "STARTED")]
    assert task.progress == (("x", 5), ("dead", 60))


def test_a_run_keeps_its_place_when_more_runs_came_than_are_kept(store):
    task = Task(store)
    for step in range(30):
        task.write(f"c.{step}.r{step}", "RETRY")

    answers = [task.write("c.3.r3", "FAILURE"), task.write("c.2", "PENDING"), task.write("c.29.r29", "FAILURE")]

    assert answers == ["kept", "kept", "ok"]
    assert task.runs[-1] == ("r29", "FAILURE")


@pytest.mark.parametrize("stored", [
    "-", "0001795366095325", "999999999.1:a.0.x", "1.999999999:a.0.x", "1.1:a.9999999.x", "1.1:a.x.x", ":", "1.1:",
    "99999999.1:a.0.x", "99999998.1:a.0.x", "99999999.99999999:b.0.x", "99999999.1:a.999999.x",
])
def test_a_stored_run_that_no_script_has_numbered_hides_nothing_that_follows(store, redis, stored):
    task = Task(store)
    header = f"1 {stored} 5 0 {round(time.time() * 1000)} 7200000 0 other.1 w\n".encode()
    redis.set(KEYS.task(task.task_id), header + TaskRun("FAILURE", run="x").encode(task.task_id), px=60_000)

    answers = [task.write(*one) for one in (("b.0.y", "STARTED"), ("b.1.z", "STARTED"), ("b.0.y", "FAILURE"))]

    assert answers == ["ok", "ok", "kept"]
    assert task.status == "STARTED"
    assert run_key_of(task.read().slots[STAGE].header.run) == "b.1.z"


def test_chains_and_deliveries_after_a_forged_number_are_later_in_the_order_in_which_they_come(store, redis):
    task = Task(store)
    header = f"1 99999998.1:a.0.x 5 0 {round(time.time() * 1000)} 7200000 0 other.1 w\n".encode()
    redis.set(KEYS.task(task.task_id), header + TaskRun("FAILURE", run="x").encode(task.task_id), px=60_000)

    for chain in "bcdef":
        for delivery in "yz":
            answers = [task.write(f"{chain}.0.{chain}{delivery}", what) for what in ("RECEIVED", "STARTED", "RETRY")]

            present = run_key_of(task.read().slots[STAGE].header.run)
            assert (answers, present) == (["ok"] * 3, f"{chain}.0.{chain}{delivery}")


def test_a_delivery_that_had_only_been_received_begins_behind_the_next_one(store):
    task = Task(store)
    for key, what in (("c.0.x", "RECEIVED"), ("c.0.y", "RECEIVED"), ("c.0.y", "STARTED")):
        task.write(key, what)

    late = [task.write("c.0.x", what) for what in ("RECEIVED", "STARTED", "FAILURE")]

    assert late == ["kept"] * 3
    assert task.runs == [("x", "FAILURE"), ("y", "STARTED")]


def test_a_chain_of_which_nothing_ran_keeps_its_place(store):
    task = Task(store)
    for key in ("a.0", "b.0"):
        task.write(key, "PENDING")

    late = [task.write("a.0.x", what) for what in ("RECEIVED", "STARTED")]

    assert late == ["kept"] * 2
    assert task.status == "PENDING" and task.runs == [("x", "STARTED"), ("0", "PENDING")]


def test_a_chain_keeps_its_place_when_another_has_had_more_runs_than_are_kept(store):
    task = Task(store)
    task.write("a.0.zombie", "STARTED")
    for step in range(30):
        task.write(f"b.{step}.r{step}", "RETRY")
        task.write(f"b.{step}.r{step}", step)

    late = task.write("a.0.zombie", "FAILURE")

    assert late == "kept"
    assert (task.runs[0], task.runs[-1]) == (("zombie", "FAILURE"), ("r29", "RETRY"))


@pytest.mark.parametrize("what, follows", [
    ("PENDING", False), ("RECEIVED", False), ("STARTED", True), ("RETRY", True), ("FAILURE", True), ("SUCCESS", True)])
def test_run_that_was_revoked_while_it_waited_may_have_begun(make_memsync, what, follows):
    memsync = make_memsync(batch_interval=60.0)

    for status in ("RECEIVED", "REVOKED", what):
        memsync.sync_task_run("t1", TaskRun(status, group="g"), "chain.0.a")
        memsync.force_sync()

    assert memsync.get_task_state("t1")["status"] == (what if follows else "REVOKED")
    assert memsync.get_group("g").done == 1


def test_run_that_was_revoked_while_it_ran_stays_so(make_memsync):
    memsync = make_memsync(batch_interval=60.0)

    for status in ("STARTED", "REVOKED", "STARTED", "RETRY"):
        memsync.sync_task_run("t1", TaskRun(status, started_at=1.0), "chain.0.a")
        memsync.force_sync()

    assert memsync.get_task_state("t1")["status"] == "REVOKED"
