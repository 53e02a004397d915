"""A manager without references is collected with its threads; the collector never waits."""
from __future__ import annotations

import gc
import textwrap
import time
import weakref
from multiprocessing import util as multiprocessing_util

import pytest

from celery_memsync import MemorySyncManager
from tests.support.scripts import IN_CHILD, run
from tests.support.uses import USES, Surroundings, forget, hold, watch
from tests.support.waiting import eventually


@pytest.fixture
def surroundings():
    return Surroundings()


@pytest.mark.parametrize("ends", ["shutdown", "forgotten"])
@pytest.mark.parametrize("use", USES)
def test_a_manager_is_collected_and_leaves_nothing(redis_url, surroundings, use, ends):
    manager = MemorySyncManager("w1", redis_url, batch_interval=0.01)
    find, kept = weakref.ref(manager), use(manager)
    if ends == "shutdown":
        manager.shutdown()

    del manager, kept

    assert eventually(lambda: forget(find))
    assert eventually(lambda: surroundings.more() == (set(), set(), set()))


@pytest.mark.parametrize("use", USES)
def test_what_is_shut_down_leaves_nothing_though_it_is_kept(redis_url, surroundings, use):
    manager = MemorySyncManager("w1", redis_url, batch_interval=0.01)
    kept = use(manager)

    manager.shutdown()

    assert eventually(lambda: surroundings.more()[:2] == (set(), set()))
    assert use is watch or surroundings.more()[2] == set()
    del kept


def test_collected_manager_writes_what_is_pending_and_frees_its_locks(redis_url, memsync):
    manager = MemorySyncManager("w1", redis_url, batch_interval=60.0)
    manager.write("a", 1)
    hold(manager)

    del manager
    gc.collect()

    assert eventually(lambda: memsync.read("a", consistent=True)) == 1
    assert eventually(lambda: not memsync.locks()) is True


def test_the_collector_does_not_wait_for_redis(make_memsync, own_server):
    manager = MemorySyncManager("w1", own_server.url, batch_interval=60.0)
    manager.force_sync()
    manager.write("a", 1)
    own_server.pause()

    began = time.monotonic()
    del manager
    gc.collect()
    took = time.monotonic() - began
    own_server.resume()

    assert took < 2.5
    assert eventually(lambda: make_memsync(url=own_server.url).read("a", consistent=True)) == 1


def test_a_collected_watch_ends(memsync):
    watch = memsync.watch("*")

    del watch
    gc.collect()

    assert eventually(lambda: memsync.get_metrics()["subscriptions"] == 0)


def test_subscription_goes_on_after_a_collection(memsync, other):
    received = []
    memsync.subscribe(
        "*", lambda key, value: received.append(value), lambda key: received.append("deleted"))
    memsync.subscribe("*", lambda key, value, entry: received.append(entry.version))

    gc.collect()
    other.write("a", 1)
    other.force_sync()
    assert eventually(lambda: 1 in received and len(received) == 2)
    other.delete("a")
    other.force_sync()

    assert eventually(lambda: "deleted" in received)


def test_managers_leave_nothing_with_multiprocessing(redis_url):
    MemorySyncManager("w0", redis_url).get_metrics()
    before = len(multiprocessing_util._finalizer_registry)

    for number in range(20):
        with MemorySyncManager(f"w{number}", redis_url) as manager:
            manager.write("a", number)

    assert len(multiprocessing_util._finalizer_registry) <= before


def test_managers_leave_nothing_with_atexit(tmp_path, redis_url):
    out = run(tmp_path, """
        import atexit
        memsync.read('a')
        memsync.shutdown()
        before = atexit._ncallbacks()
        for number in range(20):
            with MemorySyncManager(f'w{number}', url) as one:
                one.write('a', number)
            MemorySyncManager(f'v{number}', url).write('a', number)
        print('more', atexit._ncallbacks() - before)
    """, redis_url)

    assert "more 0" in out


def test_what_was_forgotten_last_is_written_at_the_end_of_the_process(tmp_path, redis_url, memsync):
    run(tmp_path, """
        for number in range(20):
            MemorySyncManager(f'w{number}', url, batch_interval=60.0).write(f'key-{number}', number)
        gc.collect()
    """, redis_url)

    assert [memsync.read(f"key-{number}") for number in range(20)] == list(range(20))


def test_what_the_parent_has_forgotten_is_not_the_childs(tmp_path, redis_url, memsync):
    run(tmp_path, IN_CHILD + textwrap.dedent("""
        memsync.increment_metrics(done=1)
        in_child(lambda: (gc.collect(), globals().pop('memsync'), gc.collect(), time.sleep(0.2)))
        memsync.shutdown()
    """), redis_url)

    assert memsync.get_coordination_metrics() == {"done": 1}
