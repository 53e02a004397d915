"""Messages whose headers were written by hand: a worker runs them, records them, and takes nothing from them on trust."""
from __future__ import annotations

import json

import pytest

from celery_memsync.models.order import is_delivered, run_key_of, run_order
from tests.support.stress import stressed
from tests.support.waiting import eventually

HUGE = 10 ** 400

#: What may stand in any header of ours, or in one of Celery's that we read.
ODD = [None, True, -1, 0, 5, HUGE, 1e300, -1e300, "", "x", "\x1b[31m\u202e", "a/b", "y" * 5000, [], [[]], {},
       {"a": {"b": 1}}]

ODD_KEYS = [
    "chain", "chain.", ".0", "chain.01", "chain.-1", "chain.1e3", "chain.9999999", "chain.0.", "chain.0.a.b", "chain.0\n",
    "1.1:chain.0.a", "a b.0", "\u0661.\u0661", "c" * 25 + ".0", "chain.0." + "a" * 25, "-.0", "chain.999999.a",
]

PREVIOUS = [
    ["chain.1.a", [1e300, 1, 2, "m", None, 1.0, 2.0]],
    ["chain.1.a", [50, 1e300, 1e300, "m", None, 1e300, 1e300]],
    ["chain.1.a", [50, 1, 2, {"a": 1}, [], 1.0, 2.0, 7, 5]],
    ["chain.1.a", [HUGE, HUGE, HUGE, "m", None, HUGE, HUGE]],
    ["chain.1.a", [-1, -1, -1, "m", None, -1, -1]],
    ["chain.1.a", "text"], ["chain.1.a", {"a": 1}], ["chain.1.a", None],
    ["chain.1.a", [50, 1, 2, "m" * 5000, None, 1.0, 2.0]],
    ["chain.1.a", [50, 1, 2, json.loads("[" * 90 + "]" * 90), None, 1.0, 2.0]],
    ["latest", [50, 1, 2]], ["chain.9.a", [50, 1, 2, "m", None, 1.0, 2.0]], ["chain.1.a"], [],
]


def headers():
    """Yield what is laid over the headers of a message, each once."""
    for odd in ODD:
        yield {"memsync": odd}
        yield {"memsync": dict.fromkeys(("published_at", "recoveries", "previous", "run", "key", "received_at"), odd)}
        yield {"root_id": odd, "parent_id": odd, "group": odd, "argsrepr": odd, "kwargsrepr": odd, "origin": odd}
    for key in ODD_KEYS:
        yield {"memsync": {"key": key}}
    for previous in PREVIOUS:
        yield {"memsync": {"published_at": 1.0, "recoveries": 1, "key": "chain.2", "previous": previous}}


@pytest.fixture(scope="module", params=stressed(["prefork", "threads"], ["prefork"]))
def fleet(request, module_fleet):
    module_fleet.start_worker("-P", request.param, "-c", "2")
    return module_fleet


def publish(fleet, task_id, changes):
    """Put a message into the queue as a publisher of another program does."""
    body = json.dumps([[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    plain = {"lang": "py", "task": fleet.task("add").name, "id": task_id, "root_id": task_id, "retries": 0}
    with fleet.app.connection_for_write() as connection:
        connection.Producer().publish(
            body, exchange="", routing_key=fleet.name, content_type="application/json", content_encoding="utf-8",
            headers={**plain, **changes}, correlation_id=task_id)


def test_tasks_with_hostile_headers_run_and_are_recorded(fleet):
    prefix = len(fleet.workers)
    messages = {f"hostile-{prefix}-{number}": changes for number, changes in enumerate(headers())}

    for task_id, changes in messages.items():
        publish(fleet, task_id, changes)
    plain = [fleet.send("add", 1, 1) for _ in range(20)]

    for task_id in [*messages, *(one.id for one in plain)]:
        eventually(lambda: fleet.status(task_id) == "SUCCESS", message=f"{task_id} {messages.get(task_id)}", timeout=30)
    for task_id in messages:
        stored = fleet.reader.runtime.store.read_tasks([task_id])[0].slots[1]
        state = fleet.state(task_id)
        assert is_delivered(run_key_of(stored.header.run)) and run_order(stored.header.run)[0] == 1
        assert len(stored.body) < 12_000
        assert isinstance(state["root_id"], str) and isinstance(state["retries"], int)
        assert state.get("recoveries", 0) in (0, 1, 5)
    eventually(lambda: all(record.writer["pending"] == 0 for record in fleet.reader.get_workers()))
    assert all((fleet.reader.get_task_progress(task_id) or {}).get("previous") is None for task_id in messages)
    assert not any("Traceback" in worker.output() for worker in fleet.workers)
