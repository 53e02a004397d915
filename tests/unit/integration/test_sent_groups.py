"""Counting the members of a group harms neither its sending nor the task that sends it."""
from __future__ import annotations

import pytest
from celery import canvas
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync.integration.sent_groups import count_sent_groups


class Struck:
    """A group whose members are counted at the moment when a soft time limit strikes."""

    tasks = ()

    def __len__(self):
        raise SoftTimeLimitExceeded


def test_soft_time_limit_strikes_a_task_that_sends_a_group():
    count_sent_groups()

    with pytest.raises(SoftTimeLimitExceeded):
        list(canvas.group._apply_tasks(Struck(), iter([(None, None, "g1")])))
