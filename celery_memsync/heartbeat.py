"""Tell that a worker is alive."""
from __future__ import annotations

import threading
import time
from typing import Callable

from . import values
from .exceptions import StoreError
from .periodic import PeriodicThread
from .records import WorkerRecord
from .store import Store


class Heartbeat:
    """Writes a worker's record every ``interval`` seconds.

    It runs in a thread of its own, so that it beats while the broker is away,
    while a solo worker is busy, and while a stopping worker waits for its last
    tasks.

    Arguments:
        describe: Returns the worker's present record.
        interval: Seconds between two beats.
        keep: Seconds that the record of a silent worker is kept.
    """

    def __init__(self, store: Store, describe: Callable[[], WorkerRecord], interval: float, keep: float) -> None:
        self.store = store
        self.describe = describe
        self.keep = keep
        self._sequence = 0
        self._round_trip: float | None = None
        self._beating = threading.Lock()
        self._thread = PeriodicThread("memsync-heartbeat", self.beat, interval)

    def beat(self) -> None:
        """Write the record once.

        Raises:
            StoreError: If Redis is away.
        """
        with self._beating:
            self._tell(self.describe())

    def start(self) -> None:
        """Beat from now on, at once and then every ``interval`` seconds."""
        self._thread.start()
        self._thread.hurry()

    def hurry(self) -> None:
        """Beat now rather than later."""
        self._thread.hurry()

    def stop(self, timeout: float | None = None) -> None:
        """Beat no more and say goodbye.

        Raises:
            StoreError: If Redis is away: then the silence tells.
        """
        self._thread.stop(timeout)
        if not self._beating.acquire(timeout=-1 if timeout is None else timeout):
            raise StoreError("Redis does not answer the last beat; the silence will tell")
        try:
            self._tell(self.describe().evolve(status="offline", running=()), leaving=True)
        finally:
            self._beating.release()

    def _tell(self, record: WorkerRecord, leaving: bool = False) -> None:
        self._sequence += 1
        record = record.evolve(sequence=self._sequence, round_trip=self._round_trip)
        body = values.dumps(record.as_dict())
        asked = time.monotonic()
        self.store.beat_worker(record.worker_id, body, self.keep, leaving)
        self._round_trip = round(time.monotonic() - asked, 6)
