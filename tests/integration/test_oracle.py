"""Celery's result backend as an oracle: every task, in every pool, has the same state, or one
that a rule allows.
"""
from __future__ import annotations

import random
import threading
import time

import pytest

from tests.support.fleet import Fleet
from tests.support.stress import stressed
from tests.support.waiting import eventually

#: Seconds by which the shared state may be behind: the batch interval, half a second, and a margin
#: for a busy machine.
LAG = 0.1 + 0.5 + 1.5

#: How many tasks there are.
NUMBER = stressed(2000, 160)

#: States of the backend, beside the same one, by shared state; `docs/reference/task-states.md` has
#: the rules.
RULES = {
    "RECEIVED": {"PENDING"},
    "IGNORED": {"PENDING", "STARTED"},
    "REJECTED": {"PENDING", "STARTED", "FAILURE"},
    "LOST": {"PENDING", "STARTED", "RETRY"},
    # Celery looks once at what is revoked; the rest it finds when the task would begin.
    "REVOKED": {"PENDING", "RETRY"},
    # Of a replaced task, whose last run the backend still has.
    "PENDING": {"STARTED"},
}

#: Of a retry without a delay: it may end before the run that requested it has stored that, and
#: Celery keeps the latter.
RULES_WITHOUT_DELAY = {**RULES, "SUCCESS": {"RETRY"}, "STARTED": {"RETRY"}}

#: Stages through which a task may go between two looks.
ORDER = ("PENDING", "RECEIVED", "STARTED", "RETRY", "SUCCESS")

POOLS = (["-c", "2"], ["-P", "threads", "-c", "4"], ["-P", "gevent", "-c", "10"])

#: How tasks of each kind are sent: name, arguments, options, whether they are revoked.
KINDS = {
    "success": ("add", (1, 2), {}, False),
    "slow": ("sleep", (0.3,), {}, False),
    "failure": ("fail", ("the cup is empty",), {}, False),
    "retried": ("retry_once", (0.2,), {}, False),
    "retried by Celery": ("fail_twice", (), {}, False),
    "retried too often": ("retry_too_often", (), {}, False),
    "ignored": ("ignore", (), {}, False),
    "rejected": ("reject", (), {}, False),
    "replaced": ("be_replaced", (0.2,), {}, False),
    "counting": ("count_to", (20,), {}, False),
    "countdown": ("add", (1, 2), {"countdown": 0.5}, False),
    "revoked with an ETA": ("add", (1, 2), {"countdown": 30}, True),
    "revoked in a retry": ("retry_in", (30,), {}, True),
    "expired": ("add", (1, 2), {"expires": -1}, False),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with a worker of each kind, on one queue."""
    fleet = Fleet(
        tmp_path_factory.mktemp("oracle"), broker, store, memsync_batch_interval=0.1,
        task_track_started=True)
    fleet.start_all(*(fleet.worker(*pool) for pool in POOLS))
    yield fleet
    fleet.close()


def agrees(kind, ours, theirs):
    rules = RULES_WITHOUT_DELAY if kind == "retried by Celery" else RULES
    return ours == theirs or theirs in rules.get(ours, ())


def is_between(ours, before, after):
    """Whether a stage lies between two that the backend has had before and after."""
    if not {ours, before, after} <= set(ORDER):
        return False
    return ORDER.index(before) <= ORDER.index(ours) <= ORDER.index(after)


class Observer:
    """Reads tasks at random moments: from the backend, the shared state, and the backend again."""

    def __init__(self, fleet, kinds, results, seed):
        self.fleet = fleet
        self.kinds = kinds
        self.results = results
        self.chance = random.Random(seed)
        self.wrong = []
        self.looks = 0
        self.ended = False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.ended:
            at = self.chance.randrange(len(self.results))
            self.look(self.kinds[at], self.results[at])

    def look(self, kind, result):
        end, seen = time.monotonic() + LAG, []
        while True:
            before, ours, after = result.state, self.fleet.status(result.id), result.state
            self.looks += 1
            if agrees(kind, ours, before) or agrees(kind, ours, after) or is_between(ours, before, after):
                return
            seen.append((before, ours, after))
            if time.monotonic() > end:
                # A machine that stood still is no fault of ours.
                if len(seen) > 5:
                    self.wrong.append((result.id, seen[-1]))
                return
            time.sleep(0.01)


def test_every_task_has_the_states_of_the_result_backend(fleet):
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(NUMBER)]
    random.Random(20261130).shuffle(kinds)
    sent = []
    observer = Observer(fleet, kinds, sent, 20261130)
    for kind in kinds:
        name, args, options, is_revoked = KINDS[kind]
        sent.append(fleet.send(name, *args, **options))
        if is_revoked:
            fleet.app.control.revoke(sent[-1].id)
        if len(sent) == 1:
            observer.thread.start()

    ended = {"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED"}
    eventually(lambda: all(fleet.status(result.id) in ended for result in sent), timeout=stressed(240, 60))
    observer.ended = True
    observer.thread.join(10)
    time.sleep(LAG)

    wrong = [(kind, result.id, fleet.status(result.id), result.state)
             for kind, result in zip(kinds, sent) if not agrees(kind, fleet.status(result.id), result.state)]
    assert wrong == []
    assert observer.wrong == []
    assert observer.looks > NUMBER / 4
