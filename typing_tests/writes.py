"""Writes, and the life of a manager."""
from __future__ import annotations

from celery import Celery
from typing_extensions import assert_type

from celery_memsync import Entry, MemorySyncManager, MemSync

manager = MemorySyncManager(worker_id="w1", url="redis://localhost")


def tasks_are_written() -> None:
    manager.sync_task_state("t1", {"status": "halfway", "frames": 3}, ttl=60.0)
    manager.sync_task_progress("t1", None, "reading", current=1, total=2.5, message="rows")
    manager.sync_agent_coordination("t1", "coder", {"files": 3})
    manager.sync_task_state("t1", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.sync_task_progress("t1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    manager.sync_task_progress("t1", 1, current="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def workers_are_written() -> None:
    manager.sync_worker_status("w1", "active")
    manager.sync_worker_capacity("w1", 3)
    manager.update_heartbeat()
    assert_type(manager.worker_id, str)


def queue_and_counters_are_written() -> None:
    manager.sync_queue({"pending": ("t1", "t2")})
    manager.sync_queue(manager.get_queue())
    manager.sync_assignments({"w1": {"t1"}})
    manager.sync_assignments(manager.get_assignments())
    manager.sync_metrics({"total": 3, "last": "t1"})
    manager.increment_metrics(total=1, seconds=0.5)
    manager.sync_queue({"pending": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    manager.increment_metrics(total="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def values_are_written() -> None:
    assert_type(manager.write("a", [1, 2], ttl=60.0), Entry | None)
    manager.delete("a")
    manager.clear_cache()
    manager.write("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    manager.write("a", 1, 60.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def apps_have_managers(app: Celery) -> None:
    memsync = MemSync(app, namespace="proj")
    assert_type(memsync.init_app(app), MemSync)
    assert_type(manager.settings.timeout, float)
    manager.shutdown(timeout=5.0)
    manager.shutdown("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(memsync.token("t1", max_age=60), str)
    assert_type(memsync.check_token("a token"), str)
