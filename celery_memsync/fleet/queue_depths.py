"""How many messages wait in the queues of a worker."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..background_loop import BackgroundLoop
from ..user_code import ends_here
from .broker_connection import WorkerConnection

logger = logging.getLogger(__name__)

#: Looks after which the last answer is too old to be shown.
TOO_OLD = 3

#: Kinds of brokers that are asked: those that answer in bounded time.
READABLE_BROKERS = ("redis", "amqp")


class QueueDepths:
    """Asks the broker how many messages wait in the queues that a worker consumes.

    It does so in a thread of its own over a connection of its own: a broker that does not answer holds up neither
    the heart nor the consumer.

    Args:
        queues: Returns the names of the queues.
        interval: Seconds between two looks.
        used: Returns the connection of the worker, None if it has none.
    """

    def __init__(self, app: Any, queues: Callable[[], Iterable[str]], interval: float, used: Callable[[], Any]) -> None:
        self.queues = queues
        self.interval = interval
        self.used = used
        self._own = WorkerConnection(app)
        self._known: tuple[float, dict[str, int]] = float("-inf"), {}
        #: The look before the last one.
        self._before: tuple[float, dict[str, int]] = float("-inf"), {}
        self._asked_at = float("-inf")
        self._thread = BackgroundLoop("memsync-depths", self.read, 0, on_demand=True)

    @property
    def known(self) -> tuple[float, dict[str, int]]:
        """When the broker answered last (monotonic), and how many messages wait by queue; none if that is long ago."""
        looked_at, depths = self._known
        return looked_at, depths if time.monotonic() - looked_at < TOO_OLD * self.interval else {}

    @property
    def empty_since(self) -> dict[str, float]:
        """Queues that were empty at the last two looks, and when (monotonic) the first of these was."""
        _, depths = self.known
        looked_at, before = self._before
        return {queue: looked_at for queue, depth in depths.items() if depth == 0 and before.get(queue) == 0}

    def request(self) -> None:
        """Look again soon, if it is time."""
        now = time.monotonic()
        if now - self._asked_at >= self.interval:
            self._asked_at = now
            self._thread.wake()

    def read(self) -> None:
        """Ask the broker; if it is away nothing is known."""
        began = time.monotonic()
        try:
            depths = self._read_depths()
        except BaseException as exc:  # transports and credentials may be a user's
            if not ends_here(exc):
                raise
            # Whatever it was, the next look has a connection of its own.
            logger.debug("The broker does not report how many messages are pending: %s", type(exc).__name__)
            self._own.close()
        else:
            # By when it began: what is sent meanwhile may not be seen.
            self._before, self._known = self._known, (began, depths)

    def stop(self) -> None:
        """Look no more; a look under way is not waited for."""
        self._thread.stop(timeout=0)

    def _read_depths(self) -> dict[str, int]:
        self._own.follow(self.used())
        if self._own.connection.transport.driver_type not in READABLE_BROKERS:
            return {}
        return {queue: self._depth(queue) for queue in sorted(self.queues())}

    def _depth(self, queue: str) -> int:
        connection, channel = self._own.connection, self._own.channel()
        if connection.transport.driver_type == "redis":
            # Not by queue_declare, which looks for the list without the global_keyprefix of the broker.
            return int(channel._size(queue))
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:
            return 0  # there is no such queue


class Idleness:
    """Whether a worker lets messages wait that it could take, through two looks at its queues with nothing taken."""

    def __init__(self) -> None:
        self._taken = -1
        #: The last look that does not count, for something was taken after it, and the first that does.
        self._before = self._first = float("-inf")

    def judge(self, looked_at: float, waiting: int, taken: int, room: bool) -> bool:
        """Return whether it is idle though messages wait.

        Args:
            looked_at: When the queues were looked at last.
            waiting: How many messages waited in them then.
            taken: How many messages the worker has taken since its start.
            room: Whether it could take another.
        """
        if taken != self._taken or not room or not waiting:
            self._taken, self._before, self._first = taken, looked_at, float("inf")
        elif looked_at > self._before:
            self._first = min(self._first, looked_at)
        return looked_at > self._first
