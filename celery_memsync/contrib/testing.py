"""What the fixtures of :mod:`.pytest_plugin` do."""
from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from ..activation import activate
from ..app import MemSync
from ..exceptions import StoreRefused
from ..integration.bootstep import GOODBYE
from ..keys import check_id, new_token
from ..manager import MemorySyncManager
from ..models.order import FINAL
from ..records.checks import check_timeout
from ..store import embedded
from ..store.client import connect
from ..urls import as_redis_py, is_cluster
from ..writing.progress import RESERVED

#: Seconds that a wait lasts unless the test says otherwise.
TIMEOUT = 10.0

#: Most seconds between two looks at a condition; a change in the namespace comes at once.
INTERVAL = 0.05

#: Seconds between two batches of a writer: tests wait for them.
BATCH_INTERVAL = 0.01

#: What a failure shows of a progress, beside the task's own fields.
SHOWN = ("progress", "current", "total", "message", "phase")

#: How exact a percentage is that Redis has.
ROUNDING = 0.001

#: Those that have a state of their own now.
_in_use: set[Any] = set()


@contextlib.contextmanager
def private_server() -> Iterator[str]:
    """Start a redis-server of this process's own and yield its URL; it ends with the block, or with the process.

    Raises:
        StoreError: If there is no redis-server, or it does not start.
    """
    folder = tempfile.mkdtemp(prefix="memsync-test-")
    try:
        embedded.start(folder, temporary=True)
        yield f"redis+socket://{embedded.socket_path(folder)}"
    finally:
        embedded.leave(folder)
        shutil.rmtree(folder, ignore_errors=True)  # if there was no server to start


@contextlib.contextmanager
def named_server(url: str) -> Iterator[str]:
    """Yield the URL of a server that runs.

    Raises:
        StoreError: If it can't be reached, or is a cluster.
    """
    if is_cluster(url):
        raise StoreRefused("the Redis of tests can't be a cluster; name one server")
    with MemorySyncManager(url=url) as memsync:
        memsync.runtime.store.ping()
    yield url


@contextlib.contextmanager
def own_state(app: Any, url: str) -> Iterator[MemSync]:
    """Let the `MemSync` of an app use a namespace of its own for the length of a block, and remove what is there then.

    Bad values raise, also in a worker of this process, unless the app sets ``memsync_strict``.  What Celery's test app has
    in the memory of the process, broker and results, is there, too: that takes a tenth of the time, and works with
    ``prefork``.  Other settings stay as the app has them.  A block inside of another one for the same app, as in a session
    with a worker, uses the state of that.
    """
    if getattr(app, "memsync", None) in _in_use:
        yield app.memsync
        return
    is_new, namespace = not isinstance(getattr(app, "memsync", None), MemSync), f"test-{new_token()}"
    memsync = activate(app)
    given, strict = memsync.environment.given, app.conf.get("memsync_strict", True)
    conf = dict(app.conf.changes)
    memsync.shutdown()
    memsync.environment.given = {
        "strict": strict, **given, "backend": url, "backend_options": {}, "namespace": namespace,
        "batch_interval": BATCH_INTERVAL, "enabled": True}
    memsync.signals.connect()
    _in_use.add(memsync)
    app.conf.update(_instead_of_memory(app.conf, url, namespace))
    try:
        yield memsync
    finally:
        _in_use.discard(memsync)
        _await_goodbye()
        memsync.shutdown()
        if app.conf.result_backend == url:
            _forget_results(app.backend)
        if is_new:
            memsync.signals.disconnect()  # of an app whose end may be noticed later
        memsync.environment.given, memsync.node_name, memsync.in_worker = given, None, False
        # A worker has written the settings of its children there.
        app.conf.changes.clear()
        app.conf.changes.update(conf)
        _remove_keys(url, namespace)


def is_in_use(memsync: Any) -> bool:
    """Return whether something is a `MemSync` that has a state of its own now."""
    return any(memsync is one for one in _in_use)


def _instead_of_memory(conf: Any, url: str, namespace: str) -> dict[str, Any]:
    options = {"global_keyprefix": f"{namespace}/celery/"}
    broker = {"broker_url": url, "broker_transport_options": options}
    results = {"result_backend": url, "result_backend_transport_options": options}
    return {
        **(broker if conf.get("broker_url") == "memory://" else {}),
        **(results if conf.get("result_backend") == "cache+memory://" else {})}


def _forget_results(backend: Any) -> None:
    """End the subscription of an app's results.

    A result that outlives the server, as in the traceback of a test that failed, would try for 20 s to end it.
    """
    consumer = getattr(backend, "result_consumer", None)  # one that was made before is in memory
    if consumer is not None:
        consumer.stop()
        consumer.subscribed_to.clear()


def _await_goodbye() -> None:
    """Return when the worker has left whose fixture ended before: it does that in a thread."""
    for thread in threading.enumerate():
        if thread.name == GOODBYE:
            thread.join(TIMEOUT)


def _remove_keys(url: str, namespace: str) -> None:
    with connect(as_redis_py(url), {}) as client:
        keys = list(client.scan_iter(f"{namespace}/*", count=1000))
        if keys:
            client.unlink(*keys)


class Seen(NamedTuple):
    """What a look has found.

    Attributes:
        value: What the test gets if this is what it waits for.
        done: Whether it is.
        final: Whether further looks would find the same.
        describe: Returns it as a text, for the failure.
    """

    value: Any
    done: bool
    final: bool
    describe: Callable[[], str]


