"""A cluster, and Sentinels with their servers, under one fault of each kind while workers and callers use them."""
from __future__ import annotations

import random

import pytest

from tests.faults.servers import TOPOLOGIES, ClusterServers
from tests.faults.soak import Soak, draw

#: Faults that others show, or that take long.
LEFT_OUT = {"kill replica", "stop master"}


@pytest.mark.acceptance
@pytest.mark.timeout(300)
@pytest.mark.parametrize("topology", ["cluster", "sentinel"])
def test_callers_receive_no_wrong_answer(tmp_path, topology):
    soak = Soak(tmp_path, seed=1, longest=1.0, topology=topology)
    try:
        soak.start()
        for kind in ("kill main", *TOPOLOGIES[topology].kinds):
            if kind not in LEFT_OUT:
                soak.inject(kind)
        wrong = soak.settle()
    finally:
        soak.close()

    assert wrong == []
    assert len(soak.callers.rows) > 500


def test_a_seed_gives_the_same_faults():
    def drawn(seed):
        chance = random.Random()
        for number in range(20):
            yield draw(chance, seed, number, ClusterServers.kinds), chance.random()
            chance.random()

    assert list(drawn(1)) == list(drawn(1)) != list(drawn(2))
