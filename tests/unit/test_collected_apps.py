"""An app with a MemSync is collected like any other; Celery's signals keep none."""
from __future__ import annotations

import gc
import threading
import weakref

import pytest
from celery import Celery, signals

from celery_memsync import MemSync
from celery_memsync.integration.signal_receivers import SIGNALS
from tests.support.scripts import run
from tests.support.uses import USES, Surroundings, forget
from tests.support.waiting import eventually


@pytest.fixture
def surroundings():
    return Surroundings()


def make_app(url, **conf):
    app = Celery("collected", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(memsync_backend=url, task_always_eager=True, **conf)
    MemSync(app)

    @app.task(name="add", shared=False)
    def add(x, y):
        app.memsync.progress(1, 2)
        return x + y

    @app.task(name="locked", shared=False)
    @app.memsync.locked("in-{x}")
    def locked(x):
        return x

    return app


@pytest.mark.parametrize("ends", ["shutdown", "forgotten"])
@pytest.mark.parametrize("use", [None, *USES])
def test_an_app_is_collected_and_leaves_nothing(redis_url, surroundings, use, ends):
    app = make_app(redis_url, memsync_batch_interval=0.01)
    assert app.tasks["add"].delay(1, 2).get() == 3
    assert app.tasks["locked"].delay(1).get() == 1
    find, kept = weakref.ref(app), use and use(app.memsync)
    if ends == "shutdown":
        app.memsync.shutdown()

    app.close()
    del app, kept

    assert eventually(lambda: forget(find))
    assert eventually(lambda: surroundings.more() == (set(), set(), set()))


def test_a_run_that_waits_to_be_written_keeps_no_app(redis_url, memsync):
    app = make_app(redis_url, memsync_batch_interval=60.0)
    task_id = app.tasks["add"].delay(1, 2).id
    find = weakref.ref(app)

    app.close()
    del app

    assert forget(find)
    assert eventually(lambda: (memsync.get_task_state(task_id) or {}).get("status")) == "SUCCESS"
    assert memsync.get_task_progress(task_id)["progress"] == 100


def test_apps_have_one_receiver_of_each_signal(redis_url):
    keep = make_app(redis_url)
    before = [len(signal.receivers) for signal, _ in SIGNALS]

    apps = [make_app(redis_url) for _ in range(5)]

    assert [len(signal.receivers) for signal, _ in SIGNALS] == before
    for app in [keep, *apps]:
        app.memsync.shutdown()


def test_app_keeps_its_memsync_alive(redis_url, memsync):
    app = make_app(redis_url)

    gc.collect()
    task_id = app.tasks["add"].delay(1, 2).id
    app.memsync.shutdown()
    gc.collect()
    after = app.tasks["add"].delay(1, 2).id
    app.memsync.shutdown()

    assert [memsync.get_task_state(one)["status"] for one in (task_id, after)] == ["SUCCESS", "SUCCESS"]


def test_each_app_records_its_own_tasks_though_another_one_fails(
    redis_url, monkeypatch, caplog, memsync,
):
    first, second = make_app(redis_url, memsync_namespace="first"), make_app(redis_url)

    def fail(**_):
        raise ValueError("it fails")

    monkeypatch.setattr(first.memsync.signals, "on_started", fail)
    task_id = second.tasks["add"].delay(1, 2).id
    second.memsync.shutdown()

    assert memsync.get_task_state(task_id)["status"] == "SUCCESS"
    assert first.memsync.get_task_state(task_id) is None
    assert "Signal handler on_started raised: ValueError('it fails')" in caplog.text
    first.memsync.shutdown()


def test_disconnected_app_records_nothing(redis_url, memsync):
    app = make_app(redis_url)

    app.memsync.signals.disconnect()
    signals.task_revoked.send(sender=app.tasks["add"], request=None)

    assert memsync.search("*") == []
    app.memsync.shutdown()


@pytest.mark.acceptance
def test_workers_that_were_stopped_in_a_process_that_goes_on_leave_nothing(tmp_path, redis_url):
    out = run(tmp_path, """
        from celery import Celery
        from celery.contrib.testing.worker import start_worker
        from celery_memsync import MemSync

        def statuses():
            time.sleep(0.8)
            return {worker.status for worker in app.memsync.get_workers()}

        app = Celery('proj', broker='memory://', backend='cache+memory://')
        app.conf.update(memsync_backend=url, memsync_heartbeat_interval=0.2)
        MemSync(app)
        for _ in range(2):
            with start_worker(app, perform_ping_check=False, pool='solo'):
                print('running', 'active' in statuses())
            print('after', statuses())
        app.memsync.shutdown()
        time.sleep(0.5)
        print('threads', [thread.name for thread in threading.enumerate() if thread.name.startswith('memsync-')])
    """, redis_url)

    assert out.count("running True") == 2
    assert out.count("after {'offline'}") == 2
    assert "threads []" in out


def test_app_that_is_closed_leaves_no_thread(redis_url):
    others, closed = set(threading.enumerate()), []
    with Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False) as app:
        app.conf.memsync_backend = redis_url
        app.close = lambda: closed.append(app)  # as another library may have replaced it before
        MemSync(app)
        MemSync(app)  # a second one wraps it no second time
        memsync = app.memsync
        memsync.write("a", 1)
        started = {thread for thread in threading.enumerate() if thread.name.startswith("memsync-")} - others
        assert started

    assert not started & set(threading.enumerate())
    assert closed == [app]
    assert memsync.read("a") == 1  # it may be used again
    memsync.shutdown()
