"""Workflows in a cluster, from senders that send anything, and with records that anybody has written."""
from __future__ import annotations

import pytest
from celery import chain, group

from celery_memsync import MemorySyncManager
from celery_memsync.models.task import TaskRun
from tests.support.fleet import TASKS
from tests.support.flows import FLOWS, sig
from tests.support.junk import JUNK
from tests.support.runs import run_key
from tests.support.waiting import eventually

#: What may stand in the place of the rest of a chain, of the body of a chord, or of what this package sends along.
HOSTILE = (5, "text", [5], [[]], {}, {"task": 5}, [{"options": {"task_id": "a/b"}, "task": "x"}],
           [{"task": "celery.group", "kwargs": {"tasks": 5}, "options": {"task_id": 5}}])


@pytest.fixture(scope="module")
def fleet(flow_fleet):
    return flow_fleet


def test_groups_are_counted_in_a_cluster(make_fleet, cluster):
    fleet = make_fleet(store=cluster, include=[TASKS, FLOWS])
    fleet.start_worker("-c", "2")

    result = chain(sig(fleet, "ok"), group(sig(fleet, "ok"), sig(fleet, "retried"), sig(fleet, "ok"))).apply_async()

    found = eventually(lambda: (one := fleet.reader.get_group(result.id)) and one.done == 3 and one, 20)
    tree = fleet.reader.get_workflow(result.id)
    assert (found.total, found.succeeded, found.running) == (3, 3, 0)
    assert [node.kind for node in tree.root.children] == ["task", "group"]
    assert tree.progress == 100


def test_chain_that_fails_in_a_cluster_fails_to_its_end(make_fleet, cluster):
    fleet = make_fleet(store=cluster, include=[TASKS, FLOWS])
    fleet.start_worker("-c", "1")

    result = chain(sig(fleet, "bad"), sig(fleet, "ok"), sig(fleet, "ok")).apply_async()

    assert fleet.wait(result, "FAILURE")["never_ran"]


@pytest.mark.parametrize("junk", HOSTILE, ids=repr)
def test_message_with_a_hostile_rest_of_its_chain_is_sent_and_recorded(fleet, junk):
    body = [], {}, {"chain": junk, "chord": junk, "callbacks": None, "errbacks": None}
    memsync = fleet.app.memsync
    headers = {"id": "hostile", "task": "nothing", "root_id": "hostile", "group": junk, "group_index": 0}

    steps = memsync.signals.workflows.sent_along(headers, body, None)
    memsync.signals.workflows.record(memsync.runtime, TaskRun("PENDING", root_id="hostile"), "hostile", body)
    memsync.force_sync()

    assert set(steps) <= {"workflow"}


@pytest.mark.parametrize("junk", [5, "a/b", [], {"a": 1}, "x" * 600, None], ids=repr)
def test_task_with_a_hostile_workflow_in_its_message_runs(fleet, junk):
    sent = {"workflow": junk, "depends_on": junk, "group": junk, "member": junk, "sizes": {"g": junk, "h/h": 5}}
    result = sig(fleet, "ok").apply_async(headers={"memsync": sent})
    again = fleet.app.send_task(f"{FLOWS}.ok", headers={"memsync": sent})

    for one in (result, again):
        assert "workflow" not in fleet.wait(one, "SUCCESS")


@pytest.mark.parametrize("write", JUNK.values(), ids=list(JUNK))
def test_junk_under_the_key_of_a_set_stops_nothing(make_memsync, redis, write):
    memsync = make_memsync(batch_interval=60.0)
    memsync.sync_task_run("t1", TaskRun("SUCCESS", group="g", root_id="t1"), run_key(0, 0))
    memsync.force_sync()
    write(redis, memsync.runtime.keys.members("g"))

    for read in (memsync.get_group, memsync.get_workflow, memsync.get_workflow):
        read("g")
    memsync.sync_task_run("t2", TaskRun("SUCCESS", group="g", root_id="t2"), run_key(0, 0))
    memsync.force_sync()

    assert memsync.get_task_state("t2")["status"] == "SUCCESS"
    assert memsync.get_group("g").done >= 1


def test_records_that_depend_on_anything_make_a_tree(redis_url):
    with MemorySyncManager(url=redis_url, batch_interval=60.0) as memsync:
        for number in range(20):
            before = [f"t{(number * 7) % 20}", "t1", "x/y"][:number % 4]
            run = TaskRun("STARTED", workflow="t0", root_id="t0", depends_on=before, parent_id=f"t{(number * 3) % 20}",
                          group="g" if number % 3 else None, cause={"x": 1})
            memsync.sync_task_run(f"t{number}", run, run_key(0, 0))
        memsync.force_sync()

        found = memsync.get_workflow("t7")

    assert len({node.id for node in found.root.walk() if node.kind == "task"}) == 20
