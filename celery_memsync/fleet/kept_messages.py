"""Messages of running tasks, kept in Redis so that another worker can requeue them."""
from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .. import encoding
from ..background_loop import BackgroundLoop
from ..deadline import remaining, within
from ..exceptions import InvalidKey, StoreError
from ..keys import check_id
from ..models.order import is_delivered
from ..settings import Settings
from ..signing import SIGNATURE_SIZE, Signer
from .queue_names import queue_name_of

logger = logging.getLogger(__name__)

#: Properties of a message that are sent again; the broker sets the others anew.
PROPERTIES = ("correlation_id", "reply_to", "message_id", "type", "app_id")

#: Messages written or deleted in one round trip.
MESSAGES_PER_CALL = 100


class KeptMessage(NamedTuple):
    """The message of one run, as it is signed and stored.

    Attributes:
        task_id: Id of the task, the same as in the headers.
        run: Id of the run that consumed the message.
        run_key: Names that run and its place among those of its task.
        recoveries: How often the task was requeued before.
        signed_at: Seconds since the epoch on Redis's clock.
        queue: Name of the queue from which it came; it goes back to that one.
        body: As the broker delivered it, decompressed.
    """

    task_id: str
    run: str
    run_key: str
    recoveries: int
    signed_at: float
    queue: str
    body: str | bytes
    headers: dict[str, Any]
    content_type: str
    content_encoding: str | None
    priority: int | None
    delivery_mode: int | str | None
    properties: dict[str, Any]

    @property
    def task_name(self) -> str:
        """Name of its task."""
        return str(self.headers.get("task"))

    @classmethod
    def of(cls, request: Any, run: str, run_key: str, recoveries: int, queue: str, header: str) -> KeptMessage:
        """Return the message of a request that a worker has received.

        Args:
            header: Name of the header that this package adds; the next sending has one of its own.
        """
        message = request._message
        # The body has been decompressed.
        headers = {name: value for name, value in message.headers.items() if name not in ("compression", header)}
        properties = message.properties
        return cls(
            request.id, run, run_key, recoveries, 0.0, queue, message.body, headers, message.content_type,
            message.content_encoding, properties.get("priority"), properties.get("delivery_mode"),
            {name: properties[name] for name in PROPERTIES if properties.get(name)})

    @classmethod
    def decode(cls, text: bytes) -> KeptMessage | None:
        """Read what :meth:`encode` wrote, or return None for anything else; fields of newer releases are ignored."""
        try:
            message = cls(*encoding.decode(text)[:len(cls._fields)])
            check_id(message.task_id, "task")
        except (*encoding.UNREADABLE, InvalidKey):
            return None
        sound = (
            isinstance(message.run, str) and is_delivered(message.run_key)
            and type(message.recoveries) is int and type(message.signed_at) in (int, float)
            and isinstance(message.queue, str) and isinstance(message.body, (str, bytes))
            and isinstance(message.headers, dict) and message.headers.get("id") == message.task_id
            and isinstance(message.headers.get("task"), str) and isinstance(message.content_type, str)
            and isinstance(message.properties, dict) and message.properties.keys() <= set(PROPERTIES)
        )
        return message if sound else None

    def encode(self, limit: int) -> bytes:
        """Return it as JSON.

        Raises:
            ValueError: If it has no JSON, or one of more than ``limit`` bytes.
        """
        return encoding.encode(list(self), "a message", limit)


