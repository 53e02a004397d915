"""Processes of their own that write together: conflicts, fields, compare-and-set, and hosts whose clocks are wrong."""
from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from celery_memsync import ConflictError
from celery_memsync.models.task import TaskRun
from tests.support.paths import ROOT
from tests.support.stress import stressed

HOUR = 3600.0

#: A process that reads expressions and answers with their values.
PROGRAM = """
import json, sys, time
ahead, worker_id, url, settings = json.loads(sys.argv[1])
host_time = time.time
time.time = lambda: host_time() + ahead
from celery_memsync import ConflictError, MemorySyncManager

memsync = MemorySyncManager(worker_id, url, **settings)

def flush():
    for _ in range(200):
        try:
            return memsync.force_sync()
        except ConflictError:
            pass
    raise RuntimeError("it never got its turn")

def write_fields(name, turns):
    for turn in range(turns):
        memsync.sync_task_state("t1", {f"{name}-{turn}": turn, f"count-{name}": turn, "all": "the same"})
        if turn % 3 == 0:
            flush()
    flush()

def write_items(name, turns):
    for turn in range(turns):
        items = memsync.read("a", consistent=True) or []
        memsync.write("a", [*items, f"{name}-{turn}"])
        flush()

def count_up(key, turns, **how):
    errors = 0
    for turn in range(turns):
        while True:
            entry = memsync.read_entry(key, **how)
            version, value = (0, 0) if entry is None else (entry.version, entry.value)
            try:
                stored = memsync.write(key, value + 1, expected_version=version)
                assert (stored.value, stored.version) == (value + 1, version + 1), stored
                break
            except ConflictError as exc:
                assert exc.version != version, exc
                errors += 1
    return errors

def conflicts():
    return memsync.get_metrics()["conflicts"]

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Program:
    """A process with a manager of its own.

    Args:
        ahead: Seconds that its host's clock is ahead.
    """

    def __init__(self, worker_id, url, ahead=0.0, **settings):
        given = json.dumps([ahead, worker_id, url, {"batch_interval": 60.0, **settings}])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)})

    def send(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, "the process has failed"
        return json.loads(line)

    def evaluate(self, expression):
        self.send(expression)
        return self.answer()


@pytest.fixture
def start(redis_url):
    """Starts processes, which are ready for expressions when this returns."""
    started = []

    def start(count, ahead=0.0, **settings):
        new = [Program(f"program-{len(started) + n}", redis_url, ahead, **settings) for n in range(count)]
        started.extend(new)
        assert [program.answer() for program in new] == ["ready"] * count
        return new

    yield start
    for program in started:
        program.process.stdin.close()
        program.process.stdout.close()
        program.process.wait(30)


def all_do(programs, expression):
    """Let all do something at once; return what they answer."""
    for n, program in enumerate(programs):
        program.send(expression.format(n=n))
    return [program.answer() for program in programs]


# -- conflicts and fields

@pytest.mark.parametrize("resolver, expression, expected", [
    *stressed([
        ("last_write_wins", "memsync.write('a', {n})", 3),
        ("merge_arrays", "memsync.write('a', [{n}, 'all'])", [0, 1, 2, 3, "all"]),
        ("max_value", "memsync.write('a', {n} * 3 % 4)", 3)], []),
    ("merge_objects", "memsync.write('a', dict(f{n}=1, deep=dict(f{n}=1)))",
     {**{f"f{n}": 1 for n in range(4)}, "deep": {f"f{n}": 1 for n in range(4)}}),
])
def test_what_processes_write_blindly_at_once_ends_the_same(start, memsync, resolver, expression, expected):
    programs = start(4, conflict_resolver=resolver)
    for n, program in enumerate(programs):
        program.evaluate(expression.format(n=n))
        time.sleep(0.02)

    all_do(programs, "flush()")

    found = memsync.read("a")
    assert (sorted(found, key=str) if isinstance(found, list) else found) == expected
    assert sum(all_do(programs, "conflicts()")) == 3


@pytest.mark.acceptance
def test_fields_of_many_processes_are_all_there_and_are_no_conflict(start, memsync):
    programs = start(4)

    all_do(programs, "write_fields('p{n}', 40)")

    assert memsync.get_task_state("t1") == {
        **{f"p{n}-{turn}": turn for n in range(4) for turn in range(40)},
        **{f"count-p{n}": 39 for n in range(4)},
        "all": "the same",
    }
    assert all_do(programs, "conflicts()") == [0] * 4


@pytest.mark.acceptance
def test_items_that_processes_add_to_what_they_read_are_all_there(start, memsync):
    programs = start(3, conflict_resolver="merge_arrays")

    all_do(programs, "write_items('p{n}', 15)")

    assert sorted(memsync.read("a")) == sorted(f"p{n}-{turn}" for n in range(3) for turn in range(15))


def test_one_process_counts_no_conflict_however_much_it_writes_alone(start):
    program, = start(1, conflict_resolver="merge_arrays")

    program.evaluate("write_items('p', 50)")
    program.evaluate("write_fields('p', 50)")

    assert program.evaluate("conflicts()") == 0


# -- compare-and-set

def test_processes_that_count_by_compare_and_set_count_exactly(start, memsync):
    programs, wrong = start(4), {}

    for number, how in enumerate(["", ", consistent=True", ", max_age=0"]):
        for key in (f"counter-{number}", f"tasks/t1/agents/counter-{number}"):
            errors = all_do(programs, f"count_up({key!r}, 25{how})")
            entry = memsync.read_entry(key)
            if (entry.value, entry.version, sum(errors) > 0) != (100, 100, True):
                wrong[key, how] = entry, errors

    assert wrong == {}
    assert all_do(programs, "conflicts()") == [0] * 4


def test_threads_of_one_manager_that_count_by_compare_and_set_count_exactly(make_memsync):
    memsync = make_memsync(batch_interval=0.0)

    def count_up():
        for _ in range(25):
            while True:
                entry = memsync.read_entry("a")
                try:
                    memsync.write("a", entry.value + 1, expected_version=entry.version)
                    break
                except ConflictError:
                    pass

    memsync.write("a", 0, expected_version=0)
    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    entry = memsync.read_entry("a", consistent=True)
    assert (entry.value, entry.version) == (100, 101)


@pytest.mark.parametrize("version", [0, 1, 3, 10 ** 18])
def test_error_of_a_lost_compare_and_set_has_the_stored_version(memsync, other, version):
    other.write("a", "x")
    other.force_sync()
    other.write("a", "y")
    other.force_sync()

    with pytest.raises(ConflictError, match="task-sentinel/a.*version 2") as caught:
        memsync.write("a", "z", expected_version=version)

    assert (caught.value.version, caught.value.key) == (2, "task-sentinel/a")
    assert other.read_entry("a", consistent=True).value == "y"
    assert memsync.read("a") == "y"


@pytest.mark.parametrize("write", [
    lambda memsync: None,
    lambda memsync: memsync.sync_task_run("t1", TaskRun(status="STARTED")),
    lambda memsync: memsync.sync_task_progress("t1", 50),
])
def test_the_version_of_a_state_that_was_read_is_the_one_to_expect(memsync, other, write):
    write(memsync)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.force_sync()
    entry = other.read_entry("tasks/t1/state")

    other.write("tasks/t1/state", {"x": 2}, expected_version=entry.version)
    with pytest.raises(ConflictError) as caught:
        memsync.write("tasks/t1/state", {"x": 3}, expected_version=entry.version)

    assert memsync.get_task_state("t1")["x"] == 2
    assert caught.value.version == memsync.read_entry("tasks/t1/state").version


# -- hosts whose clocks are wrong

@pytest.mark.acceptance
def test_the_later_write_wins_however_wrong_the_clocks_of_the_hosts_are(start, memsync, redis):
    hosts = {ahead: start(1, ahead)[0] for ahead in (0.0, HOUR, -HOUR)}
    now = redis.time()[0]

    for first, later in itertools.permutations(hosts, 2):
        write_alternately([hosts[first], hosts[later]], of := f"{first:+.0f}{later:+.0f}")

        keys = (f"a{of}", f"b{of}", f"c{of}", f"tasks/t{of}/state", f"tasks/t{of}/agents/coder")
        found = {key: memsync.read_entry(key) for key in keys}
        assert [entry.value for entry in found.values()] == [1, 1, 0, {"x": 1}, 1]
        assert {key: abs(entry.timestamp - now) < 60 for key, entry in found.items()} == dict.fromkeys(found, True)
        assert abs(memsync.get_task_progress(f"t{of}")["updated_at"] - now) < 60


def write_alternately(programs, of):
    """Let two processes write values and flush them, one after the other; keys end in ``of``."""
    for n, program in enumerate(programs):
        program.evaluate(f"memsync.write('a{of}', {n}), memsync.write('b{of}', {n}), "
                    f"memsync.sync_task_state('t{of}', dict(x={n}))")
        time.sleep(0.05)
        program.evaluate(
            f"memsync.sync_agent_coordination('t{of}', 'coder', {n}) or "
            f"memsync.sync_task_progress('t{of}', {n})")
        time.sleep(0.05)
    for n in (0, 1, 0):
        programs[n].evaluate("flush()")
    for n in (1, 0):
        programs[n].evaluate(f"memsync.write('c{of}', {n})")
        time.sleep(0.05)
        programs[n].evaluate("flush()")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("ahead", stressed([HOUR, -HOUR], [HOUR]))
def test_later_value_wins_despite_wrong_clocks_in_any_flush_order(start, memsync, ahead, order):
    programs = [*start(1, ahead), *start(1)]
    for n in (0, 1):
        programs[n].evaluate(f"memsync.write('a', {n}), memsync.sync_task_state('t1', dict(x={n}))")
        time.sleep(0.05)
        programs[1 - n].evaluate(f"memsync.write('b', {n})")
        time.sleep(0.05)

    for n in order:
        programs[n].evaluate("flush()")

    assert memsync.read_many(["a", "b"]) == {"a": 1, "b": 1}
    assert memsync.get_task_state("t1") == {"x": order[1]}  # of one field the last write to arrive wins
    assert sum(all_do(programs, "conflicts()")) == 3
