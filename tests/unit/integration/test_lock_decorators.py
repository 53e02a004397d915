"""Locks around functions: what they are named by, what Celery sees of them, eager and direct calls."""
from __future__ import annotations

import inspect
import pickle
import uuid

import pytest
from celery import Celery, Task, chain, chord, group

from celery_memsync import InvalidKey, LockLost, LockNotAcquired, MemSync


@pytest.fixture
def memsync(redis_url):
    """The manager of an app whose tasks run eagerly."""
    app = Celery("eager", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(task_always_eager=True, task_store_eager_result=True, memsync_backend=redis_url)
    memsync = MemSync(app, worker_id="eager")
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


@pytest.fixture
def seen(memsync, make_memsync):
    """A function that returns the names of the locks that are held, as another process sees them."""
    other = make_memsync()
    return lambda: [record.name for record in other.locks()]


@pytest.fixture
def hold(make_memsync):
    """A function that lets another process hold a lock, or that of a task."""
    other = make_memsync("holder")
    locks = []

    def hold(name):
        locks.append(other.task_lock(name[6:]) if name.startswith("tasks/") else other.lock(name))
        assert locks[-1].acquire()

    return hold


def test_the_lock_is_named_by_arguments_however_they_are_given(memsync, seen):
    @memsync.app.task(shared=False)
    @memsync.locked("invoice:{invoice_id}:{copy}")
    def send(invoice_id, copy=False, *rest, **others):
        return seen()

    assert send(7) == ["invoice:7:False"]
    assert send.delay(invoice_id=7, copy=1).get() == ["invoice:7:1"]
    assert send.apply((8, "x", 9), {"more": 1}).get() == ["invoice:8:x"]
    assert seen() == []


def test_names_reach_into_arguments_and_make_short_texts_of_them(memsync, seen):
    @memsync.locked("{job[id]}:{job[kind]!r}:{at.year}:{url!h}")
    def fetch(job, at, url):
        return seen()

    from datetime import date
    (name,) = fetch({"id": 3, "kind": "a"}, date(2026, 1, 1), "https://example.org/?a=*")
    (same,) = fetch({"id": 3, "kind": "a"}, date(2026, 1, 1), "https://example.org/?a=*")
    (another,) = fetch({"id": 3, "kind": "a"}, date(2026, 1, 1), uuid.UUID(int=1))

    assert name.startswith("3:'a':2026:") and name == same != another
    assert len(name.rpartition(":")[2]) == 64


@pytest.mark.parametrize("name, error", [
    ("invoice:{invoice}", TypeError), ("{}", ValueError), ("{0}", ValueError), ("{invoice_id", ValueError),
    ("a/{invoice_id}", InvalidKey), ("", InvalidKey), (7, TypeError),
])
def test_a_name_that_can_not_be_is_refused_where_the_function_is_decorated(memsync, name, error):
    with pytest.raises(error):
        @memsync.locked(name)
        def send(invoice_id):
            pass


def test_error_names_the_missing_argument(memsync):
    with pytest.raises(TypeError, match=r"named by invoice, which send\(invoice_id\) has no argument for"):
        @memsync.locked("invoice:{invoice}")
        def send(invoice_id):
            pass


def test_an_argument_that_makes_no_name_is_refused_when_it_comes(memsync):
    @memsync.locked("{path}")
    def send(path):
        pass

    with pytest.raises(InvalidKey):
        send("a/b")


@pytest.mark.parametrize("options", [{"on_locked": "wait"}, {"on_locked": None}])
def test_unknown_on_locked_value_is_refused(memsync, options):
    with pytest.raises(ValueError, match="raise, retry, skip"):
        memsync.locked("a", **options)(lambda: None)
    with pytest.raises(ValueError, match="raise, retry, skip"):
        memsync.exclusive(**options)


def test_lock_decorator_above_a_task_is_refused_with_advice(memsync):
    @memsync.app.task(shared=False)
    def send(invoice_id):
        pass

    for decorate in (memsync.locked("{invoice_id}"), memsync.exclusive):
        with pytest.raises(TypeError, match="below @app.task"):
            decorate(send)
        with pytest.raises(TypeError, match="below @app.task"):
            decorate(send._get_current_object())


def test_a_coroutine_or_a_generator_is_refused(memsync):
    async def coroutine():
        pass

    def generator():
        yield

    for function in (coroutine, generator):
        with pytest.raises(TypeError, match="coroutine or a generator"):
            memsync.locked("a")(function)


def test_to_celery_the_function_looks_as_before(memsync):
    def send(invoice_id: int, copy: bool = False) -> str:
        """Send an invoice."""

    @memsync.app.task(bind=True, shared=False)
    @memsync.exclusive
    def bound(self, invoice_id):
        pass

    locked = memsync.app.task(shared=False)(memsync.locked("{invoice_id}")(send))

    assert (locked.name, locked.__doc__, locked.run.__annotations__) == (
        f"{__name__}.send", "Send an invoice.", send.__annotations__)
    assert inspect.signature(locked.run) == inspect.signature(send)
    memsync.app.conf.task_always_eager = False
    for task in (locked, bound):
        with pytest.raises(TypeError):
            task.apply_async((1, 2, 3))
        with pytest.raises(TypeError):
            task.apply_async(kwargs={"wrong": 1})
        task.__header__(1)


def test_a_bound_task_and_a_task_that_is_a_class_have_their_self(memsync, seen):
    @memsync.app.task(bind=True, shared=False)
    @memsync.locked("{self.name}:{x}")
    def bound(self, x):
        return self.request.id, seen()

    class Runner(Task):
        name = "runner"

        @memsync.locked("class:{x}")
        def run(self, x):
            return self.name, seen()

    runner = memsync.app.register_task(Runner())

    assert bound.apply((1,), task_id="t1").get() == ("t1", [f"{__name__}.bound:1"])
    assert runner.apply((2,)).get() == ("runner", ["class:2"])


def test_direct_call_raises_if_locked_whatever_on_locked_is(memsync, hold):
    hold("a")

    for on_locked in ("raise", "retry", "skip"):
        @memsync.app.task(shared=False, name=f"work-{on_locked}")
        @memsync.locked("a", on_locked=on_locked)
        def work():
            pass

        with pytest.raises(LockNotAcquired):
            work()
        with pytest.raises(LockNotAcquired):
            work.run()


def test_a_function_that_is_called_in_another_task_does_not_end_that_task(memsync, hold):
    hold("a")

    @memsync.locked("a", on_locked="skip")
    def helper():
        pass

    @memsync.app.task(shared=False)
    def outer():
        try:
            helper()
        except LockNotAcquired as exc:
            return exc.holder.worker_id

    assert outer.delay().get() == "holder"


def test_the_error_comes_as_it_was_out_of_a_pickle_and_a_result_backend(memsync, hold):
    hold("a")
    with pytest.raises(LockNotAcquired) as caught:
        memsync.lock("a", wait=0.01).__enter__()
    backend = memsync.app.backend

    for error in (pickle.loads(pickle.dumps(caught.value)),
                  backend.exception_to_python(backend.prepare_exception(caught.value, "json"))):
        assert (type(error), error.name, str(error)) == (LockNotAcquired, "a", str(caught.value))
    lost = backend.exception_to_python(backend.prepare_exception(LockLost("a"), "json"))
    assert (type(lost), str(lost)) == (LockLost, str(LockLost("a")))


def test_an_eager_task_that_is_skipped_is_skipped(memsync, hold):
    hold("a")

    @memsync.app.task(shared=False)
    @memsync.locked("a", on_locked="skip")
    def work():
        pass

    result = work.apply(task_id="t1")

    assert result.state == "IGNORED"
    state = memsync.get_task_state("t1")
    assert state["status"] == "SKIPPED"
    assert (state["lock"]["name"], state["lock"]["worker_id"]) == ("a", "holder")


def test_an_eager_task_is_not_tried_again_in_vain(memsync, hold):
    hold("a")

    @memsync.app.task(max_retries=None, shared=False)
    @memsync.locked("a", on_locked="retry")
    def work():
        pass

    assert isinstance(work.apply().result, LockNotAcquired)


def test_an_exclusive_task_has_the_lock_of_its_id(memsync, seen, hold):
    @memsync.app.task(bind=True, shared=False)
    @memsync.exclusive
    def work(self):
        return seen()

    assert work.apply(task_id="t1").get() == ["tasks/t1"]
    assert work() == []
    hold("tasks/t2")
    assert isinstance(work.apply(task_id="t2").result, LockNotAcquired)


def test_the_lock_of_a_task_that_hangs_is_free_when_its_max_hold_is_over(memsync, make_memsync):
    other = make_memsync()

    @memsync.app.task(shared=False)
    @memsync.locked("a", max_hold=0.3)
    def hang():
        return other.lock("a", wait=10).acquire()

    @memsync.app.task(shared=False)
    @memsync.exclusive(max_hold=0.3)
    def alone():
        return other.task_lock("t1", wait=10).acquire()

    assert hang.apply().get() is True
    assert alone.apply(task_id="t1").get() is True


def test_an_error_of_the_body_is_the_error_of_the_task_and_frees_the_lock(memsync, seen):
    @memsync.app.task(shared=False, autoretry_for=(OSError,), max_retries=2, retry_backoff=False, default_retry_delay=0)
    @memsync.locked("a")
    def work():
        runs.append(seen())
        if len(runs) < 3:
            raise OSError("busy")
        return "done"

    runs = []
    assert work.apply().get() == "done"
    assert runs == [["a"]] * 3 and seen() == []


def test_chains_groups_and_chords_of_locked_tasks(memsync, seen):
    @memsync.app.task(shared=False)
    @memsync.locked("sum:{x}")
    def add(x, y):
        return x + y

    @memsync.app.task(shared=False)
    @memsync.locked("total")
    def total(numbers):
        return sum(numbers)

    assert chain(add.s(1, 2), add.s(3))().get() == 6
    assert group(add.s(1, 2), add.s(3, 4))().get() == [3, 7]
    assert chord([add.s(1, 2), add.s(3, 4)], total.s())().get() == 10
    assert seen() == []


def test_two_locks_around_one_body_are_taken_from_the_top(memsync, seen):
    @memsync.app.task(shared=False)
    @memsync.exclusive
    @memsync.locked("a:{x}")
    def work(x):
        return seen()

    assert work.apply((1,), task_id="t1").get() == ["a:1", "tasks/t1"]
    assert seen() == []
