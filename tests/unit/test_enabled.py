"""``memsync_enabled = False`` turns everything into nothing; no Redis is needed then."""
from __future__ import annotations

import logging
import threading

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_memsync import MemorySyncManager, MemSync, StoreUnavailable
from tests.support.redis_server import free_port


@pytest.fixture
def app():
    """An app whose `MemSync` is switched off, and whose Redis is not there."""
    app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        memsync_enabled=False, memsync_backend=f"redis://127.0.0.1:{free_port()}/0", memsync_recover="requeue",
        broker_transport_options={"polling_interval": 0.01})
    memsync = MemSync(app)
    yield app
    memsync.shutdown(0.5)


@pytest.fixture
def own_logging():
    """The log as it was: a worker in this process sets it up for its own."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def work(app):
    """A task that uses all that a body can use."""
    memsync = app.memsync

    @app.task(name="proj.work", bind=True, shared=False)
    @memsync.exclusive
    @memsync.locked("l:{number}", on_locked="retry")
    def work(self, number):
        memsync.progress(1, 2, "half", detail="x")
        memsync.agent("reader").sync(files=3)
        memsync.sync_task_state(self.request.id, {"a": 1})
        return [number, *memsync.track([1, 2])], self.request.headers

    return work


def test_a_worker_runs_tasks_as_if_this_package_were_not_there(app, work, own_logging):
    others = set(threading.enumerate())
    with start_worker(app, perform_ping_check=False, shutdown_timeout=30, loglevel="WARNING") as worker:
        values, headers = work.delay(7).get(timeout=10, interval=0.01)

        assert values == [7, 1, 2]
        assert "MemSync" not in [step.label for step in worker.blueprint.steps.values() if step.include_if(worker)]
        assert "memsync" not in (headers or {})
        assert [one.name for one in set(threading.enumerate()) - others if one.name.startswith("memsync-")] == []


def test_decorators_of_a_memsync_without_an_app_follow_that_of_the_task(app):
    loose = MemSync()

    @app.task(name="proj.loose", shared=False)
    @loose.locked("l")
    def work():
        loose.progress(1)
        return list(loose.track([1, 2]))

    assert work.apply().get() == [1, 2]


def test_a_body_that_is_called_by_itself_takes_no_lock(app, work):
    assert app.memsync.locked("l")(lambda: 5)() == 5


def test_buffered_writes_return_at_once_and_leave_nothing_pending(app):
    memsync = app.memsync
    memsync.write("a", 1)
    memsync.increment_metrics(a=1)
    memsync.sync_task_progress("t", 50)

    memsync.force_sync()

    assert memsync.get_metrics()["pending_writes"] == 0


@pytest.mark.parametrize("act", [
    lambda memsync: memsync.read("a"), lambda memsync: memsync.write("a", 1, expected_version=0),
    lambda memsync: memsync.lock("l").acquire(), lambda memsync: memsync.get_tasks(), lambda memsync: memsync.dequeue()])
def test_reads_and_atomic_operations_name_the_setting(app, act):
    with pytest.raises(StoreUnavailable, match="memsync_enabled is False"):
        act(app.memsync)


def test_no_redis_has_to_be_named(monkeypatch):
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.memsync_enabled = False

    with MemSync(app) as memsync:
        app.send_task("proj.work")
        memsync.write("a", 1)


def test_a_manager_by_itself_can_be_switched_off():
    with MemorySyncManager(url="redis://127.0.0.1:1/0", enabled=False) as memsync:
        memsync.write("a", 1)
        memsync.force_sync()
