"""A worker whose Redis sends wrong answers: its tasks do not notice."""
from __future__ import annotations

import random
import signal

from tests.support.lying_proxy import ANSWERS, Liar
from tests.support.waiting import eventually


def test_tasks_end_normally_when_redis_sends_wrong_answers(make_fleet, store):
    chance = random.Random(7)

    def lie():
        if chance.random() < 0.6:
            return None
        return chance.choice([*ANSWERS, chance.randbytes(chance.randrange(40))])

    with Liar(store.port) as liar:
        fleet = make_fleet(store=liar)
        worker = fleet.worker("-c", "2")
        liar.lies = lie
        worker.start()

        counted = [fleet.send("count_to", 200) for _ in range(5)]
        added = [fleet.send("add", number, 1) for number in range(50)]
        failed = fleet.send("fail")

        assert [result.get(timeout=60) for result in added] == list(range(1, 51))
        assert all(result.get(timeout=60) for result in counted)
        assert str(failed.get(timeout=60, propagate=False)) == "it went wrong"
        liar.lies = lambda: None
        after = fleet.send("add", 1, 2)
        eventually(lambda: fleet.status(after.id) == "SUCCESS", timeout=30)
        worker.stop(signal.SIGTERM)

    log = worker.output().replace("Traceback (most recent call last)", "", 1)  # that of the task that fails
    assert "Traceback" not in log
