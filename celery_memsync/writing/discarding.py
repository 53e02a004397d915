"""What takes the place of the writer while this package is switched off."""
from __future__ import annotations

from .changes import Change, DeferredChange
from .writer import BatchWriter


class DiscardingWriter(BatchWriter):
    """A writer that forgets what it is given: nothing is pending, and no thread is started."""

    def defer(self, deferred: DeferredChange) -> None:
        """Forget a deferred change."""

    def put(self, change: Change) -> None:
        """Forget a change."""
