"""Where `on_locked` counts: in the body of a task, however it was put there."""
from __future__ import annotations

import functools

import pytest
from celery import Celery, Task

from celery_memsync import LockNotAcquired, MemSync


@pytest.fixture
def memsync(redis_url):
    """The manager of an app whose tasks run eagerly."""
    app = Celery("eager", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(task_always_eager=True, memsync_backend=redis_url)
    memsync = MemSync(app, worker_id="eager")
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


@pytest.fixture
def taken(make_memsync):
    """A lock that another process holds."""
    with make_memsync("holder").lock("a") as lock:
        yield lock


def without_wraps(function):
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def named_run(run):
    def call(*args):
        return run(*args)

    return call


def with_wraps(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class Caller:
    """A decorator that is a class."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("decorate", [
    without_wraps, with_wraps, named_run, lambda function: function,
    lambda function: without_wraps(Caller(function)), lambda function: without_wraps(functools.partial(function)),
    lambda function: with_wraps(without_wraps(with_wraps(function))),
])
def test_on_locked_counts_under_any_decorator(memsync, taken, decorate):
    @memsync.app.task(shared=False, name="work")
    @decorate
    @memsync.locked("a", on_locked="skip")
    @with_wraps
    def work():
        pass

    result = work.apply(task_id="t1")

    assert result.state == "IGNORED"
    assert memsync.get_task_state("t1")["status"] == "SKIPPED"


class Base(Task):
    memsync = None

    def run(self, x=1):
        return x


def test_on_locked_counts_in_the_run_of_a_base_class(memsync, taken):
    class Import(Base):
        run = memsync.locked("a", on_locked="skip")(Base.run)

    class Own(Import):
        name = "own"

        def run(self, x=1):
            return super().run(x) + 1

    own = memsync.app.register_task(Own())

    assert own.apply().state == "IGNORED"


def test_on_locked_counts_in_a_bound_method(memsync, taken):
    class Service:
        @memsync.locked("a", on_locked="skip")
        def locked_inside(self):
            pass

        def locked_outside(self):
            pass

    service = Service()
    inside = memsync.app.task(service.locked_inside, name="inside", shared=False)
    outside = memsync.app.task(
        memsync.locked("a", on_locked="skip")(service.locked_outside), name="outside", shared=False)

    assert (inside.apply().state, outside.apply().state) == ("IGNORED", "IGNORED")


def test_on_locked_counts_in_a_task_that_retries_by_itself(memsync, taken):
    @memsync.app.task(shared=False, autoretry_for=(ValueError,), max_retries=1)
    @without_wraps
    @memsync.locked("a", on_locked="skip")
    def work():
        pass

    assert work.apply().state == "IGNORED"


def test_a_function_that_a_body_calls_does_not_end_the_task(memsync, taken):
    @memsync.locked("a", on_locked="skip")
    def helper():
        pass

    class Helpers:
        @memsync.locked("a", on_locked="skip")
        def run(self):
            pass

    @memsync.app.task(shared=False)
    @without_wraps
    def outer():
        for call in (helper, Helpers().run):
            with pytest.raises(LockNotAcquired):
                call()
        return "done"

    assert outer.apply().get() == "done"
