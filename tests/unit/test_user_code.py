"""Errors of user code are contained in threads of the package, and raised in any other."""
from __future__ import annotations

import functools
import logging

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import user_code
from celery_memsync.background_loop import BackgroundLoop
from celery_memsync.user_code import call_user_code, ends_here, message_of, name_of
from tests.support.raising import ENDS, Unspeakable, raiser
from tests.support.waiting import eventually


def in_library_thread(function):
    """Return what a function returns in a thread of the package."""
    answers = []
    loop = BackgroundLoop("a-test", lambda: answers.append(function()), 0, on_demand=True)
    loop.wake()
    eventually(lambda: answers)
    loop.stop(5)
    return answers[0]


def test_it_gets_its_arguments_and_its_answer_is_handed_on():
    assert call_user_code("A test", lambda *args, **kwargs: (args, kwargs), 1, what=2) == ((1,), {"what": 2})


@pytest.mark.parametrize("error", ENDS)
def test_in_a_thread_of_the_package_everything_ends_here(caplog, error):
    answer = in_library_thread(lambda: [call_user_code("A test", raiser(error())), ends_here(error())])

    assert answer == [None, True]
    assert "A test raised (tests.support.raising.raiser.<locals>.handler)" in caplog.text


@pytest.mark.parametrize("error", ENDS)
def test_in_a_thread_of_a_caller_what_ends_a_task_or_process_goes_on(error):
    with pytest.raises(error):
        call_user_code("A test", raiser(error()))


def test_in_a_thread_of_a_caller_other_errors_are_logged(caplog):
    assert call_user_code("A test", lambda: 1 / 0) is None
    assert "A test raised" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_handler_of_the_log_that_raises_is_user_code_too():
    class Spiteful(logging.Handler):
        def handle(self, record):
            raise SystemExit(3)

    handler = Spiteful()
    user_code.logger.addHandler(handler)
    try:
        answer = in_library_thread(lambda: [call_user_code("A test", raiser(ValueError()))])
    finally:
        user_code.logger.removeHandler(handler)

    assert answer == [None]


@pytest.mark.parametrize("error, message", [
    (ValueError("no"), "no"), (ValueError(), "ValueError"), (SystemExit(), "SystemExit"), (Unspeakable(), "Unspeakable"),
    (SoftTimeLimitExceeded(), "SoftTimeLimitExceeded()"),
])
def test_an_exception_is_shown_whatever_it_is(error, message):
    assert message_of(error) == message


@pytest.mark.parametrize("function, name", [
    (raiser, "tests.support.raising.raiser"), (functools.partial(print), "partial"),
])
def test_what_was_called_is_named(function, name):
    assert name_of(function) == name
