"""Something of every kind, written and used."""
from __future__ import annotations

from celery_memsync.models.task import TaskRun
from tests.support.waiting import eventually

NAMESPACE = "task-sentinel"


def populate(memsync):
    """Write something of every kind."""
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 50)
    memsync.sync_agent_coordination("t1", "coder", 1)
    memsync.sync_agent_coordination("t1", "tester", None)
    memsync.sync_task_run("t2", TaskRun(status="PENDING"))
    memsync.sync_agent_coordination("t3", "coder", {})
    memsync.sync_task_progress("t4", 0)
    memsync.sync_worker_status("w1", "idle")
    memsync.sync_worker_capacity("w1", 0)
    memsync.update_heartbeat()
    memsync.sync_queue({"pending": ["t2"]})
    memsync.sync_metrics({"count": 1})
    memsync.sync_assignments({"w1": ["t1"]})
    for key in ("a", "a/b", "tasks/t1/note", "tasks/t1/notes/1", "tasks/alone", "coordination/plan", "workers", "é"):
        memsync.write(key, None)


def use_everything(memsync, other):
    """Call everything that sends commands of its own to Redis."""
    received = []
    memsync.subscribe("*", lambda key, value: received.append(key))
    memsync.sync_task_state("t1", {"status": "STARTED"})
    memsync.sync_task_progress("t1", 10)
    memsync.sync_agent_coordination("t1", "a1", {"x": 1})
    memsync.sync_worker_status("w1", "busy")
    memsync.sync_queue({"pending": ["q1"]})
    memsync.sync_metrics({"total": 1})
    memsync.increment_metrics(total=1, runtime=0.5)
    memsync.sync_assignments({"w1": ["t1"]})
    memsync.write("own", 1)
    memsync.update_heartbeat()
    memsync.force_sync(timeout=5)
    memsync.enqueue("q2")
    assert [memsync.dequeue(), memsync.complete("q1")] == ["q1", True]
    with memsync.lock("l1") as lock:
        lock.extend(20)
        assert [one.name for one in memsync.locks()] == ["l1"]
        assert not other.lock("l1", wait=0.1).acquire()
    assert other.get_task_state("t1")["status"] == "STARTED"
    assert other.search("own") == other.search("ow*") == [f"{NAMESPACE}/own"]
    assert f"{NAMESPACE}/own" in [entry.key for entry in other.iter_entries()]
    assert [other.get_task_agents("t1"), other.read("own"), other.get_queue()["pending"]] == [["a1"], 1, ["q2"]]
    assert other.get_coordination_metrics()["total"] == 2
    assert other.get_tasks(limit=5)
    other.runtime.store.write_heartbeat("w2", b"{}", 10.0)
    other.runtime.store.keep_messages("abcdefgh", {"r1": b"{}"}, 10.0)
    other.runtime.store.keep_messages("abcdefgh", {"r1": None}, 10.0)
    memsync.delete("own")
    memsync.force_sync(timeout=5)
    eventually(lambda: f"{NAMESPACE}/own" in received)
