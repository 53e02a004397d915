"""Fixtures: a MemSync whose tokens are signed."""
from __future__ import annotations

import pytest
from celery import Celery

from celery_memsync import MemSync


@pytest.fixture
def make_app(redis_url):
    """Makes a MemSync of an app."""
    made = []

    def make(url=redis_url, **settings):
        app = Celery("proj", set_as_current=False)
        made.append(MemSync(app, backend=url, signing_key="0123456789abcdef", batch_interval=60.0, **settings))
        return made[-1]

    yield make
    for memsync in made:
        memsync.shutdown(0.5)
        memsync.signals.disconnect()


@pytest.fixture
def app(make_app):
    """A MemSync on the Redis of the test."""
    return make_app()
