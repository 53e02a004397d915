"""Closing what no caller has closed, and what is left of a lock after a shutdown."""
from __future__ import annotations

import textwrap
import threading

from celery_memsync.closing import Closer
from tests.support.scripts import IN_CHILD, run
from tests.support.uses import Surroundings, hold
from tests.support.waiting import eventually


def test_closer_closes_once_and_logs_what_fails(caplog):
    own, closed = Closer(), []
    owner, kept = threading.Event(), threading.Event()
    own.add(owner, lambda: closed.append("a") or 1 / 0)
    number = own.add(owner, lambda: closed.append("b"))
    own.add(kept, lambda: closed.append("c"))

    own.remove(number)
    del owner
    assert eventually(lambda: closed == ["a"])
    own.close_all()
    own.close_all()

    assert closed == ["a", "c"]
    assert "could not be closed" in caplog.text


def test_closer_leaves_to_the_end_what_no_thread_can_close(monkeypatch):
    own, closed, owner = Closer(), [], threading.Event()
    own.add(owner, lambda: closed.append("a"))

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", refuse)
        del owner
    assert closed == []
    own.close_all()

    assert closed == ["a"]


# -- connections

def test_call_behind_the_end_leaves_no_connection_open(make_memsync):
    manager = make_memsync()
    store = manager.runtime.store
    manager.shutdown()
    surroundings = Surroundings()

    for name in ("a", "b"):
        store.read_entries([store.keys.location(name)])

    assert surroundings.more()[1] == set()


# -- locks

def test_release_after_shutdown_opens_nothing(make_memsync, memsync):
    surroundings, manager = Surroundings(), make_memsync()
    lock = hold(manager)
    assert manager.acquire_task_lock("t1")
    manager.shutdown()

    answers = lock.release(), manager.release_task_lock("t1"), manager.unsubscribe("unknown")

    assert answers == (False, False, False)
    assert manager._lifetime.runtime is None
    assert not lock.owned
    assert memsync.locks() == []
    assert surroundings.more()[0] == set()


def test_release_of_a_lock_from_before_a_shutdown_leaves_the_next_ones(make_memsync):
    manager = make_memsync()
    before = hold(manager)
    manager.shutdown()
    again = manager.lock("one")
    again.acquire()

    assert before.release() is False

    assert again.owned
    assert [record.name for record in manager.locks()] == ["one"]


def test_release_in_a_forked_child_leaves_the_lock_to_the_parent(tmp_path, redis_url):
    out = run(tmp_path, IN_CHILD + textwrap.dedent("""
        lock = memsync.lock('one')
        assert lock.acquire()
        in_child(lambda: print('child', lock.release(), memsync._lifetime.runtime, flush=True))
        print('parent', lock.owned, len(memsync.locks()), lock.release())
    """), redis_url)

    assert "child False None" in out
    assert "parent True 1 True" in out
