"""Locks around the bodies of tasks."""
from __future__ import annotations

import functools
import inspect
import random
import string
from collections.abc import Callable
from hashlib import sha256
from types import FunctionType, MethodType
from typing import Any, TypeVar

from celery import Task
from celery._state import get_current_task
from celery.exceptions import Reject, Retry
from celery.local import Proxy

from .. import encoding
from ..exceptions import LockNotAcquired, Skipped
from ..keys import check_id, is_id
from ..locking.lock import Lock
from .app_manager import AppManager
from .runs import ActiveRun, active_run

F = TypeVar("F", bound=Callable[..., Any])

#: What to do when another holder has the lock.
CHOICES = ("raise", "retry", "skip")

#: Most callables that are looked at to find a function in the body of a task.
MAX_LAYERS = 100

#: Seconds, about, after which a task that was held back is tried again.
RETRY_DELAY = 5.0

#: Fewest seconds of that: with a quorum queue Celery refuses a countdown below one, and the task would be lost.
MIN_RETRY_DELAY = 1.0

#: Seconds that a retry waits for the run that requested it, which may not have ended yet.
RETRY_WAIT = 2.0


class TaskLock:
    """Puts a lock around functions.

    Args:
        memsync: Whose lock it is; that of the running task's app goes before it.
        make: Returns the lock for a call, not taken yet; None: this call needs none.
        on_locked: What to do when another holder has it, one of :data:`CHOICES`.
        retry_delay: Seconds, about, until the next try.
        count_retries: Whether these tries count as retries of the task.
    """

    def __init__(
        self, memsync: AppManager, make: Callable[[AppManager, inspect.BoundArguments], Lock | None],
        on_locked: str, retry_delay: float, count_retries: bool,
    ) -> None:
        if on_locked not in CHOICES:
            raise ValueError(f"on_locked is {on_locked!r}; it must be one of {', '.join(CHOICES)}")
        self.memsync = memsync
        self.make = make
        self.on_locked = on_locked
        self.retry_delay = retry_delay
        self.count_retries = count_retries

    def around(self, function: F) -> F:
        """Return a function with the lock around its body; to Celery it looks as before."""
        signature = signature_of(function)

        @functools.wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            active = active_run.get()
            if active is None and self.memsync.is_switched_off:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            lock = self.make(self.memsync if active is None else active.memsync or self.memsync, bound)
            if lock is None:
                return function(*args, **kwargs)
            self._enter(lock, active, function)
            try:
                return function(*args, **kwargs)
            finally:
                lock.__exit__()

        # Celery checks arguments by it, and does not look behind wrappers.
        locked.__signature__ = signature  # type: ignore[attr-defined]
        return locked  # type: ignore[return-value]

    def _enter(self, lock: Lock, active: ActiveRun | None, function: Any) -> None:
        lock.own_wait = self._own_wait(active)
        try:
            lock.__enter__()
        except LockNotAcquired as exc:
            self._on_not_acquired(exc, function)
        if active is not None:
            active.set_fence(lock.fence)

    def _own_wait(self, active: ActiveRun | None) -> float:
        """Return how long a run waits at least for an earlier run of its task that has the lock."""
        if active is None:
            return 0.0
        # The lock of a run that is dead must not turn away the one that does its work; what is tried again needs no help.
        if self.on_locked != "retry" and active.is_redelivered:
            return float("inf")
        return RETRY_WAIT if active.facts.get("retries") else 0.0

    def _on_not_acquired(self, exc: LockNotAcquired, function: Any) -> None:
        """Raise what ends a run that did not get the lock."""
        task = _task_of(function)
        if task is None or self.on_locked == "raise":
            raise exc
        if self.on_locked == "skip":
            raise Skipped(exc.facts) from exc
        if task.request.is_eager:
            raise exc  # it would be tried again at once, and in vain
        countdown = self._countdown()
        if self.count_retries:
            raise task.retry(exc=exc, countdown=countdown)
        # As Task.retry does, but without counting.
        signature = task.signature_from_request(task.request, countdown=countdown, retries=task.request.retries)
        try:
            signature.apply_async()
        except Exception as error:
            raise Reject(error, requeue=False) from error
        raise Retry(exc=exc, when=countdown, is_eager=False, sig=signature)

    def _countdown(self) -> float:
        shortest = max(MIN_RETRY_DELAY, self.retry_delay * 0.5)
        return random.uniform(shortest, max(shortest * 1.5, self.retry_delay * 1.5))  # noqa: S311 # spreads, no secret


