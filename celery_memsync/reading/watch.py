"""Changes of keys as an iterator."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ..background_loop import Wakeup
from ..closing import closer
from ..exceptions import StoreError
from .subscription import KeyChange, Subscription

#: Seconds between two tries to read what has changed while Redis is away.
READ_PAUSE = 0.2


class Watch:
    """An iterator over changes, and a context manager that ends it.

    Usage::

        with memsync.watch("tasks/*/progress", timeout=60) as changes:
            for change in changes:
                print(change.key, change.value)

    The loop ends when nothing has changed for ``timeout`` seconds, or after :meth:`close`.  One that is collected is
    closed by a thread.

    Args:
        bell: Set when a change is pending.
        next_change: Returns the next pending change, or None.
        end: Ends the subscription.
        owner: Kept alive as long as this.
    """

    #: Given by what closes this if nothing else does.
    closer_number = 0

    def __init__(
        self, subscription: Subscription, bell: Wakeup, timeout: float | None, next_change: Callable[[], KeyChange | None],
        end: Callable[[], object], owner: object,
    ) -> None:
        self.id: str = subscription.id
        self.timeout = timeout
        self._subscription = subscription
        self._bell = bell
        self._next_change = next_change
        self._end = end
        self._owner = owner

    def get(self, timeout: float | None = None) -> KeyChange | None:
        """Return the next change.

        Args:
            timeout: Seconds to wait for it.  None: no limit.

        Returns:
            The change; None if there was none in time, or this is closed.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        change = None
        while change is None and not self._subscription.closed:
            pause = float("inf")
            try:
                change = self._next_change()
            except StoreError:
                # Redis went away before what has changed could be read; it is tried again.
                pause = READ_PAUSE
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if change is None:
                self._bell.wait(min(left, pause))
        if self._subscription.closed or self._subscription.waiting:
            self._bell.set()  # for the next of the threads that share this
        return change

    def close(self) -> None:
        """Stop watching."""
        closer.remove(self.closer_number)
        self._end()

    def __iter__(self) -> Iterator[KeyChange]:
        return self

    def __next__(self) -> KeyChange:
        change = self.get(self.timeout)
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
