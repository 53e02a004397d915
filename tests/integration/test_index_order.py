"""What a cluster's nodes write after a clock was set back: index updates of a task are taken in the order of its writes."""
from __future__ import annotations

import time

import pytest

from celery_memsync.keys import STAGE, Keys
from celery_memsync.models.order import rank_of
from celery_memsync.models.task import TaskRun
from celery_memsync.store import EntryWrite, Store
from celery_memsync.store.client import connect
from celery_memsync.store.scripts import INDEX_APPLY
from tests.support.stepped_clock import SteppedServer

KEYS = Keys("task-sentinel")


class SplitStore(Store):
    """A store that writes as if what follows from entries were on another node."""

    def _shared_keys(self):
        return ()

    def write(self, task_id, status, serial):
        """Write a stage, and return its index updates."""
        location = KEYS.task_location(task_id, STAGE)
        body = TaskRun(status).encode(task_id)
        write = EntryWrite(location, "run", "c.0.r", rank_of(status), 0, time.monotonic(), 7_200_000, serial, body)
        (answer,) = self._run([self._entry_call([write])])
        return answer[-1]

    def apply(self, serial, *updates):
        keys = [*super()._shared_keys(), KEYS.done(self.token, "notes"), KEYS.noted]
        self._run([(INDEX_APPLY, keys, ["w", 7_200_000, "0:", "task-sentinel/coordination/", serial, *updates])])


@pytest.fixture
def stepped(tmp_path):
    server = SteppedServer(tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.mark.parametrize("step", [0, 3600, 200_000])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_task_is_in_the_list_of_its_last_stage(stepped, step, order):
    store, other = (SplitStore(connect(stepped.url, {}), KEYS, "w", token, 7200.0) for token in ("tokenone", "tokentwo"))
    with stepped.client():
        store.apply(1, store.write("t", "PENDING", 1))
        stepped.set_clock(-step)
        updates = [store.write("t", "STARTED", 2), store.write("t", "SUCCESS", 3)]

        before = store.read_queue(10)
        for serial, at in enumerate(order, 1):
            other.apply(serial, updates[at])

    assert before == {"pending": ["t"], "processing": []}
    after = {"pending": [], "processing": []}
    assert store.read_queue(10) in ([after] if order == (0, 1) or not step else [after, {**after, "processing": ["t"]}])
    store.close()
    other.close()
