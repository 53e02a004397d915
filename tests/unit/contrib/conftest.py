"""Fixtures: a MemSync whose tokens are signed, and an application that shows its tasks."""
from __future__ import annotations

import pytest
from celery import Celery
from starlette.applications import Starlette
from starlette.routing import Route

from celery_memsync import MemSync
from celery_memsync.contrib import asgi, live_tasks


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


@pytest.fixture
def site(app):
    """An application with the endpoint, which is its ``progress``."""
    endpoint = asgi.progress(app)
    site = Starlette(routes=[Route("/progress/{token}", endpoint), Route("/progress", endpoint)])
    site.progress = endpoint
    return site


@pytest.fixture
def quick(monkeypatch):
    """Streams that send comments, and look for Redis, many times a second."""
    for module, name, seconds in (
        (asgi, "KEEP_ALIVE", 0.05), (live_tasks, "LOOK_INTERVAL", 0.05), (live_tasks, "READ_PAUSE", 0.01)):
        monkeypatch.setattr(module, name, seconds)
