"""What a worker's main process does with a request that it has received, until its body has ended."""
from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionInfo

from tests.support.sender import Sender


@pytest.fixture
def sender(redis_url):
    sender = Sender(redis_url, memsync_batch_interval=60.0, memsync_recover="mark")
    sender.task()
    yield sender
    sender.close()


def taken(sender, **options):
    """Return the request of a task that was sent, and is recorded as pending."""
    task = sender.app.tasks["proj.add"]
    task.apply_async((1,), **options)
    sender.memsync.force_sync()
    request = sender.take(task)
    sender.taken.clear()
    return request


def received(sender, task_id=None, **options):
    """Return such a request when it was received."""
    request = taken(sender, **options)
    request.id = task_id or request.id
    sender.memsync.signals.on_received(request)
    return request


def status(sender, task_id):
    sender.memsync.force_sync()
    return sender.memsync.get_task_state(task_id)["status"]


def test_request_is_recorded_as_received_until_its_body_has_ended(sender):
    waiting, ended = received(sender), received(sender)

    ended.on_success((False, None, 0.1))

    assert (status(sender, waiting.id), status(sender, ended.id)) == ("RECEIVED", "PENDING")
    assert sender.memsync.signals.requests.unended() == [waiting]


def test_stage_that_is_not_written_is_withdrawn_when_the_body_has_ended(sender):
    request, pending = received(sender), sender.memsync.runtime.writer._pending
    pending.drain(float("inf"))

    request.on_success((False, None, 0.1))

    assert status(sender, request.id) == "PENDING"


def test_ended_request_is_freed_without_the_collector(sender):
    request, requests = received(sender), sender.memsync.signals.requests
    find = weakref.ref(request)
    gc.disable()
    try:
        request.on_success((False, None, 0.1))
        del request

        assert find() is None
        assert requests.by_run == {}
    finally:
        gc.enable()


def test_request_that_is_dropped_before_it_has_begun_is_not_listed(sender):
    request, requests = received(sender), sender.memsync.signals.requests
    before = len(requests.by_run)
    del request

    gc.collect()

    assert (before, requests.by_run, requests.unended()) == (1, {}, [])


@pytest.mark.parametrize("task_id", ["a/b", "a*", "\ud800", 5, ["t"]], ids=ascii)
def test_id_that_can_be_no_key_harms_neither_reads_nor_writes(sender, task_id):
    request, signals, runtime = taken(sender), sender.memsync.signals, sender.memsync.runtime
    request.id = task_id
    reading = runtime.cache.begin(["other"], SimpleNamespace())

    signals.on_received(request)
    pending = runtime.writer.is_pending("other")
    runtime.cache.finish(reading)
    sender.memsync.force_sync()

    assert not pending
    assert sender.memsync.get_metrics()["pending_writes"] == 0
    assert signals.requests.unended() == [request]


@pytest.mark.parametrize("task_id, status_of_next", [("t1", "FAILURE"), ("t/1", "PENDING")])
def test_steps_after_a_failure_are_never_sent_if_its_id_can_be_a_key(sender, task_id, status_of_next):
    following = sender.app.tasks["proj.add"].si(2).set(task_id="next")
    request = received(sender, task_id, chain=[following])
    try:
        raise ValueError("no")
    except ValueError:
        failed = ExceptionInfo()

    request.on_success((True, failed, None))

    assert status(sender, "next") == status_of_next
