"""`AsyncMemSync` in processes: how they begin and end, in the bodies of tasks, on a cluster."""
from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid

import pytest

from celery_memsync import AsyncMemSync
from tests.support.coroutines import run, soon
from tests.support.fleet import Fleet
from tests.support.locked_tasks import wait_begun
from tests.support.paths import ROOT
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with a worker of two children whose tasks run event loops."""
    fleet = Fleet(
        tmp_path_factory.mktemp("aio"), broker, store, include=["tests.support.tasks", "tests.support.aio_tasks"])
    fleet.start_worker("-c", "2")
    yield fleet
    fleet.close()


def python(code, *args, timeout=30):
    """Run a program in a process of its own; return what it printed, and the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *args], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
                          capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - began


def send(fleet, *args, **options):
    return fleet.app.tasks["tests.support.aio_tasks.hold"].apply_async(args, **options)


def test_asyncio_is_not_imported_before_a_public_name_needs_it():
    output, _ = python("""
import json, sys, celery_memsync
before = "asyncio" in sys.modules
from celery_memsync import MemSync
print(json.dumps([before, [name for name in sys.modules if name.startswith("celery_memsync.aio")]]))
""")

    assert json.loads(output) == [False, []]


def test_process_ends_although_calls_wait_for_a_stuck_redis(own_server):
    code = """
import asyncio, sys, threading
from celery_memsync import AsyncMemSync, MemorySyncManager

async def main():
    aio = AsyncMemSync(MemorySyncManager("w1", sys.argv[1], timeout=20))
    await aio.read("a")
    print("connected", flush=True)
    sys.stdin.readline()
    calls = [asyncio.ensure_future(aio.read("a", consistent=True)) for _ in range(30)]
    await asyncio.sleep(0.2)
    print(sum(thread.name == "memsync-aio" for thread in threading.enumerate()), flush=True)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code, own_server.url], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "connected\n"
        with own_server.paused():
            process.stdin.write("\n")
            process.stdin.flush()
            threads = int(process.stdout.readline())
            code = process.wait(15)

    assert (threads, code) == (8, 0)


def test_shutdown_that_is_cancelled_by_the_end_of_the_process_writes_all(own_server):
    python("""
import asyncio, sys
from celery_memsync import AsyncMemSync, MemorySyncManager

async def main():
    aio = AsyncMemSync(MemorySyncManager("w1", sys.argv[1], batch_interval=60.0))
    await aio.read("a")
    for number in range(2000):
        aio.write(f"k/{number}", number)
    asyncio.ensure_future(aio.shutdown())
    await asyncio.sleep(0)

asyncio.run(main())
""", own_server.url)

    with own_server.client() as client:
        assert len(list(client.scan_iter("task-sentinel/k/*", count=1000))) == 2000


def test_coroutine_follows_a_task_of_a_worker_to_its_end(fleet):
    aio = AsyncMemSync(fleet.reader)

    async def main():
        name = uuid.uuid4().hex
        result = send(fleet, name, 0.3)
        state = await aio.wait(result.id, timeout=30)
        return state["status"], await aio.read(f"{name}/fence") > 0, await aio.lock(name).acquire()

    assert run(main()) == ("SUCCESS", True, True)


@pytest.mark.parametrize("end", ["soft time limit", "revoke", "time limit"])
def test_lock_of_an_event_loop_in_a_task_is_free_however_the_task_ends(fleet, end):
    name = uuid.uuid4().hex
    options = {"soft time limit": {"soft_time_limit": 2}, "time limit": {"time_limit": 2}}.get(end, {})
    held = fleet.reader.lock(f"{name}-other", thread_local=False)
    held.acquire()

    result = send(fleet, name, 60, **options)
    wait_begun(fleet, result)
    record = fleet.reader.get_lock(name)
    if end == "revoke":
        fleet.app.control.revoke(result.id, terminate=True)

    assert record.task_id == result.id
    eventually(lambda: fleet.reader.get_lock(name) is None)
    eventually(lambda: fleet.reader.get_lock(f"{name}-other").waiters == 0, 40)
    held.release()


def test_everything_works_on_a_cluster(make_on_cluster):
    aio, other = AsyncMemSync(make_on_cluster()), make_on_cluster()

    async def main():
        async with aio.watch("k/*") as changes:
            other.write("k/a", 1)
            other.force_sync()
            change = await changes.get(20)
        held = other.lock("a", thread_local=False)
        held.acquire()
        waiting = [asyncio.ensure_future(aio.lock("a", wait=20).acquire()), asyncio.ensure_future(aio.wait("t1", 20))]
        await soon(lambda: other.get_lock("a").waiters == 1)
        other.sync_task_state("t1", {"status": "SUCCESS"})
        other.force_sync()
        held.release()
        return change.value, await waiting[0], (await waiting[1])["status"]

    assert run(main()) == (1, True, "SUCCESS")
