"""A Redis that answers what it should not: errors of ours, or true answers, but nothing else and never a hang."""
from __future__ import annotations

import random
import threading

import pytest

from celery_memsync import Entry, MemSyncError
from tests.support.lying_proxy import ANSWERS, Liar
from tests.support.stress import stressed
from tests.support.waiting import eventually

#: What stands for an entry that is not there.
NONE = Entry("b", None, 0, 0.0, None, None)

CALLS = {
    "write": lambda memsync: (memsync.write("a", 1), memsync.force_sync()),
    "state": lambda memsync: (memsync.sync_task_state("t1", {"x": 1}), memsync.force_sync()),
    "metrics": lambda memsync: (memsync.increment_metrics(x=1), memsync.force_sync()),
    "compare": lambda memsync: memsync.write(
        "b", 1, expected_version=(memsync.read_entry("b", consistent=True) or NONE).version),
    "read": lambda memsync: memsync.read("a"),
    "entry": lambda memsync: memsync.read_entry("a", consistent=True),
    "task": lambda memsync: memsync.get_task("t1"),
    "tasks": lambda memsync: memsync.get_tasks(),
    "progress": lambda memsync: memsync.get_task_progress("t1"),
    "agents": lambda memsync: memsync.get_task_agents("t1"),
    "workers": lambda memsync: memsync.get_workers(),
    "queue": lambda memsync: memsync.get_queue(),
    "counters": lambda memsync: memsync.get_coordination_metrics(),
    "search": lambda memsync: memsync.search("*"),
    "enqueue": lambda memsync: memsync.enqueue("t1"),
    "dequeue": lambda memsync: memsync.dequeue(),
    "lock": lambda memsync: memsync.lock("a", ttl=1).acquire(),
    "wait": lambda memsync: memsync.lock("a", ttl=1, wait=0.05).acquire(),
    "locks": lambda memsync: memsync.locks(),
    "watch": lambda memsync: memsync.watch("a").get(timeout=0.02),
}


@pytest.fixture
def liar(server):
    with Liar(server.port) as liar:
        yield liar


def outcome(memsync, call):
    """Call, and return what came of it: an answer, or the error; fail if it takes too long."""
    outcomes = []

    def run():
        try:
            outcomes.append(CALLS[call](memsync))
        except BaseException as exc:
            outcomes.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert outcomes, f"{call} hangs"
    return outcomes[0]


@pytest.mark.parametrize("call", stressed(
    [*CALLS], ["write", "metrics", "compare", "read", "task", "queue", "dequeue", "lock"]))
def test_a_wrong_answer_is_an_error_of_ours_or_nothing(redis, make_memsync, liar, call):
    memsync = make_memsync(url=liar.url, batch_interval=60.0, timeout=0.3)
    wrong = {}
    for answer in ANSWERS[list(CALLS).index(call) % (stride := stressed(1, 3))::stride]:
        outcome(memsync, call)
        left = [answer]
        liar.lies = lambda: left.pop() if left else None

        came = outcome(memsync, call)

        liar.lies = lambda: None
        if isinstance(came, BaseException) and not isinstance(came, MemSyncError):
            wrong[answer] = came

    assert wrong == {}
    assert eventually(lambda: not isinstance(outcome(memsync, call), BaseException))


@pytest.mark.parametrize("seed", range(stressed(4, 2)))
def test_random_answers_cause_no_lasting_damage(redis, make_memsync, liar, seed):
    chance = random.Random(seed)
    memsync = make_memsync(url=liar.url, timeout=0.3)

    def lie():
        if chance.random() < 0.7:
            return None
        return chance.choice([*ANSWERS, chance.randbytes(chance.randrange(40))])

    liar.lies = lie
    came = [(call, outcome(memsync, call)) for call in chance.choices(sorted(CALLS), k=40)]
    liar.lies = lambda: None

    errors = [(call, answer) for call, answer in came if isinstance(answer, BaseException)]
    assert [(call, error) for call, error in errors if not isinstance(error, MemSyncError)] == []
    assert errors
    memsync.delete("a")
    eventually(lambda: not isinstance(outcome(memsync, "write"), BaseException))
    assert memsync.read("a") == 1
