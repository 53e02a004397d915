"""The handlers of a subscription, which its deliveries know but do not keep."""
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..models.entry import Entry
from ..user_code import call_user_code, name_of
from .subscription import KeyChange

OnChange = Callable[[str, Any], object] | Callable[[str, Any, Entry], object]

OnInvalidate = Callable[[str], object]


class Handlers:
    """The handlers of a subscription.

    Handlers often refer to the manager, so it keeps them, and what calls them knows them weakly: otherwise neither could be
    collected before the other.

    Args:
        on_change: Called with key and value, and with the entry too if it takes that.
        on_invalidate: Called with the key.

    Raises:
        TypeError: If one of them can't be called.
    """

    def __init__(self, on_change: OnChange | None, on_invalidate: OnInvalidate | None) -> None:
        for handler, what in ((on_change, "on_change"), (on_invalidate, "on_invalidate")):
            if handler is not None and not callable(handler):
                raise TypeError(f"{what} must be callable, not {type(handler).__name__}")
        self.on_change = on_change
        self.on_invalidate = on_invalidate
        self._with_entry = on_change is not None and takes_entry(on_change)

    @property
    def name(self) -> str:
        """What the log calls them."""
        return name_of(self.on_invalidate if self.on_change is None else self.on_change)

    def call(self, change: KeyChange) -> None:
        """Call the one that a change is for, if it was given; what it raises is logged."""
        if change.entry is None and self.on_invalidate is not None:
            call_user_code("A handler of changes", self.on_invalidate, change.key)
        elif change.entry is not None and self.on_change is not None:
            call_user_code("A handler of changes", self.on_change, *(change if self._with_entry else change[:2]))

    def ended(self) -> None:
        """Take note that the subscription has ended; it may be called by any thread."""


def takes_entry(handler: OnChange) -> bool:
    """Whether a handler takes the entry too, as a third argument that is not merely a default."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "entry")