def locked(
    memsync: AppManager, name: str, ttl: float | None, wait: float | None, on_locked: str, max_hold: float | None,
    retry_delay: float, count_retries: bool,
) -> Callable[[F], F]:
    """Return a decorator that puts a named lock around the body of a task; see :meth:`MemSync.locked`."""
    if not isinstance(name, str):
        raise TypeError('locked() takes the name of a lock, such as @memsync.locked("invoice:{invoice_id}")')
    fields = _fields_of(name)

    def make(memsync: AppManager, bound: inspect.BoundArguments) -> Lock:
        return memsync.lock(_FORMATTER.vformat(name, (), bound.arguments), ttl, wait, max_hold)

    guard = TaskLock(memsync, make, on_locked, retry_delay, count_retries)

    def decorate(function: F) -> F:
        unknown = sorted(fields - set(signature_of(function).parameters))
        if unknown:
            raise TypeError(
                f"the lock {name!r} is named by {', '.join(unknown)}, which {_name_of(function)}"
                f"{signature_of(function)} has no argument for")
        return guard.around(function)

    return decorate


def exclusive(
    memsync: AppManager, ttl: float | None, wait: float | None, on_locked: str, max_hold: float | None,
    retry_delay: float, count_retries: bool,
) -> Callable[[F], F]:
    """Return a decorator that puts the lock of the running task around its body; see :meth:`MemSync.exclusive`."""

    def make(memsync: AppManager, bound: inspect.BoundArguments) -> Lock | None:
        task = get_current_task()
        task_id = None if task is None else task.request.id
        if task_id is None:
            return None
        # Celery takes any text for an id.
        name = task_id if is_id(task_id) else f"sha256-{sha256(str(task_id).encode(errors='surrogatepass')).hexdigest()}"
        return memsync.task_lock(name, ttl, wait, max_hold)

    return TaskLock(memsync, make, on_locked, retry_delay, count_retries).around


def signature_of(function: Any) -> inspect.Signature:
    """Return the signature of what is to be the body of a task.

    Raises:
        TypeError: If it is a task already, or a coroutine.
    """
    # A task that is not made yet is a proxy, and would be made by being asked what it is.
    if issubclass(type(function), Proxy) or isinstance(function, Task):
        raise TypeError("a lock goes around the body of a task: put this decorator below @app.task, not above it")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{_name_of(function)} is a coroutine or a generator: its body runs after the lock is given back")
    return inspect.signature(function)


class _Formatter(string.Formatter):
    """As :meth:`str.format`; ``!h`` makes a short text of any value, the same for equal ones."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion == "h":
            return sha256(encoding.canonical(value)).hexdigest()
        return super().convert_field(value, conversion)


_FORMATTER = _Formatter()


def _fields_of(name: str) -> set[str]:
    """Return the names of arguments in the name of a lock."""
    try:
        parts = list(_FORMATTER.parse(name))
    except ValueError as exc:
        raise ValueError(f"the name of a lock {name!r} can't be read: {exc}") from None
    fields = {field.replace("[", ".").split(".")[0] for _, field, _, _ in parts if field is not None}
    if any(not field.isidentifier() for field in fields):
        raise ValueError(f"the name of a lock {name!r} names arguments by their names, as in 'invoice:{{invoice_id}}'")
    check_id("".join(text + "x" * (field is not None) for text, field, _, _ in parts), "lock")
    return fields


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _task_of(function: Any) -> Any:
    """Return the task that is running if this is its body, or a part of it; None if it was called like any function."""
    task = get_current_task()
    return None if task is None or task.request.called_directly or not _is_in_body(task, function) else task


def _is_in_body(task: Any, function: Any) -> bool:
    """Whether a function is inside of the decorators of a task's ``run``, or of one that ``super().run`` means."""
    bodies = [task.run, *(vars(one)["run"] for one in type(task).__mro__ if "run" in vars(one))]
    function, seen = getattr(function, "__func__", function), set[int]()
    while bodies and len(seen) < MAX_LAYERS:
        body = bodies.pop()
        if id(body) not in seen:
            seen.add(id(body))
            bodies += _inside(body)
        if getattr(body, "__func__", body) is function:
            return True
    return False


def _inside(body: Any) -> list[Any]:
    """Return what a decorator may have put into a function or another callable."""
    found = [vars(body).get("__wrapped__")] if hasattr(body, "__dict__") else []
    if isinstance(body, (MethodType, staticmethod, classmethod)):
        found.append(body.__func__)
    elif isinstance(body, functools.partial):
        found.append(body.func)
    elif isinstance(body, FunctionType):
        found += _enclosed(body)
    elif not isinstance(body, (type, Task)) and callable(body):
        found += vars(body).values() if hasattr(body, "__dict__") else []
    return [one for one in found if callable(one) or isinstance(one, (staticmethod, classmethod))]


def _enclosed(function: FunctionType) -> list[Any]:
    """Return what a function refers to that was handed to who has made it, and not what it only calls by its name."""
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            one = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        scope, _, own_name = getattr(one, "__qualname__", "").rpartition(".")
        is_near = scope.endswith("<locals>") and function.__qualname__.startswith(f"{scope}.")
        if not (is_near and own_name == name):
            found.append(one)
    return found
