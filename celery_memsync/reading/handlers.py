"""The handlers of a subscription, which its thread knows but does not keep."""
from __future__ import annotations

import weakref
from typing import Callable

from .subscriptions import OnChange, OnInvalidate, takes_entry


class Handlers:
    """What a subscriber keeps.

    Handlers often refer to the manager.  If the thread that calls them kept them, the manager would be there for as long
    as the thread, and the thread for as long as the manager.

    Args:
        on_change: Called with key and value, and with the entry too if it takes that.
        on_invalidate: Called with the key.
    """

    def __init__(self, on_change: OnChange | None, on_invalidate: OnInvalidate | None) -> None:
        self.on_change = on_change
        self.on_invalidate = on_invalidate

    def weak(self) -> tuple[OnChange | None, OnInvalidate | None]:
        """Return handlers that call these as long as this object is there; what can't be called stays as it is."""
        return self._weak_on_change(), self._weak_on_invalidate()

    def _weak_on_change(self) -> OnChange | None:
        if self.on_change is None or not callable(self.on_change):
            return self.on_change
        find = weakref.ref(self)
        with_entry = takes_entry(self.on_change)

        def on_change(key: str, value: object, entry: object) -> None:
            handlers = find()
            if handlers is not None and handlers.on_change is not None:
                handlers.on_change(*((key, value, entry) if with_entry else (key, value)))

        return on_change

    def _weak_on_invalidate(self) -> Callable[[str], object] | None:
        if self.on_invalidate is None or not callable(self.on_invalidate):
            return self.on_invalidate
        find = weakref.ref(self)

        def on_invalidate(key: str) -> None:
            handlers = find()
            if handlers is not None and handlers.on_invalidate is not None:
                handlers.on_invalidate(key)

        return on_invalidate
