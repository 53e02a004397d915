"""Handlers of changes and events, and watches."""
from __future__ import annotations

from functools import partial
from typing import Any

from typing_extensions import assert_type

from celery_memsync import Entry, MemorySyncManager
from celery_memsync.reading.subscription import KeyChange
from celery_memsync.reading.watch import Watch

manager = MemorySyncManager(worker_id="w1")


def with_value(key: str, value: Any) -> None: ...
def with_entry(key: str, value: Any, entry: Entry) -> object: ...
def with_default(key: str, value: dict[str, int], limit: int = 3) -> None: ...
def with_anything(*args: object) -> None: ...
def without_value(key: str) -> None: ...
def with_more(key: str, value: Any, entry: Entry, more: int) -> None: ...
def of_a_number(key: int, value: Any) -> None: ...
def with_count(count: int) -> None: ...


class Copy:
    """Keeps copies."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def change(self, key: str, value: Any) -> None:
        self.values[key] = value

    def invalidate(self, key: str) -> None:
        del self.values[key]


def handlers_take_two_or_three_arguments(copy: Copy) -> None:
    assert_type(manager.subscribe("a/*", with_value), str)
    manager.subscribe("a/*", with_entry, on_invalidate=without_value)
    manager.subscribe("a/*", with_default)
    manager.subscribe("a/*", with_anything, with_anything)
    manager.subscribe("a/*", lambda key, value: print(key, value))
    manager.subscribe("a/*", lambda key, value, entry: print(key, value, entry))
    manager.subscribe("a/*", copy.change, copy.invalidate)
    manager.subscribe("a/*", partial(with_more, more=1))
    manager.subscribe("a/*", on_invalidate=copy.invalidate)
    assert_type(manager.unsubscribe("1"), bool)


def handlers_take_no_other_number_of_arguments() -> None:
    manager.subscribe("a/*", without_value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.subscribe("a/*", with_more)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.subscribe("a/*", of_a_number)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.subscribe("a/*", with_value, with_value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.subscribe("a/*", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def watches_yield_changes() -> None:
    with manager.watch("a/*", timeout=5.0) as changes:
        assert_type(changes, Watch)
        for change in changes:
            assert_type(change, KeyChange)
            assert_type((change.key, change.entry), tuple[str, Entry | None])
        assert_type(changes.get(timeout=1.0), KeyChange | None)
    for key, value, entry in manager.watch("a/*"):
        assert_type(key, str)
        assert_type(value, Any)
        assert_type(entry, Entry | None)


def events_have_handlers_of_any_arguments(copy: Copy) -> None:
    manager.on("writes-dropped", with_count)
    manager.on("lock-lost", with_anything)
    manager.on("shutdown", copy.values.clear)
    manager.off("shutdown", copy.values.clear)
    manager.on("shutdown", None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.on("shutdown")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
