"""The deadline of a call: the earlier end counts, and nothing of it is left behind."""
from __future__ import annotations

import threading
from contextvars import copy_context

from celery_memsync.deadline import Deadline, current, remaining, within


def test_earlier_end_counts():
    left = within(10.0, within, 60.0, remaining), within(60.0, within, 10.0, remaining)

    assert all(9.0 < one <= 10.0 for one in left)


def test_deadline_ends_with_its_call():
    kept = within(10.0, current)

    assert kept.end == float("inf")
    assert current() is None


def test_call_in_a_handler_of_a_signal_has_a_deadline_of_its_own():
    left = within(0.0, Deadline(10.0).run, remaining)

    assert 9.0 < left <= 10.0


def test_thread_that_is_started_in_a_call_has_not_its_deadline():
    def start():
        context = copy_context()
        thread = threading.Thread(target=lambda: found.append(context.run(remaining)))
        thread.start()
        thread.join()

    found = []

    within(10.0, start)

    assert found == [float("inf")]