def wait_for(memsync: MemSync, what: Any, timeout: float = TIMEOUT, *, status: str | None = None) -> Any:
    """Wait until a condition is true, or a task has ended; look again whenever something changes in the namespace.

    Args:
        what: A function without arguments; one that raises is not true yet.  Or a result of Celery, or a task id.
        timeout: Most seconds to wait.
        status: The status of the task to wait for.  None: any that is final.

    Returns:
        What the function returned, or the state of the task.  The test fails if there is none in time.
    """
    __tracebackhide__ = True
    check_timeout(timeout)
    if callable(what):
        return _wait(memsync, lambda: _look_at_condition(what), timeout, "the condition is not true")
    task_id = _id_of(what)
    wanted = f"task {task_id} is not {status}" if status else f"task {task_id} has not ended"
    return _wait(memsync, lambda: _look_at_task(memsync, task_id, status), timeout, wanted)


def assert_progress(
    memsync: MemSync, task: Any, percent: float | None = None, *, at_least: float | None = None,
    message: str | re.Pattern[str] | None = None, timeout: float = TIMEOUT, **fields: Any,
) -> dict[str, Any]:
    """Wait until a task has reported a progress; fail at once if it has ended with another one.

    Args:
        task: A result of Celery, or a task id.
        percent: Exactly so many percent.
        at_least: At least so many percent.
        message: The text, or a pattern that is found in it.
        timeout: Most seconds to wait.
        fields: ``current``, ``total``, ``phase`` and what else `get_task_progress` returns.

    Returns:
        The progress as `get_task_progress` returns it.
    """
    __tracebackhide__ = True
    expected = {"progress": percent, "at_least": at_least, "message": message}
    expected = {**{name: value for name, value in expected.items() if value is not None}, **fields}
    task_id = _id_of(task)
    progress: dict[str, Any] = _wait(
        memsync, lambda: _look_at_progress(memsync, task_id, expected), timeout,
        f"the progress of task {task_id} is not as expected")
    return progress


def _wait(memsync: MemSync, look: Callable[[], Seen], timeout: float, failure: str) -> Any:
    __tracebackhide__ = True
    seen = _look_until(memsync, look, time.monotonic() + timeout)
    if not seen.done:
        pytest.fail(f"{failure} {'at its end' if seen.final else f'after {timeout:g} s'}: {seen.describe()}")
    return seen.value


def _look_until(memsync: MemSync, look: Callable[[], Seen], deadline: float) -> Seen:
    memsync.force_sync()
    seen = look()
    if seen.done or seen.final:
        return seen
    with memsync.watch("*") as changes:
        while True:
            memsync.force_sync()
            seen, left = look(), deadline - time.monotonic()
            if seen.done or seen.final or left <= 0:
                return seen
            changes.get(min(left, INTERVAL))


def _look_at_condition(condition: Callable[[], Any]) -> Seen:
    try:
        value = condition()
        done = bool(value)
    except Exception as exc:  # such as a KeyError for what is not recorded yet
        text = f"it raised {exc!r}"
        return Seen(None, False, False, lambda: text)
    return Seen(value, done, False, lambda: f"it returned {value!r}")


def _look_at_task(memsync: MemSync, task_id: str, status: str | None) -> Seen:
    state = memsync.get_task_state(task_id)
    found = (state or {}).get("status")
    return Seen(state, found == status if status else found in FINAL, found in FINAL, lambda: _describe(memsync, task_id))


def _look_at_progress(memsync: MemSync, task_id: str, expected: Mapping[str, Any]) -> Seen:
    # The state first: when that is final, what was reported before is there.
    state, progress = memsync.get_task_state(task_id), memsync.get_task_progress(task_id)
    wrong = [f"{name} is not {value!r}" for name, value in expected.items() if not _fits(progress or {}, name, value)]
    return Seen(progress, progress is not None and not wrong, (state or {}).get("status") in FINAL,
                lambda: "; ".join([*wrong, _describe(memsync, task_id)]))


def _fits(progress: Mapping[str, Any], name: str, expected: Any) -> bool:
    if name == "at_least":
        return bool((progress.get("progress") or 0) >= expected - ROUNDING)
    found = progress.get(name)
    if isinstance(expected, re.Pattern):
        return isinstance(found, str) and expected.search(found) is not None
    return bool(found == (pytest.approx(expected, abs=ROUNDING) if name == "progress" else expected))


def _describe(memsync: MemSync, task_id: str) -> str:
    """Return what is recorded of a task, for a failure."""
    progress: Mapping[str, Any] | None = memsync.get_task_progress(task_id)
    state: Mapping[str, Any] | None = memsync.get_task_state(task_id)
    if state is None and progress is None:
        return "nothing is recorded of it; was it sent by another app, or before the fixture memsync?"
    state = state or {}
    texts = [f"{name} {state[name]!r}" for name in ("status", "worker", "exception") if state.get(name)]
    texts += [f"{name} {progress[name]!r}" for name in (*SHOWN, *_own_fields(progress)) if progress[name] is not None] \
        if progress else ["no progress"]
    if state.get("status") == "PENDING" and not memsync.get_active_workers():
        texts.append("no worker is alive; use the fixture memsync_worker")
    return "recorded: " + ", ".join(texts)


def _own_fields(progress: Mapping[str, Any]) -> list[str]:
    return [name for name in progress if name not in RESERVED]


def _id_of(task: Any) -> str:
    return check_id(getattr(task, "id", task), "task")
