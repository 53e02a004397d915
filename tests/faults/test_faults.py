"""Every kind of fault, one after the other, while workers are at work; what is left is judged."""
from __future__ import annotations

import pytest

from tests.faults.servers import Memory
from tests.faults.soak import KINDS, Soak


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    soak = Soak(tmp_path_factory.mktemp("soak"), seed=1, longest=1.0).start()
    yield soak
    soak.close()


@pytest.mark.parametrize("kind", KINDS + Memory.kinds)
def test_after_a_fault_tasks_are_done_and_told_as_before(soak, kind):
    assert soak.inject(kind) < 60


@pytest.mark.acceptance
def test_after_all_faults_everything_is_told_as_it_was(soak):
    wrong = soak.settle()

    assert wrong == []
    assert soak.sent
