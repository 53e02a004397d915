"""`watch`: changes as an asynchronous iterator."""
from __future__ import annotations

import asyncio
import gc

import pytest

from celery_memsync import AsyncMemSync
from celery_memsync.aio.watch import Changes
from celery_memsync.reading.subscription import KeyChange
from tests.support.coroutines import run, soon
from tests.support.waiting import eventually


@pytest.fixture
def aio(memsync):
    return AsyncMemSync(memsync)


def write(manager, **values):
    for key, value in values.items():
        manager.write(f"k/{key}", value)
    manager.force_sync()


def subscriptions(aio):
    return aio.get_metrics()["subscriptions"]


def test_watch_yields_what_changes_from_its_beginning_on(aio, other):
    write(other, a=0)

    async def main():
        found = []
        async with aio.watch("k/*") as changes:
            write(other, a=1, b=[2])
            async for change in changes:
                found.append((change.key.rpartition("/")[2], change.value, change.entry.version))
                if len(found) == 2:
                    break
            other.delete("k/a")
            other.force_sync()
            return sorted(found), (await changes.get(10))[1:]

    assert run(main()) == ([("a", 1, 2), ("b", [2], 1)], (None, None))


def test_watch_misses_nothing_between_a_read_and_the_first_change(aio, other):
    async def main():
        async with aio.watch("k/a") as changes:
            before = await aio.read("k/a", consistent=True)
            write(other, a=1)
            return before, (await changes.get(10)).value

    assert run(main()) == (None, 1)


def test_watch_ends_after_its_timeout_without_a_change(aio, other):
    async def main():
        return [change async for change in aio.watch("k/*", timeout=0.2)]

    assert run(main()) == []


def test_slow_consumer_gets_the_newest_value_of_each_key_and_no_more_is_kept(aio, other):
    async def main():
        async with aio.watch("k/*") as changes:
            for number in range(100):
                write(other, a=number, b=-number)
            await soon(lambda: len(changes._changes) == 2)
            last = {}
            while (change := await changes.get(1.0)) is not None:
                last[change.key[-1]] = change.value
                assert len(changes._changes) <= 2
            return last

    assert run(main()) == {"a": 99, "b": -99}


def test_second_coroutine_that_waits_for_the_same_watch_gets_an_error(aio, other):
    async def main():
        async with aio.watch("k/*") as changes:
            first = asyncio.create_task(changes.get(20))
            await asyncio.sleep(0.05)
            with pytest.raises(RuntimeError, match="give each a watch of its own"):
                await changes.get(20)
            write(other, a=1)
            return (await first).value

    assert run(main()) == 1


def test_what_was_there_does_not_follow_what_has_changed_since():
    async def main():
        changes = Changes()
        changes.put(KeyChange("a", "new", None))
        changes.begin_with([KeyChange("a", "old", None), KeyChange("b", "old", None)])
        return [changes.take().value, changes.take().value, changes.take()]

    assert run(main()) == ["new", "old", None]


def test_watchers_of_one_pattern_share_a_subscription_and_no_value(aio, other):
    async def main():
        watches = [aio.watch("k/*") for _ in range(20)]
        for watch in watches:
            await watch.__aenter__()
        number = subscriptions(aio)
        write(other, a=[])
        changes = [await watch.get(10) for watch in watches]
        changes[0].value.append(1)
        for watch in watches:
            watch.close()
        return number, [change.value for change in changes[1:]], subscriptions(aio)

    assert run(main()) == (1, [[]] * 19, 0)


def test_subscription_ends_when_the_block_is_left(aio, other):
    async def main():
        async with aio.watch("k/*"):
            inside = subscriptions(aio)
        with pytest.raises(ZeroDivisionError):
            async with aio.watch("k/*"):
                1 / 0
        return inside, subscriptions(aio)

    assert run(main()) == (1, 0)


def test_subscription_ends_when_the_loop_over_it_is_left(aio, other):
    async def main():
        async for _ in aio.watch("k/*"):
            break

    async def both():
        leaving = asyncio.create_task(main())
        await soon(lambda: aio.memsync._lifetime.runtime and subscriptions(aio))
        write(other, a=1)
        await leaving

    run(both())
    eventually(lambda: subscriptions(aio) == 0)


def test_subscription_ends_when_the_loop_over_it_is_cancelled(aio):
    async def follow():
        async for _ in aio.watch("k/*"):
            pass

    async def main():
        task = asyncio.create_task(follow())
        await soon(lambda: aio.memsync._lifetime.runtime and subscriptions(aio))
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        await soon(lambda: subscriptions(aio) == 0)

    run(main())


def test_generator_around_a_watch_that_is_collected_ends_the_subscription(aio, other):
    async def values():
        async with aio.watch("k/*") as changes:
            async for change in changes:
                yield change.value

    async def main():
        generator = values()
        task = asyncio.create_task(generator.__anext__())
        await soon(lambda: aio.memsync._lifetime.runtime and subscriptions(aio))
        write(other, a=1)
        value = await task
        del generator, task
        gc.collect()
        await soon(lambda: subscriptions(aio) == 0)
        return value

    assert run(main()) == 1


def test_wait_for_the_next_change_that_is_cancelled_loses_none(aio, other):
    async def main():
        found = []
        async with aio.watch("k/*") as changes:
            for number in range(30):
                write(other, **{f"n{number}": number})
            while len(found) < 30:
                try:
                    found.append((await asyncio.wait_for(changes.__anext__(), 0.0005)).value)
                except asyncio.TimeoutError:
                    pass
        return found

    assert sorted(run(main())) == list(range(30))


def test_watch_ends_at_a_shutdown_and_after_close(aio):
    async def main():
        async with aio.watch("k/*") as first, aio.watch("k/*") as second:
            waiting = [asyncio.create_task(watch.get(20)) for watch in (first, second)]
            await asyncio.sleep(0.05)
            second.close()
            closed = await waiting[1]
            await aio.shutdown()
            return closed, await waiting[0], [change async for change in first]

    assert run(main()) == (None, None, [])


def test_closed_loop_does_not_disturb_the_watchers_of_another(aio, other):
    dead = asyncio.new_event_loop()
    left = aio_watch = dead.run_until_complete(entered(aio))
    dead.close()

    async def main():
        async with aio.watch("k/*") as changes:
            write(other, a=1)
            return (await changes.get(10)).value

    assert run(main()) == 1
    assert left is aio_watch
    del left, aio_watch
    gc.collect()
    eventually(lambda: subscriptions(aio) == 0)


async def entered(aio):
    watch = aio.watch("k/*")
    return await watch.__aenter__()


def test_watch_delivers_what_changed_while_redis_was_away(make_memsync, own_server):
    aio, other = AsyncMemSync(make_memsync(url=own_server.url)), make_memsync(url=own_server.url)

    async def main():
        async with aio.watch("k/*") as changes:
            own_server.stop()
            own_server.start()
            write(other, a=1)
            return (await changes.get(20)).value

    assert run(main()) == 1
