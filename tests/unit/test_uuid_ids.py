"""A ``uuid.UUID`` is taken as its text wherever an id is taken."""
from __future__ import annotations

import uuid

import pytest
from celery.result import AsyncResult

from celery_memsync import InvalidKey

ID = uuid.UUID("6f1c2a9e-3f0b-4a51-9a36-0d1c5ad0c1aa")

TEXT = str(ID)


@pytest.mark.parametrize("write, read", [
    (lambda memsync, one: memsync.sync_task_state(one, {"a": 1}), lambda memsync, one: memsync.get_task_state(one)["a"]),
    (lambda memsync, one: memsync.sync_task_progress(one, 50),
     lambda memsync, one: memsync.get_task_progress(one)["progress"]),
    (lambda memsync, one: memsync.sync_agent_coordination(one, one, 2),
     lambda memsync, one: (
         memsync.get_task_agents(one), memsync.get_agent_coordination(one, one), memsync.get_task(one)["id"])),
    (lambda memsync, one: memsync.sync_worker_status(one, "busy"), lambda memsync, one: memsync.get_worker_status(one)),
    (lambda memsync, one: memsync.sync_worker_capacity(one, 3), lambda memsync, one: memsync.get_worker_capacity(one)),
    (lambda memsync, one: memsync.enqueue(one), lambda memsync, one: (memsync.get_queue_position(one), memsync.get_queue())),
    (lambda memsync, one: memsync.sync_queue({"pending": [one]}), lambda memsync, one: memsync.get_queue()["pending"]),
    (lambda memsync, one: memsync.sync_assignments({one: [one]}), lambda memsync, one: memsync.get_assignments()),
    (lambda memsync, one: memsync.acquire_task_lock(one), lambda memsync, one: memsync.get_lock(f"tasks/{one}").name),
])
def test_uuid_is_taken_as_its_text(memsync, write, read):
    write(memsync, ID)

    assert read(memsync, ID) == read(memsync, TEXT)


def test_lock_of_a_task_is_released_by_its_uuid(memsync):
    memsync.acquire_task_lock(ID)

    assert memsync.release_task_lock(TEXT)
    assert memsync.complete(ID) is False


def test_result_in_the_place_of_an_id_is_refused_with_what_to_pass(memsync):
    with pytest.raises(InvalidKey, match="a task id is a string or a UUID, such as result.id, not AsyncResult"):
        memsync.get_task_state(AsyncResult(TEXT))
