"""Keeps what the statistics were in each minute, for a day, and by task each ten minutes, for three days."""
from __future__ import annotations

from ..background_loop import BackgroundLoop
from ..store import Store


class HistoryWriter:
    """Keeps the sums of each minute; of all workers the one does so that gets to it first.

    It works in a thread of its own, so that the heart goes on. What a worker that dies leaves out is in the next minute.

    Args:
        wanted: Whether anything is kept.
    """

    def __init__(self, store: Store, wanted: bool) -> None:
        self.store = store
        self.wanted = wanted
        self._minute = 0
        self._thread = BackgroundLoop("memsync-history", self.write, 0, on_demand=True)

    def note(self, now: float) -> None:
        """Take note of the time, in seconds of Redis's clock; a minute that begins is kept soon."""
        minute = int(now // 60)
        if self.wanted and minute != self._minute:
            self._minute = minute
            self._thread.wake()

    def write(self) -> None:
        """Keep the sums of the present minute, unless another worker does.

        Raises:
            StoreError: If Redis is away; then this minute is left out.
        """
        keys = self.store.claim_history(int(self.store.clock.now() // 60))
        if keys:
            self.store.write_history(keys, self.store.read_statistics())

    def stop(self, timeout: float | None = None) -> None:
        """Keep no more."""
        self._thread.stop(timeout)
