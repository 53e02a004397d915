"""Every kind of fault, one after the other, while workers run tasks; a judge checks the records."""
from __future__ import annotations

import pytest

from tests.faults.servers import OneServer
from tests.faults.soak import KINDS, Soak
from tests.support.stress import stressed


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    soak = Soak(tmp_path_factory.mktemp("soak"), seed=1, longest=1.0).start()
    yield soak
    soak.close()


@pytest.mark.parametrize("kind", stressed(KINDS + OneServer.kinds, (KINDS + OneServer.kinds)[::2]))
def test_tasks_are_done_and_recorded_after_each_fault(soak, kind):
    assert soak.inject(kind) < 60


@pytest.mark.acceptance
def test_all_records_are_right_after_all_faults(soak):
    wrong = soak.settle()

    assert wrong == []
    assert soak.sent
