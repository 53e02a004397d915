"""Forks, spawned children, and the end of a process: pending writes are sent, once."""
from __future__ import annotations

import signal
import time

import pytest

from tests.support.redis_server import free_port
from tests.support.scripts import HEAD, IN_CHILD, begin, run
from tests.support.stress import stressed

# -- the end of a process


@pytest.mark.parametrize("code", [
    "memsync.write('a', 1)",
    "memsync.write('a', 1); del memsync; gc.collect(); time.sleep(0.1)",
    "memsync.write('a', 1); sys.exit(0)",
    "threading.Thread(target=memsync.write, args=('a', 1)).start()",
    "memsync.write('b', 2); memsync.shutdown(); memsync.write('a', 1)",
])
def test_what_waits_is_written_at_the_end_of_the_process(tmp_path, redis_url, memsync, code):
    run(tmp_path, code, redis_url)

    assert memsync.read("a") == 1


def test_write_in_an_atexit_handler_is_sent(tmp_path, redis_url, memsync):
    run(tmp_path, "import atexit; atexit.register(memsync.write, 'a', 1)", redis_url)

    assert memsync.read("a") == 1


def test_a_collected_manager_leaves_no_thread_and_no_connection(tmp_path, redis_url, redis):
    out = run(tmp_path, """
        before = threading.active_count()
        for number in range(5):
            one = MemorySyncManager(f'w{number}', url, batch_interval=0.001)
            one.write(f'key-{number}', number)
            one.force_sync()
        del one
        gc.collect()
        time.sleep(0.3)
        print('threads', threading.active_count() - before)
    """, redis_url)

    assert "threads 0" in out
    assert len([key for key in redis.keys() if b"key-" in key]) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_may_be_called_by_the_handler_of_a_signal(tmp_path, redis_url, memsync, number):
    process = begin(tmp_path, """
        def leave(*args):
            memsync.shutdown(timeout=2)
            os._exit(7)

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        memsync.write('a', 1)
        print('ready', flush=True)
        number = 0
        while True:
            number += 1
            memsync.sync_task_progress('t1', None, current=number)
            memsync.write(f'key-{number % 10}', number)
    """, redis_url)
    process.stdout.readline()
    time.sleep(0.2)

    process.send_signal(number)

    try:
        assert process.wait(10) == 7
    finally:
        process.kill()
        process.communicate()
    assert memsync.read("a") == 1


def test_the_end_of_a_process_does_not_wait_long_for_a_redis_that_is_away(tmp_path):
    started = time.monotonic()

    out = run(tmp_path, """
        import logging
        logging.basicConfig()
        memsync.write('a', 1)
    """, f"redis://127.0.0.1:{free_port()}")

    assert time.monotonic() - started < 6
    assert "could not be written" in out


def test_the_end_of_a_process_does_not_wait_long_for_a_redis_that_hangs(tmp_path, own_server):
    own_server.pause()
    started = time.monotonic()

    run(tmp_path, "memsync.write('a', 1)", own_server.url)

    assert time.monotonic() - started < 12


# -- fork

def test_a_forked_child_writes_under_its_own_name_and_the_parents_writes_stay_its_own(tmp_path, redis_url, memsync):
    out = run(tmp_path, """
        memsync.write('pending', 1)
        in_child(lambda: (print(memsync.runtime.writer.pending, flush=True), memsync.write('child', 2), memsync.shutdown()))
        memsync.force_sync()
    """, redis_url, HEAD + IN_CHILD)

    assert out.startswith("0\n")
    assert memsync.read_many(["pending", "child"]) == {"pending": 1, "child": 2}
    assert memsync.read_entry("pending").version == 1


