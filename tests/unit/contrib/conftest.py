"""Fixtures: a MemSync whose tokens are signed, an application that shows its tasks, and tasks with bars of tqdm."""
from __future__ import annotations

import pytest
from celery import Celery
from starlette.applications import Starlette
from starlette.routing import Route
from tqdm import std

from celery_memsync import MemSync
from celery_memsync.contrib import asgi, live_tasks
from celery_memsync.contrib.testing import own_state
from celery_memsync.contrib.tqdm import tqdm


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


@pytest.fixture
def memsync(redis_url):
    """The manager of an app whose tasks run eagerly."""
    with own_state(Celery("bars", broker="memory://", set_as_current=False), redis_url) as memsync:
        yield memsync


@pytest.fixture
def own_lock(monkeypatch):
    """A task changes the lock of all bars; another test begins with that of tqdm."""
    for bar in (std.tqdm, tqdm):
        monkeypatch.setattr(bar, "_lock", std.TqdmDefaultWriteLock(), raising=False)


@pytest.fixture
def run(memsync):
    """Runs a function as the body of a task; returns what its progress was at the end of that."""
    def run(body):
        def run_body():
            body()
            return memsync.get_task_progress("t1")

        return memsync.app.task(name=body.__qualname__, shared=False)(run_body).apply(task_id="t1").get(
            disable_sync_subtasks=False)

    return run
