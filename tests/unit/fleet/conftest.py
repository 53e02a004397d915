"""Fixtures: messages that were delivered to the process of a test."""
from __future__ import annotations

import pytest

from tests.support.deliveries import Deliveries


@pytest.fixture
def make_deliveries(redis_url):
    """Makes what takes messages from the Redis of the test."""
    made, renewals = [], []

    def make(url=redis_url, **options):
        deliveries = Deliveries(url, **options)
        made.append(deliveries)
        renew = deliveries.renewal
        deliveries.renewal = lambda *args: renewals.append(renew(*args)) or renewals[-1]
        return deliveries

    yield make
    for renewal in renewals:
        renewal.stop()
    for deliveries in made:
        deliveries.close()


@pytest.fixture
def deliveries(make_deliveries):
    return make_deliveries()
