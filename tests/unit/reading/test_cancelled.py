"""A process knows what is cancelled without a round trip in the caller."""
from __future__ import annotations

import threading
import time
import uuid

import pytest

from celery_memsync import InvalidKey, InvalidValue, TaskCancelled
from celery_memsync.reading import cancelled
from tests.support.redis_calls import calls_of, round_trips
from tests.support.waiting import eventually


def threads():
    return [thread.name for thread in threading.enumerate()]


def test_follower_learns_of_what_was_and_of_what_is_cancelled(memsync, other):
    seen = []
    other.cancel("t1", "before")
    memsync.runtime.cancelled.follow(lambda new: seen.extend(one.id for one in new))

    other.cancel("t2", "after")

    assert seen[0] == "t1"
    eventually(lambda: seen == ["t1", "t2"])
    assert memsync.runtime.cancelled.find(["x", "t2"]).reason == "after"


def test_follower_learns_of_what_was_cancelled_while_its_connection_was_lost(memsync, other, redis):
    seen = []
    memsync.runtime.cancelled.follow(lambda new: seen.extend(one.id for one in new))
    eventually(lambda: memsync.runtime.link.subscription_line(other.runtime.store.cancelled_path))

    redis.client_kill_filter(_type="pubsub")
    other.cancel("t1")

    eventually(lambda: seen == ["t1"])


def test_process_that_watches_reads_until_its_last_watch_is_gone(memsync, other, redis):
    ids = memsync.runtime.cancelled
    assert "memsync-cancelled" not in threads()
    watch = ids.watch()

    other.cancel("t1")

    eventually(lambda: "t1" in ids.known)
    del watch
    eventually(lambda: reads_in_a_second(redis) == 0)


def reads_in_a_second(redis):
    redis.config_resetstat()
    until = time.monotonic() + 2.5 * cancelled.POLL_INTERVAL
    eventually(lambda: time.monotonic() > until)
    return calls_of(redis).get("zrangebyscore", 0)


def test_first_look_waits_for_one_answer_and_no_other_does(memsync, other):
    ids = memsync.runtime.cancelled
    other.cancel("t1")
    watch = ids.watch()

    ids.wait_fresh()

    assert watch and ids.find(["t1"])
    assert round_trips(memsync, lambda: [ids.wait_fresh(), ids.find(["t1"])]) == 0


def test_first_look_ends_while_redis_is_away(make_memsync):
    ids = make_memsync(url="redis://127.0.0.1:1").runtime.cancelled

    ids.wait_fresh()

    assert ids.find(["t1"]) is None


def test_what_is_known_expires(memsync, other, monkeypatch):
    ids = memsync.runtime.cancelled
    other.cancel("t1")
    ids.read()
    assert "t1" in ids.known

    later = memsync.runtime.store.clock.now() + 2 * 86400
    monkeypatch.setattr(memsync.runtime.store.clock, "now", lambda: later)
    other.cancel("t2")
    ids.read()

    assert ids.known == {}


def test_what_a_task_knew_at_its_begin_is_fresh_for_a_moment(memsync, other):
    ids = memsync.runtime.cancelled
    other.cancel("t1")

    assert round_trips(memsync, lambda: ids.wait_fresh(time.monotonic())) == 0
    ids.wait_fresh(time.monotonic() - 10)

    assert ids.find(["t1"])


def test_one_task_alone_waits_for_a_redis_that_does_not_answer(make_memsync, own_server):
    ids = make_memsync(url=own_server.url, timeout=3.0).runtime.cancelled
    own_server.pause()

    took = [waited(ids.wait_fresh) for _ in range(20)]

    own_server.resume()
    assert 0.9 < sum(took) < 2.0
    watch = ids.watch()
    eventually(lambda: not ids._is_away and watch)


def waited(call):
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_process_that_only_cancels_keeps_nothing(memsync):
    for number in range(20):
        memsync.cancel(f"t{number}")

    assert memsync.runtime.cancelled.known == {}
    assert "memsync-cancelled" not in threads()


