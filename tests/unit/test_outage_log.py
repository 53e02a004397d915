"""An outage of Redis in the log: its begin once for a process, and its end once."""
from __future__ import annotations

import pytest

from celery_memsync import StoreRefused, StoreUnavailable
from celery_memsync.background_loop import BackgroundLoop
from tests.support.waiting import eventually


def unavailable(address="h:1/0"):
    error = StoreUnavailable(f"Could not do it (Redis at {address}): it is away.")
    error.address = address
    return error


def wrong_password(address="h:1/0"):
    error = StoreRefused(f"Could not do it (Redis at {address}): it refuses the password", "WRONGPASS")
    error.address = address
    return error


@pytest.mark.parametrize("error, cause", [(unavailable, "it is away."), (wrong_password, "it refuses the password.")])
def test_an_outage_is_logged_by_one_loop_of_a_process(caplog, error, cause):
    caplog.set_level("INFO")
    away = [True]

    def fail():
        if away[0]:
            raise error()

    loops = [BackgroundLoop(f"a-test-{number}", fail, 0.01) for number in range(3)]
    for loop in loops:
        loop.start()
    eventually(lambda: all(loop._failures > 1 for loop in loops))
    away[0] = False
    eventually(lambda: not any(loop._failures for loop in loops))
    for loop in loops:
        loop.stop(1)

    begin, end = [message for message in caplog.messages if "h:1/0" in message]
    assert begin == f"Could not do it (Redis at h:1/0): {cause} Trying again until it answers"
    assert end.startswith("Redis at h:1/0 answers again after ")


def test_each_outage_of_a_redis_is_logged(caplog):
    caplog.set_level("INFO")
    outcomes = [unavailable(), None, unavailable(), unavailable(), None]

    def act():
        outcome = outcomes.pop(0) if outcomes else None
        if outcome is not None:
            raise outcome

    loop = BackgroundLoop("a-test", act, 0.01)
    loop.start()
    eventually(lambda: not outcomes and not loop._failures)
    loop.stop(1)

    assert len([message for message in caplog.messages if "Trying again" in message]) == 2


def test_a_loop_that_ends_during_an_outage_leaves_the_next_one_to_others(caplog):
    caplog.set_level("INFO")

    def fail():
        raise unavailable("h:3/0")

    for _ in range(2):
        loop = BackgroundLoop("a-test", fail, 0.01)
        loop.start()
        eventually(lambda: loop._failures)
        loop.stop(1)

    assert len([message for message in caplog.messages if "h:3/0" in message]) == 2
