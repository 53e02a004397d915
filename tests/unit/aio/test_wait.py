"""`wait`: the end of a task, without a thread."""
from __future__ import annotations

import asyncio
import time

import pytest

from celery_memsync import AsyncMemSync, StoreUnavailable
from celery_memsync.models import order
from tests.support.coroutines import run, soon


@pytest.fixture
def aio(memsync):
    return AsyncMemSync(memsync)


def report(manager, task_id, **state):
    manager.sync_task_state(task_id, state)
    manager.force_sync()


@pytest.mark.parametrize("status", sorted(order.FINAL))
def test_wait_returns_the_state_of_a_task_that_has_ended(aio, other, status):
    report(other, "t1", status=status, x=1)

    assert run(aio.wait("t1", timeout=10)) == {"status": status, "x": 1} == other.get_task_state("t1")


def test_wait_returns_when_the_task_ends(aio, other):
    async def main():
        report(other, "t1", status="STARTED")
        waiting = asyncio.create_task(aio.wait("t1", timeout=20))
        await asyncio.sleep(0.2)
        report(other, "t1", status="RETRY")
        await asyncio.sleep(0.2)
        ended_early = waiting.done()
        report(other, "t1", status="SUCCESS", result=3)
        return ended_early, await waiting

    assert run(main()) == (False, {"status": "SUCCESS", "result": 3})


def test_wait_for_an_unknown_task_waits_until_it_appears_and_ends(aio, other):
    async def main():
        waiting = asyncio.create_task(aio.wait("t1", timeout=20))
        await asyncio.sleep(0.2)
        report(other, "t1", status="FAILURE")
        return await waiting

    assert run(main()) == {"status": "FAILURE"}


@pytest.mark.parametrize("known, said", [(True, "its status is STARTED"), (False, "nothing is recorded of it")])
def test_wait_raises_the_builtin_timeout_error_in_time(aio, other, known, said):
    if known:
        report(other, "t1", status="STARTED")

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TimeoutError, match=rf"task t1 has not ended within 0\.3 s; {said}$"):
            await aio.wait("t1", timeout=0.3)
        return loop.time() - began

    assert run(main()) < 0.3 + 0.5


def test_wait_says_that_redis_is_away_when_it_was_so_from_the_start(make_memsync):
    aio = AsyncMemSync(make_memsync(url="unix:///nowhere/redis.sock"))

    with pytest.raises(TimeoutError, match=r"has not ended within 0\.3 s; Redis has not answered$"):
        run(aio.wait("t1", timeout=0.3))


def test_wait_returns_a_lost_task_once_no_worker_can_requeue_it_any_more(aio, other):
    now = time.time()
    report(other, "old", status="LOST", finished_at=now - order.LOST_GRACE)
    report(other, "new", status="LOST", finished_at=now - order.LOST_GRACE + 1.5)

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        old = await aio.wait("old", timeout=20)
        took_old = loop.time() - began
        new = await aio.wait("new", timeout=20)
        return old["status"], new["status"], took_old < 1 < loop.time() - began

    assert run(main()) == ("LOST", "LOST", True)


def test_wait_for_a_lost_task_goes_on_when_it_is_requeued(aio, other):
    now = time.time()
    report(other, "t1", status="LOST", finished_at=now - order.LOST_GRACE + 0.5)

    async def main():
        waiting = asyncio.create_task(aio.wait("t1", timeout=20))
        await soon(lambda: len(aio.memsync.runtime.feeds))
        report(other, "t1", status="PENDING")
        await asyncio.sleep(1)
        ended_early = waiting.done()
        report(other, "t1", status="SUCCESS")
        return ended_early, (await waiting)["status"]

    assert run(main()) == (False, "SUCCESS")


def test_waits_for_one_task_share_a_subscription_and_nothing_else(aio, other):
    async def main():
        waits = [asyncio.create_task(aio.wait("t1", timeout=20)) for _ in range(50)]
        await soon(lambda: len(aio.memsync.runtime.feeds))
        subscriptions = aio.get_metrics()["subscriptions"]
        report(other, "t1", status="SUCCESS", x=[])
        states = await asyncio.gather(*waits)
        states[0]["x"].append(1)
        return subscriptions, states[1:], aio.get_metrics()["subscriptions"]

    assert run(main()) == (1, [{"status": "SUCCESS", "x": []}] * 49, 0)


def test_wait_that_joins_others_is_given_what_they_were(aio, other):
    async def main():
        report(other, "t1", status="STARTED")
        first = asyncio.create_task(aio.wait("t1", timeout=20))
        feed = await soon(lambda: next(iter(aio.memsync.runtime.feeds._feeds.values()), None))
        await soon(lambda: feed._present)
        # The others have got it, and are about to leave.
        feed.followers = {}
        report(other, "t1", status="SUCCESS")
        await soon(lambda: [change.value["status"] for change in feed._present.values()] == ["SUCCESS"])
        second = await aio.wait("t1", timeout=20)
        first.cancel()
        return second

    assert run(main()) == {"status": "SUCCESS"}


def test_wait_outlives_a_redis_that_is_away(make_memsync, own_server):
    aio, other = AsyncMemSync(make_memsync(url=own_server.url)), make_memsync(url=own_server.url)

    async def main():
        waiting = asyncio.create_task(aio.wait("t1", timeout=30))
        await soon(lambda: aio.memsync._lifetime.runtime and len(aio.memsync.runtime.feeds))
        own_server.stop()
        await asyncio.sleep(0.5)
        own_server.start()
        report(other, "t1", status="SUCCESS")
        return await waiting

    assert run(main()) == {"status": "SUCCESS"}


def test_wait_that_begins_while_redis_is_away_ends_when_it_is_back(make_memsync, own_server):
    aio, other = AsyncMemSync(make_memsync(url=own_server.url)), make_memsync(url=own_server.url)

    async def main():
        own_server.stop()
        waiting = asyncio.create_task(aio.wait("t1", timeout=30))
        with pytest.raises(TimeoutError):
            await aio.wait("t1", timeout=0.3)
        own_server.start()
        report(other, "t1", status="SUCCESS")
        return await waiting

    assert run(main()) == {"status": "SUCCESS"}


def test_wait_is_given_up_at_a_shutdown(aio):
    async def main():
        waiting = asyncio.create_task(aio.wait("t1"))
        await soon(lambda: aio.memsync._lifetime.runtime and len(aio.memsync.runtime.feeds))
        await aio.shutdown()
        with pytest.raises(StoreUnavailable, match="task t1 was given up: this manager was shut down"):
            await waiting

    run(main())