def test_follower_is_called_again_if_what_it_knows_is_to_be_terminated(memsync, other):
    seen = []
    memsync.runtime.cancelled.follow(lambda new: seen.extend((one.id, one.terminate) for one in new))

    other.cancel("t1")
    eventually(lambda: seen == [("t1", False)])
    other.cancel("t1")
    other.cancel("t1", terminate=True)

    # It may be called twice: what is read in two steps changes meanwhile.
    eventually(lambda: ("t1", True) in seen)
    assert seen.count(("t1", False)) == 1


def test_follower_knows_at_once_what_its_own_process_cancels(memsync):
    seen = []
    memsync.runtime.cancelled.follow(lambda new: seen.extend(one.id for one in new))

    memsync.cancel("t1")

    assert memsync.runtime.cancelled.find(["t1"])
    eventually(lambda: seen == ["t1"])


def test_follower_restores_what_redis_has_lost(memsync, other, redis):
    ids = memsync.runtime.cancelled
    ids.follow(lambda new: None)
    for number in range(300):
        other.cancel(f"t{number}", "for good")
    eventually(lambda: len(ids._until) == 300)

    redis.flushall()
    ids.request()

    found = eventually(lambda: len(rows := other.runtime.store.read_cancelled().rows) == 300 and rows)
    assert {(one.id, one.reason) for one, _ in found} == {(f"t{number}", "for good") for number in range(300)}


def test_follower_that_was_paused_reads_what_it_has_missed(memsync, other, monkeypatch):
    ids = memsync.runtime.cancelled
    ids.follow(lambda new: None)
    eventually(lambda: ids.stale_at < float("inf"))
    monkeypatch.setattr(ids, "on_message", lambda path: None)
    other.cancel("t1")
    assert round_trips(memsync, ids.catch_up) == 0

    monkeypatch.setattr(ids, "stale_at", 0.0)
    ids.catch_up()

    assert ids.find(["t1"])


def test_follower_waits_once_for_a_redis_that_does_not_answer(make_memsync, own_server):
    ids = make_memsync(url=own_server.url, timeout=3.0).runtime.cancelled
    ids.follow(lambda new: None)
    eventually(lambda: ids.stale_at < float("inf"))
    own_server.pause()

    ids.stale_at = 0.0
    took = sum(waited(ids.catch_up) for _ in range(20))

    own_server.resume()
    assert took < 2.0


def test_uuid_of_a_message_is_found(memsync):
    found = uuid.uuid4()
    memsync.cancel(found)
    memsync.runtime.cancelled.read()

    assert memsync.runtime.cancelled.find([found])


@pytest.mark.parametrize("ids", [[None], [7], [["t1"]], [{}], []])
def test_find_takes_whatever_comes_with_a_message(memsync, ids):
    memsync.cancel("t1")
    memsync.runtime.cancelled.read()

    assert memsync.runtime.cancelled.find(ids) is None


def test_cancel_says_which_status_the_task_had(memsync):
    memsync.sync_task_state("t1", {"status": "SUCCESS"})

    assert memsync.cancel("t1") == "SUCCESS"
    assert memsync.cancel("unknown") is None


@pytest.mark.parametrize("cancelled_id, reason, error", [
    ("", None, InvalidKey), ("a/b", None, InvalidKey), (7, None, InvalidKey), ("t1", 7, InvalidValue)])
def test_bad_id_or_reason_raises_at_once(make_memsync, cancelled_id, reason, error):
    memsync = make_memsync(url="redis://127.0.0.1:1")

    with pytest.raises(error):
        memsync.cancel(cancelled_id, reason)


def test_reason_is_redacted_and_cut(make_memsync):
    memsync = make_memsync(redact="tests.unit.reading.test_cancelled:hide")

    memsync.cancel("t1", "the secret " + "x" * 2000)
    memsync.runtime.cancelled.read()

    reason = memsync.runtime.cancelled.known["t1"].reason
    assert reason.startswith("the ****** x")
    assert len(reason) == 1000


def hide(text):
    return text.replace("secret", "******")


def test_error_says_who_when_and_why():
    error = TaskCancelled("web1:7", "t0", 1796034720.0, "too late")

    assert str(error) == "cancelled by web1:7 in task t0 at 2026-11-30 10:32:00Z: too late"
    assert (error.worker_id, error.task_id, error.at, error.reason) == ("web1:7", "t0", 1796034720.0, "too late")
