"""Second tries of a write that expects a version: done once, and never a conflict with oneself."""
from __future__ import annotations

import threading
from itertools import count

import pytest

from celery_memsync import ConflictError, StoreUnavailable
from celery_memsync.writing import unanswered
from celery_memsync.writing.unanswered import Unanswered, maybe_done_is


@pytest.fixture
def others(make_memsync):
    """Three more processes."""
    return [make_memsync(batch_interval=60.0) for _ in range(3)]


def lose(memsync, proxy, version, value="mine", key="a"):
    """Write so that the answer is lost."""
    proxy.cut(b"EVALSHA", 2)
    with pytest.raises(StoreUnavailable) as caught:
        memsync.write(key, value, expected_version=version)
    assert caught.value.maybe_done


def overwrite(writers, key="a"):
    """Write once for each of others."""
    for writer in writers:
        entry = writer.read_entry(key, consistent=True)
        writer.write(key, writer.worker_id, expected_version=entry.version)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_same_call_again_is_done_once(proxied, other, proxy, version):
    for number in range(version):
        other.write("a", number, expected_version=number)
    lose(proxied, proxy, version)

    entry = proxied.write("a", "mine", expected_version=version)

    assert entry.version == other.read_entry("a").version == version + 1
    assert len(proxied.runtime.writer.unanswered) == 0


def test_the_same_call_again_upon_what_was_deleted_has_the_version_that_is_stored(proxied, other, proxy):
    other.write("a", 1, expected_version=0)
    other.delete("a")
    other.force_sync()
    lose(proxied, proxy, 0)

    entry = proxied.write("a", "mine", expected_version=0)

    assert entry.version == other.read_entry("a").version


@pytest.mark.parametrize("number", [1, 2])
def test_the_same_call_again_is_known_after_some_others(proxied, others, proxy, number):
    lose(proxied, proxy, 0)
    overwrite(others[:number])

    entry = proxied.write("a", "mine", expected_version=0)

    assert entry.version == 1
    assert others[0].read_entry("a").version == number + 1


def test_after_many_others_it_can_not_be_known_and_is_no_conflict(proxied, others, proxy):
    lose(proxied, proxy, 0)
    overwrite(others)

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="can't be known") as caught:
            proxied.write("a", "mine", expected_version=0)
        assert caught.value.maybe_done

    with pytest.raises(ConflictError):
        proxied.write("a", "mine", expected_version=1)


def pretend_lost(memsync, version):
    """Let a process remember a write that got no answer, and that Redis never received."""
    location, calls = memsync.runtime.store.keys.location("a"), memsync.runtime.writer.unanswered
    with pytest.raises(KeyboardInterrupt), calls.attempt(location, unanswered.digest_of(b'"mine"'), version):
        raise KeyboardInterrupt


def test_a_call_that_was_never_stored_conflicts(memsync, others):
    others[0].write("a", 0, expected_version=0)
    pretend_lost(memsync, 1)
    overwrite(others[:2])

    with pytest.raises(ConflictError) as caught:
        memsync.write("a", "mine", expected_version=1)

    assert caught.value.version == 3


def test_same_call_after_a_minute_counts_as_a_new_one(memsync, others, monkeypatch):
    others[0].write("a", 0, expected_version=0)
    pretend_lost(memsync, 1)
    overwrite(3 * others)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="can't be known"):
            memsync.write("a", "mine", expected_version=1)

    monkeypatch.setattr(unanswered.time, "monotonic", lambda now=unanswered.time.monotonic(): now + 61)

    with pytest.raises(ConflictError):
        memsync.write("a", "mine", expected_version=1)


def test_a_stale_version_is_a_conflict_however_many_have_written(memsync, others):
    memsync.write("a", 0, expected_version=0)
    overwrite(others)

    with pytest.raises(ConflictError):
        memsync.write("a", "mine", expected_version=1)


def test_own_writes_since_do_not_pass_for_the_one_that_was_lost(memsync, other):
    pretend_lost(memsync, 1)
    memsync.write("a", "later")
    memsync.force_sync()

    entry = memsync.write("a", "mine", expected_version=1)

    assert (entry.version, other.read("a")) == (2, "mine")


# -- remembered calls


def attempt_call(calls, *arguments, error=None):
    with calls.attempt(*arguments) as attempt:
        if error is not None:
            raise error
    return attempt


def test_a_call_without_an_answer_has_its_number_again_and_once():
    calls = Unanswered(count(1))
    with pytest.raises(StoreUnavailable):
        attempt_call(calls, "a", 1, error=StoreUnavailable("lost", maybe_done=True))

    other, again, fresh = (attempt_call(calls, "a", number) for number in (2, 1, 1))

    assert [(one.number, one.maybe_done) for one in (other, again, fresh)] == [(2, False), (1, True), (3, False)]


@pytest.mark.parametrize("error", [
    StoreUnavailable("refused"), ConflictError("a", 1)], ids=lambda error: type(error).__name__)
def test_what_was_not_sent_or_was_answered_is_not_remembered(error):
    calls = Unanswered(count(1))

    with pytest.raises(type(error)):
        attempt_call(calls, "a", error=error)

    assert len(calls) == 0


def test_an_interrupted_call_is_remembered():
    calls = Unanswered(count(1))

    with pytest.raises(KeyboardInterrupt):
        attempt_call(calls, "a", error=KeyboardInterrupt())

    assert attempt_call(calls, "a").maybe_done


def test_a_second_try_that_is_not_sent_may_be_done_still():
    calls = Unanswered(count(1))
    with pytest.raises(StoreUnavailable):
        attempt_call(calls, "a", error=StoreUnavailable("lost", maybe_done=True))

    with pytest.raises(StoreUnavailable) as caught:
        attempt_call(calls, "a", error=StoreUnavailable("refused", code="OOM"))

    assert (caught.value.maybe_done, caught.value.code) == (True, "OOM")
    assert attempt_call(calls, "a").number == 1


def test_number_of_remembered_calls_is_bounded(monkeypatch):
    calls = Unanswered(count(1))
    for number in range(unanswered.MAX_CALLS + 10):
        with pytest.raises(StoreUnavailable):
            attempt_call(calls, number, error=StoreUnavailable("lost", maybe_done=True))
    monkeypatch.setattr(unanswered.time, "monotonic", lambda now=unanswered.time.monotonic(): now + unanswered.MEMORY + 60)

    assert len(calls) == unanswered.MAX_CALLS
    assert not attempt_call(calls, unanswered.MAX_CALLS).maybe_done
    assert len(calls) == 0


def test_of_many_threads_one_has_the_number():
    calls, had = Unanswered(count(1)), []
    with pytest.raises(StoreUnavailable):
        attempt_call(calls, "a", error=StoreUnavailable("lost", maybe_done=True))
    threads = [
        threading.Thread(target=lambda: had.append(attempt_call(calls, "a").number))
        for _ in range(20)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(had)[:2] == [1, 2] and len(set(had)) == 20


@pytest.mark.parametrize("given, wanted", [(True, False), (False, True), (True, True)])
def test_error_of_another_call_has_the_outcome_of_this_one(given, wanted):
    with pytest.raises(StoreUnavailable, match="away") as caught:
        with maybe_done_is(wanted):
            raise StoreUnavailable("away", maybe_done=given, code="OOM")

    assert (caught.value.maybe_done, caught.value.code) == (wanted, "OOM")
