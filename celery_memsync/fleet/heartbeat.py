"""Heartbeats: record that a worker is alive."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .. import encoding
from ..background_loop import BackgroundLoop
from ..deadline import remaining, within
from ..exceptions import StoreUnavailable
from ..models.worker import WorkerRecord
from ..store import FIRST_HEARTBEAT, HeartbeatReply, Store

logger = logging.getLogger(__name__)

#: Most heartbeats of all workers of a namespace together in a second: many workers send them less often.
MAX_RATE = 200.0

#: Heartbeats in a row, with a write of another process before each, after which it is looked who else has the name.
MAX_STRANGE_WRITES = 2

#: Intervals after which a worker that sends a heartbeat again was away, and can't know which others were lost meanwhile.
GAP = 1.5


class Heartbeat:
    """Writes a worker's record every ``interval`` seconds, or less often if there are very many workers.

    It runs in a thread of its own, so that it goes on while the broker is away,
    while a solo worker is busy, and while a stopping worker waits for its last
    tasks.

    Args:
        describe: Returns the worker's present record.
        interval: Seconds between two heartbeats.
        ttl: Seconds that a worker's record is kept after its last heartbeat.
        timeout: Seconds without a heartbeat after which the worker is lost.  None: three intervals.
        on_reply: Called in the heartbeat's thread with Redis's reply to each heartbeat; it must not wait.
    """

    def __init__(
        self, store: Store, describe: Callable[[], WorkerRecord], interval: float, ttl: float,
        timeout: float | None = None, on_reply: Callable[[HeartbeatReply], object] | None = None,
    ) -> None:
        self.store = store
        self.describe = describe
        self.interval = interval
        self.ttl = ttl
        self.timeout = 3 * interval if timeout is None else timeout
        self.on_reply = on_reply
        self._sequence = 0
        self._round_trip: float | None = None
        #: How many times longer the intervals are, and the silence, for the workers are many.
        self.stretch = 1.0
        self._last = FIRST_HEARTBEAT
        #: Heartbeats in a row before which another process had written the record.
        self._strange_writes = 0
        self._is_alone = True
        self._beating = threading.Lock()
        self._thread = BackgroundLoop("memsync-heartbeat", self.send, interval)

    def send(self) -> None:
        """Write the record once.

        Raises:
            StoreError: If Redis is away.
        """
        with self._beating:
            self._write(self.describe())

    def start(self) -> None:
        """Send heartbeats from now on, at once and then every ``interval`` seconds."""
        self._thread.start()
        self._thread.run_now()

    def run_now(self) -> None:
        """Send a heartbeat now rather than later."""
        self._thread.run_now()

    def stop(self, timeout: float | None = None, goodbye: bool = True) -> None:
        """Send no more heartbeats and say goodbye.

        Args:
            timeout: Most seconds that this takes.  None: as long as a heartbeat that is under way and another one.
            goodbye: False: the worker is to be found lost, because another one has to requeue its tasks.

        Raises:
            StoreError: If Redis is away: then the worker is lost after its ttl.
        """
        within(2 * self.store.timeout if timeout is None else timeout, self._stop, goodbye)

    def _stop(self, goodbye: bool) -> None:
        self._thread.stop(remaining())
        if not goodbye:
            return
        if not self._beating.acquire(timeout=remaining()):
            raise StoreUnavailable("Redis does not answer the last heartbeat; the worker is lost when it is overdue")
        try:
            self._write(self.describe().evolve(status="offline", running=(), consuming=False), leaving=True)
        finally:
            self._beating.release()

    def _write(self, record: WorkerRecord, leaving: bool = False) -> None:
        self._sequence += 1
        record = record.evolve(sequence=self._sequence, round_trip=self._round_trip, stretch=round(self.stretch, 3))
        body = encoding.dumps(record.as_dict())
        last, pause = self._last, self.interval * self.stretch
        asked = time.monotonic()
        self._last = reply = self.store.write_heartbeat(
            record.worker_id, body, self.ttl * self.stretch, leaving,
            timeout=self.timeout * self.stretch, last=last, until=last.at + GAP * pause, pulse=record.pulse())
        self._round_trip = round(time.monotonic() - asked, 6)
        # What this heartbeat has promised holds for the pause before the next one.
        self._thread.interval = pause
        self.stretch = max(1.0, reply.workers / MAX_RATE / self.interval)
        if self.on_reply is not None and not leaving:
            self.on_reply(reply)
        if not leaving:
            self._look_for_namesakes(record.worker_id, last, reply)

    def _look_for_namesakes(self, worker_id: str, last: HeartbeatReply, reply: HeartbeatReply) -> None:
        """Log that another live worker has this one's name, and when that is over."""
        is_strange = 0 < last.version < reply.version - 1
        self._strange_writes = self._strange_writes + 1 if is_strange else 0
        # One strange write is the goodbye of an earlier process, or an answer that was lost.
        if self._is_alone == (self._strange_writes >= MAX_STRANGE_WRITES):
            is_alone = self.store.read_worker_processes().get(worker_id, 0) < 2
            if self._is_alone and not is_alone:
                logger.warning("Several live workers have the name %s and overwrite each other's record; "
                               "start each with a name of its own (-n)", worker_id)
            elif is_alone and not self._is_alone:
                logger.info("Worker %s is alone under its name again", worker_id)
            self._is_alone = is_alone