def test_a_child_forked_while_another_thread_holds_every_lock_can_work(tmp_path, redis_url, memsync):
    run(tmp_path, """
        memsync.write('a', 1)
        memsync.force_sync()
        memsync.write('pending', 1)
        locks = [memsync._lifetime._mutex, memsync.runtime.writer._pending._mutex]
        held, done = threading.Event(), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            held.set()
            done.wait()
            for lock in locks:
                lock.release()

        threading.Thread(target=hold).start()
        held.wait()

        def act():
            memsync.on('write', lambda **details: None)
            memsync.write('child', 2)
            memsync.sync_task_progress('t1', 50)
            assert memsync.read('child') == 2
            memsync.shutdown()

        in_child(act)
        done.set()
    """, redis_url, HEAD + IN_CHILD)

    assert memsync.read_many(["child", "pending"]) == {"child": 2, "pending": 1}
    assert memsync.read_entry("pending").version == 1


def test_children_forked_while_the_parent_writes_all_the_time_can_work(tmp_path, redis_url, memsync):
    run(tmp_path, """
        memsync = MemorySyncManager('busy', url, batch_interval=0.001)
        memsync.force_sync()  # redis-py imports modules at its first use; to fork in the middle of an import hangs Python
        memsync.write('warm', 1)
        memsync.force_sync()
        stop = threading.Event()

        def hammer(name):
            number = 0
            while not stop.is_set():
                number += 1
                memsync.write(f'{name}/{number % 50}', number)
                memsync.sync_task_progress(name, None, current=number)

        threads = [threading.Thread(target=hammer, args=(f'h{number}',)) for number in range(3)]
        [thread.start() for thread in threads]
        for number in range(12):
            in_child(lambda: (memsync.write(f'child/{number}', number), memsync.force_sync(), memsync.shutdown()))
        stop.set()
        [thread.join() for thread in threads]
    """, redis_url, HEAD + IN_CHILD)

    assert [memsync.read(f"child/{number}") for number in range(12)] == list(range(12))


def test_the_connection_of_the_parent_is_not_used_or_closed_by_the_child(tmp_path, redis_url, memsync):
    run(tmp_path, """
        memsync.write('a', 1)
        memsync.force_sync()
        for number in range(5):
            in_child(lambda: (memsync.read('a'), gc.collect(), memsync.shutdown()))
            assert memsync.read('a') == 1
        memsync.write('a', 2)
        memsync.force_sync()
    """, redis_url, HEAD + IN_CHILD)

    assert memsync.read_entry("a").version == 2


def test_handlers_cross_a_fork(tmp_path, redis_url):
    out = run(tmp_path, """
        memsync.on('write', lambda key, value: print(os.getpid() == parent, key, flush=True))
        parent = os.getpid()
        in_child(lambda: (memsync.write('child', 1), memsync.shutdown()))
    """, redis_url, HEAD + IN_CHILD)

    assert out == "False task-sentinel/child\n"


# -- multiprocessing

@pytest.mark.parametrize("method", stressed(["fork", "spawn", "forkserver"], ["fork", "spawn"]))
def test_a_child_of_multiprocessing_that_just_ends_has_written(tmp_path, redis_url, memsync, method):
    run(tmp_path, f"""
        def act():
            memsync.write('child', os.getpid())

        def fail():
            memsync.write('failed', 1)
            sys.exit(3)

        if __name__ == '__main__':
            memsync.write('pending', 1)
            context = multiprocessing.get_context('{method}')
            for target, code in ((act, 0), (fail, 3)):
                child = context.Process(target=target)
                child.start()
                child.join(20)
                assert child.exitcode == code, child.exitcode
    """, redis_url)

    assert memsync.read("child") > 0
    assert memsync.read_many(["failed", "pending"]) == {"failed": 1, "pending": 1}
    assert memsync.read_entry("pending").version == 1


def test_processes_of_a_pool_share_one_state(tmp_path, redis_url, memsync):
    run(tmp_path, """
        def act(number):
            memsync.sync_agent_coordination('t1', f'agent-{number:02}', number)
            memsync.sync_task_state('t1', {f'field-{number}': number})
            memsync.force_sync()

        if __name__ == '__main__':
            with multiprocessing.get_context('fork').Pool(4) as pool:
                pool.map_async(act, range(40), chunksize=1).get(15)
    """, redis_url)

    assert memsync.get_task_agents("t1") == [f"agent-{number:02}" for number in range(40)]
    assert memsync.get_task_state("t1") == {f"field-{number}": number for number in range(40)}
