"""Cancelled tasks join the ids that Celery's worker skips."""
from __future__ import annotations

import pytest
from celery.utils.collections import LimitedSet

from celery_memsync.exceptions import TaskCancelled
from celery_memsync.integration.revokes import RevokedTasks


class EarlierSet(LimitedSet):
    """As it compares before Celery 5.7."""

    def __eq__(self, other):
        return self._data == other._data

    __hash__ = None


@pytest.mark.parametrize("kind", [LimitedSet, EarlierSet])
def test_a_cancelled_task_is_skipped_by_the_worker_of_each_celery(kind, monkeypatch):
    revoked, recorded = RevokedTasks(None), []
    monkeypatch.setattr(revoked, "add", lambda task_ids, cause: recorded.extend(task_ids))
    revoked.known = kind(maxlen=10)

    revoked.skip("t1", TaskCancelled("not needed"))

    assert "t1" in revoked.known and recorded == ["t1"]


def test_a_process_that_is_no_worker_skips_nothing():
    revoked = RevokedTasks(None)

    revoked.skip("t1", TaskCancelled("not needed"))

    assert "t1" not in revoked.known and not revoked.known
