"""The stamps of a task: what its sender has marked it with by Celery's ``stamp``, bounded as it is recorded."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import islice
from typing import Any
from uuid import UUID

#: Most stamps of a task that are recorded, most values of one of them, and how many names are looked at to find them.
MAX_STAMPS, MAX_VALUES, MAX_LOOKS = 16, 16, 100

#: Longest name of a stamp that is recorded, and longest value, which is cut, in characters.
MAX_NAME, MAX_TEXT = 100, 200

#: Most characters of all names and values together.
MAX_SIZE = 4096

#: Above any number that is recorded.
MAX_NUMBER = 10 ** 15


def stamps_of(names: Any, values: Any) -> dict[str, Any] | None:
    """Return the stamps of a task as they are recorded, or None if it has none.

    They come with a message, which anybody may write.  A value is a text, a number, a truth value, or a list of such.

    Args:
        names: Which of the values are stamps: ``stamped_headers`` of Celery's messages.
        values: By name.
    """
    if not isinstance(names, (list, tuple, set, frozenset)) or not isinstance(values, Mapping):
        return None
    found: dict[str, Any] = {}
    size = 0
    for name in islice(names, MAX_LOOKS):
        value = _recorded(values.get(name)) if isinstance(name, str) and 0 < len(name) <= MAX_NAME else None
        size += 0 if value is None else size_of({name: value})
        if value is not None and len(found) < MAX_STAMPS and size <= MAX_SIZE:
            found[name] = value
    return found or None


def size_of(stamps: Mapping[str, Any] | None) -> int:
    """Return how many characters recorded stamps have, about."""
    return sum(len(name) + sum(map(len, texts_of(value))) for name, value in (stamps or {}).items())


def texts_of(value: Any) -> list[str]:
    """Return the values of a recorded stamp as texts: a text as it is, anything else as JSON."""
    return [one if isinstance(one, str) else json.dumps(one) for one in (value if isinstance(value, list) else [value])]


def _recorded(value: Any) -> Any:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return _plain(value)
    return [known for one in islice(value, MAX_VALUES) if (known := _plain(one)) is not None] or None


def _plain(value: Any) -> Any:
    """Return a text, number or truth value as JSON holds it; None of anything else."""
    if type(value) is UUID:
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)[:MAX_TEXT]
    if type(value) is float:
        return value if math.isfinite(value) else None
    return value if type(value) is bool or type(value) is int and abs(value) < MAX_NUMBER else None
