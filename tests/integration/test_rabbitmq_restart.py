"""A RabbitMQ that is killed and comes back."""
from __future__ import annotations

import pytest

from tests.support.rabbitmq_server import SERVER, RabbitServer


@pytest.mark.acceptance
@pytest.mark.skipif(SERVER is None, reason="no rabbitmq-server here; install it to run this")
def test_a_broker_that_was_restarted_finds_the_worker_again(make_fleet, tmp_path):
    broker = RabbitServer(tmp_path / "rabbit").start()
    try:
        fleet = make_fleet(broker)
        worker = fleet.start_worker("-c", "2")
        result = fleet.send("sleep", 8)
        fleet.wait(result, "STARTED")

        broker.stop()
        broker.start()

        fleet.wait(result, "SUCCESS", timeout=30)
        fleet.wait_record(worker, lambda record: record.consuming, timeout=60)
        fleet.wait(fleet.send("add", 1, 2), "SUCCESS", timeout=30)
    finally:
        broker.close()
