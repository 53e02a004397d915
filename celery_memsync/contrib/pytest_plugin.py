"""The pytest plugin: fixtures for tests of tasks; pytest finds it by the entry point ``memsync``.

Only what a test uses is imported: the plugin is loaded in every run of pytest, also where no test is about tasks.  For the
same reason Celery's own fixtures are not loaded here, and because a project's fixtures must go before them.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..app import MemSync

#: Setting in pytest's configuration, and variable of the environment that goes before it: URL of a Redis to use.
OPTION, VARIABLE = "memsync_redis_url", "MEMSYNC_TEST_REDIS_URL"


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
    from . import testing

    if not testing.is_in_use(memsync):
        pytest.fail("memsync_worker needs the fixture memsync of the plugin, and this project has one of that name; rename "
                    "it, or let it return the plugin's: def memsync(memsync)", pytrace=False)
    return _worker(request, "celery_worker")


@pytest.fixture(scope="session")
def memsync_session_worker(request: pytest.FixtureRequest, _memsync_session: MemSync) -> Any:
    """A worker for the whole session: ``celery_session_worker`` of Celery; `memsync` is its app's then."""
    return _worker(request, "celery_session_worker")


@pytest.fixture
def wait_for(memsync: MemSync) -> Callable[..., Any]:
    """Function that waits for a task or a condition: ``wait_for(result, timeout=10.0)``, ``wait_for(lambda: ...)``.

    See :func:`.testing.wait_for`.
    """
    from functools import partial

    from . import testing

    return partial(testing.wait_for, memsync)


@pytest.fixture
def assert_progress(memsync: MemSync) -> Callable[..., dict[str, Any]]:
    """Function that waits until a task has reported a progress: ``assert_progress(result, 40, message="reading")``.

    See :func:`.testing.assert_progress`.
    """
    from functools import partial

    from . import testing

    return partial(testing.assert_progress, memsync)


def _fixture_of_celery(request: pytest.FixtureRequest, name: str) -> Any:
    """Return one of Celery's fixtures, which may be one of the project's own."""
    try:
        return request.getfixturevalue(name)
    except pytest.FixtureLookupError as exc:
        if exc.argname != name:
            raise
    pytest.fail(f"memsync needs the fixture {name} of Celery; put pytest_plugins = [\"celery.contrib.pytest\"] into the "
                "conftest.py at the root of the tests", pytrace=False)


def _worker(request: pytest.FixtureRequest, name: str) -> Any:
    from celery.contrib.testing import tasks  # noqa: F401 # Celery's fixture sends one, and a project's app lacks it

    from ..integration.bootstep import HeartbeatStep

    worker = _fixture_of_celery(request, name)
    if worker is not None and not any(isinstance(step, HeartbeatStep) for step in worker.steps):
        pytest.fail(f"the fixture {name} began before memsync, so its worker records nothing: use memsync_worker "
                    f"instead of {name}, or name it first", pytrace=False)
    return worker


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        from ..exceptions import StoreError

        if not isinstance(exc, StoreError):
            raise
        pytest.fail(f"memsync_server: {exc}; or name a Redis in {VARIABLE} or in pytest's setting {OPTION}", pytrace=False)
