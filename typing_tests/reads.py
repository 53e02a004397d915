"""What reads return."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from typing_extensions import assert_type

from celery_memsync import (
    Entry,
    ExceptionRecord,
    Group,
    GroupDict,
    ListedTask,
    LockDict,
    LockFacts,
    LockRecord,
    MemorySyncManager,
    ProcessMetrics,
    QueueLists,
    RunningTask,
    RunProgress,
    TaskCause,
    TaskProgress,
    TaskRecord,
    TaskState,
    WorkerDict,
    WorkerRecord,
    Workflow,
    WorkflowDict,
    WorkflowNode,
)

manager = MemorySyncManager(worker_id="w1")


class RenderState(TaskState, total=False):
    """A state with a field of the user's own."""

    frames: int


def states_have_their_keys() -> None:
    assert_type(manager.get_task_state("t1"), TaskState | None)
    state = manager.get_task_state("t1") or {}
    assert_type(state.get("status"), str | None)
    assert_type(state.get("started_at"), float | None)
    assert_type(state.get("exception"), ExceptionRecord | None)
    assert_type(state.get("lock"), LockFacts | None)
    assert_type(state.get("cause"), TaskCause | None)
    assert_type(state.get("depends_on"), list[str] | None)
    state["statuss"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    state["retries"] = "1"  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]


def keys_that_may_be_missing_are_looked_for(state: TaskState) -> None:
    state["status"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if "status" in state:
        assert_type(state["status"], str)


def frames_of(anything: Mapping[str, Any]) -> int:
    return int(anything["frames"])


def states_have_fields_of_their_users(state: TaskState) -> None:
    state["frames"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    own = cast("RenderState", state)
    assert_type(own.get("frames"), int | None)
    assert_type(frames_of(state), int)
    manager.sync_task_state("t1", own)
    manager.sync_task_state("t1", {"frames": 3})
    plain: dict[str, Any] = state  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del plain


def progress_has_all_its_keys() -> None:
    progress = manager.get_task_progress("t1")
    assert_type(progress, TaskProgress | None)
    if progress is not None:
        assert_type(progress["progress"], float | None)
        assert_type(progress["message"], str | None)
        assert_type(progress["phase_number"], int)
        assert_type(progress["eta"], float | None)
        assert_type(progress.get("previous"), RunProgress | None)
        progress["file"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    progress["eta"]  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]


def status_of(listed: ListedTask) -> str:
    return (listed["state"] or {}).get("status", "-")


def tasks_have_states_and_progress() -> None:
    task = manager.get_task("t1")
    assert_type(task, TaskRecord | None)
    if task is not None:
        assert_type(task["state"], TaskState | None)
        assert_type(task["progress"], TaskProgress | None)
        assert_type(task["runs"], list[TaskState])
        assert_type(task["agents"], dict[str, Any])
        status_of(task)
        manager.get_tasks()[0]["runs"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    assert_type(manager.get_tasks(limit=3), list[ListedTask])
    assert_type(manager.iter_tasks(since=0.0), Iterator[ListedTask])
    assert_type(manager.get_agent_coordination("t1", "coder"), Any)
    assert_type(manager.get_task_agents("t1"), list[str])


def workflows_are_records() -> None:
    group, workflow = manager.get_group("g1"), manager.get_workflow("t1")
    assert_type(group, Group | None)
    assert_type(workflow, Workflow | None)
    if group is not None and workflow is not None:
        assert_type(group.as_dict(), GroupDict)
        assert_type(workflow.find("t1"), WorkflowNode | None)
        assert_type(workflow.root.cause, TaskCause | None)
        assert_type(workflow.as_dict(), WorkflowDict)
        assert_type(workflow.as_dict()["root"]["children"][0]["group"], GroupDict | None)


def workers_are_records() -> None:
    assert_type(manager.get_workers(), list[WorkerRecord])
    assert_type(manager.get_active_workers(), list[str])
    assert_type(manager.get_worker_status("w1"), Any)
    assert_type(manager.get_worker_capacity("w1"), Any)
    for worker in manager.get_workers():
        assert_type(worker.capacity.get("free"), int | None)
        assert_type(worker.running, tuple[RunningTask, ...])
        assert_type(worker.running[0]["started_at"], float | None)
        assert_type(worker.held_messages.get("count"), int | None)
        assert_type(worker.as_dict(), WorkerDict)
        assert_type(worker.as_dict()["running"], list[RunningTask])


def queue_and_counters_have_their_keys() -> None:
    assert_type(manager.get_queue(), QueueLists)
    assert_type(manager.get_queue()["pending"], list[str])
    manager.get_queue()["failed"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    assert_type(manager.get_queue_position("t1"), int | None)
    assert_type(manager.get_assignments(), dict[str, list[str]])
    assert_type(manager.get_coordination_metrics(), dict[str, Any])
    assert_type(manager.get_metrics(), ProcessMetrics)
    assert_type(manager.get_metrics()["writes"], int)
    assert_type(manager.get_metrics()["cache"]["size"], int)
    assert_type(manager.get_metrics()["connected"], bool)


def entries_are_records(lock: LockRecord) -> None:
    assert_type(manager.read("a"), Any)
    assert_type(manager.read_entry("a", max_age=1.0), Entry | None)
    assert_type(manager.read_many(["a", "b"]), dict[str, Any])
    assert_type(manager.search("a/*"), list[str])
    assert_type(manager.iter_entries("a/*"), Iterator[Entry])
    for entry in manager.iter_entries():
        assert_type((entry.key, entry.version, entry.timestamp), tuple[str, int, float])
    assert_type(lock.as_dict(), LockDict)
    manager.read_many(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def manager_is_a_context_manager() -> None:
    with MemorySyncManager(worker_id="w1", url="redis://localhost", batch_interval=0.1) as one:
        assert_type(one, MemorySyncManager)
        one.force_sync(timeout=5.0)
