"""What to keep when two writers wrote one key without having seen each other.

A resolver is a pure function of the entries, the stored one first and the
incoming one last, and answers a :class:`Resolution`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kombu.utils.imports import symbol_by_name

from .globs import matcher
from .keys import Keys
from .models.entry import Entry

#: Times an entry is resolved and written again before giving up.
MAX_ROUNDS = 5


@dataclass(frozen=True)
class Resolution:
    """The answer of a resolver.

    Attributes:
        resolved: The value to store.
        strategy: How it was found; the ``conflict-resolved`` event has it.
        discarded: Values that are in it no more.
    """

    resolved: Any
    strategy: str = "custom"
    discarded: list[Any] = field(default_factory=list)


Resolver = Callable[[Sequence[Entry]], Resolution]


def last_write_wins(entries: Sequence[Entry]) -> Resolution:
    """Keep the entry that was written last; of one moment, the one with the greater worker id."""
    return _pick("last_write_wins", entries, lambda entry: (entry.timestamp, entry.worker_id))


def max_value(entries: Sequence[Entry]) -> Resolution:
    """Keep the greatest value; values that can't be compared are settled by the last write."""
    try:
        return _pick("max_value", entries, lambda entry: entry.value)
    except TypeError:
        return last_write_wins(entries)


def merge_arrays(entries: Sequence[Entry]) -> Resolution:
    """Keep the items of all lists once, in order of the writes; other values by the last write."""
    if not all(isinstance(entry.value, list) for entry in entries):
        return last_write_wins(entries)
    union: list[Any] = []
    for entry in _by_age(entries):
        union.extend(item for item in entry.value if not _holds(union, item))
    return Resolution(union, "merge_arrays")


def merge_objects(entries: Sequence[Entry]) -> Resolution:
    """Merge dicts in depth, the later write winning; other values by the last write."""
    if not all(isinstance(entry.value, dict) for entry in entries):
        return last_write_wins(entries)
    merged: dict[str, Any] = {}
    for entry in _by_age(entries):
        merged = _merged(merged, entry.value)
    return Resolution(merged, "merge_objects")


RESOLVERS: dict[str, Resolver] = {
    "last_write_wins": last_write_wins,
    "merge_arrays": merge_arrays,
    "merge_objects": merge_objects,
    "max_value": max_value,
}


def resolver_of(choice: object) -> Resolver:
    """Return the resolver that a setting chooses: a name, a dotted path or a callable.

    Raises:
        ValueError: If there is none of that name, or it can't be imported.
    """
    if callable(choice):
        return choice
    if not isinstance(choice, str):
        raise ValueError(f"a name, a dotted path or a callable is wanted, not {type(choice).__name__}")
    if choice in RESOLVERS:
        return RESOLVERS[choice]
    if "." not in choice and ":" not in choice:
        raise ValueError(f"there is no resolver {choice!r}; there are: {', '.join(RESOLVERS)}")
    try:
        found = symbol_by_name(choice)  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"{choice!r} can't be imported: {exc}") from exc
    if not callable(found):
        raise ValueError(f"{choice!r} is not callable")
    resolver: Resolver = found
    return resolver


class Resolvers:
    """Which resolver settles the conflicts of which key.

    Args:
        choice: One for all keys, or a mapping of globs over keys to one each;
            the first that matches counts, and the last write wins elsewhere.
        namespace: Put before globs that do not begin with it.
    """

    def __init__(self, choice: object, namespace: str) -> None:
        choices = choice.items() if isinstance(choice, Mapping) else [("*", choice)]
        keys = Keys(namespace)
        self._resolvers = [(matcher(keys.pattern(pattern)), resolver_of(one)) for pattern, one in choices]

    def settle(self, key: str, entries: Sequence[Entry]) -> Resolution:
        """Return what to store under a key."""
        return self._resolver(key)(entries)

    def is_ours(self, key: str) -> bool:
        """Return whether the conflicts of a key are settled by one of :data:`RESOLVERS`, which do not wait."""
        return self._resolver(key) in RESOLVERS.values()

    def _resolver(self, key: str) -> Resolver:
        return next((resolver for matches, resolver in self._resolvers if matches(key)), last_write_wins)


def _by_age(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.timestamp, entry.worker_id))


def _pick(strategy: str, entries: Sequence[Entry], age: Callable[[Entry], Any]) -> Resolution:
    winner = max(_by_age(entries), key=age)
    return Resolution(winner.value, strategy, [entry.value for entry in entries if entry is not winner])


def _holds(items: list[Any], wanted: Any) -> bool:
    # 1 and True are equal to Python, and different to JSON.
    return any(item == wanted and type(item) is type(wanted) for item in items)


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {
        **old,
        **{name: _merged(old[name], value) if name in old else value for name, value in new.items()},
    }