class KeptMessages:
    """Keeps the messages of this worker's runs in Redis until the runs end.

    A thread makes what Redis has equal to what this process has, so no task waits for Redis.

    Args:
        memsync: The :class:`~celery_memsync.MemSync` of an app.
        header: Name of the header that this package adds to messages.
        wanted: Returns whether a task that was requeued so often may be requeued once more.
    """

    def __init__(self, memsync: Any, header: str, wanted: Callable[[Any, int, Settings], bool]) -> None:
        self.memsync: Any = memsync
        self.header = header
        self.wanted = wanted
        self.forget()

    def forget(self) -> None:
        """Start empty in a forked child: the parent keeps what the parent received."""
        #: What returns the request of each message, and the message, by run.
        self.by_run: dict[str, tuple[Callable[[], Any], KeptMessage]] = {}
        #: Runs that this worker has given up and that another one is to requeue.
        self._orphans: set[str] = set()
        self._stored: set[str] = set()
        self._syncing = threading.Lock()
        self._thread: BackgroundLoop | None = None
        self._warned = False

    def add(
        self, request: Any, run: str, run_key: str, recoveries: int, settings: Settings, consumer: Any = None,
    ) -> None:
        """Keep the message of a request, if its task is to be requeued.

        Args:
            run: Id of its run.
            run_key: Names that run and its place among those of its task.
            recoveries: How often the task was requeued before.
            consumer: Celery's consumer that received it.
        """
        if not self.wanted(request.task, recoveries, settings):
            return
        queue = queue_name_of(self.memsync.app.amqp.queues, request._message.delivery_info, consumer)
        if queue is None:
            self._warn(request, "the queue from which it came is a broadcast, or not one of the app's")
            return
        message = KeptMessage.of(request, run, run_key, recoveries, queue, self.header)
        try:
            message.encode(settings.max_value_size)
        except ValueError as exc:
            self._warn(request, exc)
            return
        self.by_run[run] = weakref.ref(request), message
        self._wake()

    def end(self, run: str) -> None:
        """Drop the message of a run that has ended, unless it was left to another worker."""
        if run not in self._orphans and self.by_run.pop(run, None) is not None:
            self._wake()

    def orphan(self, run: str) -> bool:
        """Leave the message of a run to another worker, which is to requeue it; return whether it was kept."""
        _, message = self.by_run.get(run, (None, None))
        if message is not None:
            self._orphans.add(run)
            self.by_run[run] = _there, message
        return message is not None

    @property
    def has_orphans(self) -> bool:
        """Whether another worker is to requeue tasks of this one."""
        return bool(self._orphans)

    def refresh(self) -> None:
        """Store all messages again: Redis may have lost them, or their time is nearly over."""
        self._stored = set()
        if self.by_run:
            self._wake()

    def close(self, timeout: float) -> None:
        """Drop all messages but those that are left to another worker, because this one leaves.

        Args:
            timeout: Most seconds that this takes.

        Raises:
            StoreError: If Redis cannot be reached.
        """
        self.by_run = {run: self.by_run[run] for run in self._orphans & self.by_run.keys()}
        if self._thread is not None:
            within(timeout, self._close, self._thread)

    def _close(self, thread: BackgroundLoop) -> None:
        thread.stop(remaining())
        if not self._syncing.acquire(timeout=remaining()):
            raise StoreError("Redis does not answer the last change of kept messages")
        try:
            self._sync()
        finally:
            self._syncing.release()

    def sync(self) -> None:
        """Make Redis keep the messages of this process's runs, and no others.

        Raises:
            StoreError: If Redis cannot be reached; the next call does the rest.
        """
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        kept = {run: message for run, (request, message) in self.by_run.copy().items() if request() is not None}
        for run in set(self.by_run) - set(kept):
            self.by_run.pop(run, None)
        stored = self._stored
        changed = [*(kept.keys() - stored), *(stored - kept.keys())]
        for start in range(0, len(changed), MESSAGES_PER_CALL):
            runs = changed[start:start + MESSAGES_PER_CALL]
            self._write(runs, kept)
            stored ^= set(runs)
        self._stored = stored

    def _write(self, runs: Iterable[str], kept: Mapping[str, KeptMessage]) -> None:
        store, settings = self.memsync.runtime.store, self.memsync.settings
        signer = signer_of(settings)
        if signer is None:
            return
        # Redis's time is in the signature: a host's that is ahead would make the message valid for longer.
        store.connect()
        now = round(store.clock.now(), 3)
        # The time is a part of what is signed, and may take a few bytes more than when it was measured.
        rows = {run: kept[run]._replace(signed_at=now).encode(settings.max_value_size + 32) if run in kept else None
                for run in runs}
        signed = {run: None if text is None else signer.sign(text) for run, text in rows.items()}
        store.keep_messages(store.token, signed, settings.default_ttl)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = BackgroundLoop(
                "memsync-messages", self.sync, self.memsync.settings.batch_interval, on_demand=True)
        self._thread.wake()

    def _warn(self, request: Any, why: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("Could not keep a message of task %s, so it is not requeued if this worker is lost: %s",
                           request.name, why)


def _there() -> bool:
    return True


def signer_of(settings: Any) -> Signer | None:
    """Return what signs the messages of a namespace, or None without ``memsync_signing_key``."""
    keys = settings.signing_keys
    return Signer(keys, f"requeue {settings.namespace}") if keys else None


def signed_size(settings: Any) -> int:
    """Return the most bytes of a signed message."""
    return int(settings.max_value_size) + 32 + SIGNATURE_SIZE
