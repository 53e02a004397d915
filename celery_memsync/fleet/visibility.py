"""Renews the visibility of what a worker holds, so that a Redis broker does not deliver it to another one as well."""
from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..background_loop import BackgroundLoop
from ..exceptions import MemSyncError
from ..user_code import ends_here, message_of
from .broker_connection import WorkerConnection, place_of
from .unacked import channel_class, is_closed, missing_names

logger = logging.getLogger(__name__)

#: Longest time between two renewals, in seconds.
LONGEST_INTERVAL = 60.0

#: Shortest time between two renewals, in seconds, however short the timeout is.
SHORTEST_INTERVAL = 0.1

#: Renewals in one `visibility_timeout`: two may fail.
RENEWALS = 3

#: Messages that one command renews: Redis needs about a millisecond for them.
MESSAGES_PER_COMMAND = 1000


class Renewed(NamedTuple):
    """The last renewal.

    Attributes:
        at: When that was, monotonic.
        messages: How many the worker held.
    """

    at: float
    messages: int


class VisibilityRenewal:
    """Renews the messages that a worker holds at a Redis broker, in a thread of its own, over a connection of its own.

    Redis itself does not know who holds a message: kombu notes when it was delivered, and any worker puts back into
    its queue what was delivered longer ago than `visibility_timeout`.  A renewal is a later time there.  It is never
    an earlier one, and what was acknowledged meanwhile stays away.

    Args:
        app: Of the worker.
        held: Returns the messages that are neither acknowledged nor given back.
        is_stuck: Returns whether the worker takes no messages although it should.
    """

    def __init__(self, app: Any, held: Callable[[], list[Any]], is_stuck: Callable[[], bool]) -> None:
        self.app = app
        self.held = held
        self.is_stuck = is_stuck
        #: Seconds after which the broker delivers a message again; None: nothing is renewed.
        self.timeout: float | None = None
        #: None before the first renewal, and after the worker has given up its messages.
        self.last: Renewed | None = None
        self._own = WorkerConnection(app)
        #: When the worker last took messages, or could not because the broker was away; monotonic.
        self._taking_at = 0.0
        self._gave_up = False
        self._loop: BackgroundLoop | None = None

    def start(self) -> None:
        """Renew from now on if the broker is a Redis whose messages come back."""
        if self.configure():
            self._loop = BackgroundLoop("memsync-visibility", self.renew, interval_of(self.timeout or 0.0))
            self._loop.run_now()
            self._loop.start()

    def configure(self) -> bool:
        """Read the timeout of the broker; return whether there is anything to renew."""
        connection = self.app.connection_for_read()
        channel = channel_class(connection)
        if channel is None:
            return False
        if missing := missing_names(channel):
            logger.warning("Messages are not renewed at the broker: this release of kombu has no %s. A task that runs or "
                           "waits longer than visibility_timeout is delivered again", ", ".join(missing))
            return False
        options = connection.transport_options
        timeout = options.get("visibility_timeout", channel.visibility_timeout)
        if not options.get("ack_emulation", channel.ack_emulation) or not _is_time(timeout):
            return False
        self.timeout = float(timeout)
        self._taking_at = time.monotonic()
        return True

    def stop(self) -> None:
        """Renew nothing any more; a renewal under way is not waited for."""
        self.last = None
        if self._loop is not None:
            self._loop.stop(timeout=0)

    def renew(self) -> None:
        """Renew the messages that the worker holds.

        Raises:
            MemSyncError: If the broker does not answer, or refuses.
        """
        began, messages = time.monotonic(), self.held()
        if self._gives_up(bool(messages)):
            return
        try:
            self._send(messages)
        except BaseException as exc:  # transports and credentials may be a user's
            if not ends_here(exc):
                raise
            self._taking_at = time.monotonic()  # a worker can't take messages from a broker that is away
            problem = self._problem(exc, len(messages))
            self._own.close()
            raise MemSyncError(problem) from exc
        self.last = Renewed(began, len(messages))

    def _problem(self, exc: BaseException, count: int) -> str:
        """Return what went wrong; of errors of user code the text may be secret."""
        cause = exc.__cause__ or exc
        is_known = isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] in ("redis", "kombu")
        # Behind that, redis-py 7 shows the options of Sentinels, with their password.
        text = message_of(cause).partition(" : <")[0][:200].rstrip(".") if is_known else type(cause).__name__
        where = place_of(self._own.connection)
        return (f"Could not renew the messages of this worker ({count}) at the broker ({where}): {text}. "
                f"What is not renewed for {self.timeout:g} s is delivered again")

    def _gives_up(self, holds: bool) -> bool:
        """Return whether the worker takes no messages for so long that others are to have those that it holds.

        Args:
            holds: Whether it holds any.
        """
        now = time.monotonic()
        if not holds or not self.is_stuck():
            self._taking_at = now
        gives_up = now - self._taking_at > (self.timeout or 0.0)
        if gives_up and not self._gave_up:
            self.last = None
            logger.warning("Stopped renewing the messages of this worker: it has taken none for %.1f s. The broker delivers "
                           "them to other workers", now - self._taking_at)
        elif self._gave_up and not gives_up:
            logger.info("Renewing the messages of this worker again: it takes messages")
        self._gave_up = gives_up
        return gives_up

    def _send(self, messages: Sequence[Any]) -> None:
        if not messages:
            return
        self._own.follow(_used(messages))
        channel = self._own.channel()
        tags = (message.delivery_tag for message in messages)
        with channel.conn_or_acquire() as client:
            for piece in _pieces(tags):
                # By the clock of this host, as kombu does.
                client.zadd(channel.unacked_index_key, dict.fromkeys(piece, time.time()), xx=True, gt=True)


def _used(messages: Sequence[Any]) -> Any:
    """Return the connection over which messages came, None if it is closed."""
    return next((transport.client for message in messages
                 if not is_closed(message) and (transport := message.channel.connection) is not None), None)


def interval_of(timeout: float) -> float:
    """Return how many seconds there are between two renewals.

    Args:
        timeout: Seconds after which the broker delivers again.
    """
    return max(SHORTEST_INTERVAL, min(LONGEST_INTERVAL, timeout / RENEWALS))


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _pieces(tags: Iterator[Any]) -> Iterator[list[Any]]:
    while piece := list(islice(tags, MESSAGES_PER_COMMAND)):
        yield piece
