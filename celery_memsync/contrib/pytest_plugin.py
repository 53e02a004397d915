"""The pytest plugin: fixtures for tests of tasks; pytest finds it by the entry point ``memsync``.

Only what a test uses is imported: the plugin is loaded in every run of pytest, also where no test is about tasks.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..app import MemSync

#: Setting in pytest's configuration, and variable of the environment that goes before it: URL of a Redis to use.
OPTION, VARIABLE = "memsync_redis_url", "MEMSYNC_TEST_REDIS_URL"

#: Where Celery has its fixtures.
CELERY_PLUGIN = "celery.contrib.pytest"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting of this plugin."""
    parser.addini(OPTION, f"URL of the Redis for the fixture memsync_server; {VARIABLE} goes before it. "
                          "Without one a private redis-server is started.")


@pytest.fixture(scope="session")
def memsync_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """URL of a Redis for tests: a private server that ends with the session, or the one that is named.

    It is fit for ``memsync_backend``, ``broker_url`` and ``result_backend``.  Each process of pytest-xdist has a server of
    its own.
    """
    with _failing_clearly():
        from . import testing

        named = os.environ.get(VARIABLE) or pytestconfig.getini(OPTION)
        server: AbstractContextManager[str] = testing.named_server(named) if named else testing.private_server()
        with server as url:
            yield url


@pytest.fixture
def _memsync_app(request: pytest.FixtureRequest) -> Any:
    return _fixture_of_celery(request, "celery_app")


@pytest.fixture(scope="session")
def _memsync_session(request: pytest.FixtureRequest, memsync_server: str, _memsync_session_app: Any) -> Iterator[MemSync]:
    from . import testing

    with testing.own_state(_memsync_session_app, memsync_server) as memsync:
        yield memsync


@pytest.fixture(scope="session")
def _memsync_session_app(request: pytest.FixtureRequest) -> Any:
    return _fixture_of_celery(request, "celery_session_app")


@pytest.fixture
def memsync(request: pytest.FixtureRequest, memsync_server: str) -> Iterator[MemSync]:
    """The `MemSync` of ``celery_app``, in a namespace of its own; afterwards its keys are gone and its threads have ended.

    In a test that uses ``memsync_session_worker`` it is that of ``celery_session_app``, which all such tests share.
    """
    if "memsync_session_worker" in request.fixturenames:
        yield request.getfixturevalue("_memsync_session")
        return
    from . import testing

    with testing.own_state(request.getfixturevalue("_memsync_app"), memsync_server) as memsync:
        yield memsync


@pytest.fixture
def memsync_worker(request: pytest.FixtureRequest, memsync: MemSync) -> Any:
    """A worker for one test: ``celery_worker`` of Celery, whose state is in `memsync`."""
    return _taking_part(_fixture_of_celery(request, "celery_worker"))


@pytest.fixture(scope="session")
def memsync_session_worker(request: pytest.FixtureRequest, _memsync_session: MemSync) -> Any:
    """A worker for the whole session: ``celery_session_worker`` of Celery; `memsync` is its app's then."""
    return _taking_part(_fixture_of_celery(request, "celery_session_worker"))


@pytest.fixture
def wait_for(memsync: MemSync) -> Callable[..., Any]:
    """``wait_for(task_or_condition, timeout=10.0, status=None)``; see :func:`.testing.wait_for`."""
    from functools import partial

    from . import testing

    return partial(testing.wait_for, memsync)


@pytest.fixture
def assert_progress(memsync: MemSync) -> Callable[..., dict[str, Any]]:
    """``assert_progress(task, percent=None, *, ..., timeout=10.0)``; see :func:`.testing.assert_progress`."""
    from functools import partial

    from . import testing

    return partial(testing.assert_progress, memsync)


def _fixture_of_celery(request: pytest.FixtureRequest, name: str) -> Any:
    """Return a fixture of Celery's plugin, which is loaded now if no conftest has done it: it imports Celery."""
    plugins, module = request.config.pluginmanager, import_module(CELERY_PLUGIN)
    if not plugins.is_registered(module):
        plugins.register(module, CELERY_PLUGIN)
    return request.getfixturevalue(name)


def _taking_part(worker: Any) -> Any:
    from ..integration.bootstep import HeartbeatStep

    if worker is not None and not any(isinstance(step, HeartbeatStep) for step in worker.steps):
        pytest.fail("the worker of Celery's fixture began before the fixture memsync, so it records nothing: name "
                    "memsync_worker first among the arguments of the test", pytrace=False)
    return worker


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        from .. import StoreError

        if not isinstance(exc, StoreError):
            raise
        pytest.fail(f"memsync_server: {exc}; or name a Redis in {VARIABLE} or in pytest's setting {OPTION}", pytrace=False)
