"""Requeue the tasks that a lost worker was running."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.states import SUCCESS
from kombu.exceptions import OperationalError, SerializerNotInstalled
from kombu.messaging import Producer
from kombu.serialization import prepare_accept_content

from ..exceptions import StoreError
from ..keys import STAGE
from ..models.order import published_key, rank_of, run_key_of
from ..models.task import TaskRun
from ..settings import Settings
from ..store import LostWorkerClaim
from ..store.script_caller import AHEAD
from ..user_code import ends_here
from .broker_connection import bounded_connection, open_channel
from .kept_messages import KeptMessage, signed_size, signer_of

logger = logging.getLogger(__name__)

#: The choice that requeues the running tasks of a lost worker; they are marked as LOST in any case.
REQUEUE = "requeue"

#: Why a message is skipped that no key of this worker has signed.
UNSIGNED = "it has no valid signature (is memsync_signing_key the same in all workers?)"

#: Requeued messages that a process remembers, so that none is sent twice; above that it requeues nothing.
MAX_REMEMBERED = 100_000


class TaskRequeuer:
    """Sends the kept messages of lost workers to the broker again.

    What Redis holds decides nothing here: a message is sent only if a worker of this app signed
    it not long ago, if this app or the registered task asks for requeueing, and back to the queue
    from which it came.

    Args:
        memsync: The :class:`~celery_memsync.MemSync` of an app.
        header: Name of the header that this package adds to messages.
    """

    def __init__(self, memsync: Any, header: str) -> None:
        self.memsync: Any = memsync
        self.header = header
        self.forget()

    def forget(self) -> None:
        """Start empty in a forked child."""
        #: Task id and run of each message that was requeued, and until when it is valid, in seconds of Redis's clock.
        self._requeued: dict[tuple[str, str], float] = {}

    def check(self) -> None:
        """Check what a worker needs before it starts.

        Raises:
            ImproperlyConfigured: If requeueing is asked for and no key signs the messages.
        """
        app, settings = self.memsync.app, self.memsync.settings
        asks = ["memsync_recover"] if settings.recover == REQUEUE else [
            f"memsync_recover of the task {name}" for name, task in sorted(app.tasks.items())
            if getattr(task, "memsync_recover", None) == REQUEUE]
        if asks and not settings.signing_keys:
            raise ImproperlyConfigured(
                f"{asks[0]} is 'requeue', which needs memsync_signing_key: a secret text, the same in all workers, "
                "that signs the messages kept in Redis; for example the output of: openssl rand -hex 32")

    def wanted(self, task: Any, recoveries: int, settings: Settings) -> bool:
        """Return whether a task that was requeued so often may be requeued once more."""
        # The broker redelivers what is acknowledged late.
        if (getattr(task, "memsync_recover", None) or settings.recover) != REQUEUE or task.acks_late:
            return False
        most = getattr(task, "memsync_max_recoveries", None)
        return bool(recoveries < (settings.max_recoveries if most is None else most))

    # -- the messages of lost workers

    def settle(self, losses: Sequence[LostWorkerClaim]) -> list[LostWorkerClaim]:
        """Requeue the tasks of lost workers, and return the losses for which that is done.

        Raises:
            StoreError: If Redis cannot be reached.
        """
        done = []
        for loss in losses:
            try:
                done += self._settle(loss)
            except self._broker_errors() as exc:
                logger.warning("Could not requeue the tasks of the lost worker %s, because of the broker (%s); "
                               "another try follows", loss.worker_id, type(exc).__name__)
        return done

    def _broker_errors(self) -> tuple[type[BaseException], ...]:
        connection = self.memsync.app.connection_for_write()
        return (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError)

    def _settle(self, loss: LostWorkerClaim) -> list[LostWorkerClaim]:
        """Requeue the tasks of a worker, and return its renewed loss, or nothing if another worker has it."""
        store, settings = self.memsync.runtime.store, self.memsync.settings
        if not settings.signing_keys:
            return [loss]
        messages = self._lost_messages(loss)
        first = next(messages, None)
        if first is None:
            return [loss]
        with bounded_connection(self.memsync.app, write=True) as connection:
            connection.connect()
            producer: Any = Producer(open_channel(connection), auto_declare=False)  # type: ignore[no-untyped-call]
            for message, stage in chain([first], messages):
                # For each message: the worker may be back, or this one may have been paused.
                renewed = store.renew_losses([loss], settings.worker_ttl)
                if not renewed:
                    return []
                (loss,) = renewed
                self._requeue(producer, message, stage)
                # After sending, so that another worker sends it if this one is killed in between.
                store.keep_messages(loss.token, {message.run: None}, settings.default_ttl)
        return [loss]

    def _lost_messages(self, loss: LostWorkerClaim) -> Iterator[tuple[KeptMessage, TaskRun]]:
        """Yield the messages whose runs are LOST; those that cannot be accepted are deleted."""
        store, cursor = self.memsync.runtime.store, 0
        while True:
            cursor, rows = store.read_messages(loss.token, cursor)
            refused: dict[str, str] = {}
            for run, signed in rows.items():
                message = self._verified(loss, run, signed)
                why = UNSIGNED if message is None else self._refusal(message)
                if message is None or why:
                    refused[run] = why
                elif (stage := self._lost_stage(message)) is not None:
                    yield message, stage
            if refused:
                store.keep_messages(loss.token, dict.fromkeys(refused), self.memsync.settings.default_ttl)
                logger.warning("Skipped %d messages kept for the lost worker %r; the first one: %s",
                               len(refused), loss.worker_id, next(iter(refused.values())))
            if not cursor:
                return

    def _verified(self, loss: LostWorkerClaim, run: str, signed: bytes) -> KeptMessage | None:
        """Return a message that a worker of this app signed for that very place, or None."""
        settings = self.memsync.settings
        signer = signer_of(settings)
        text = signer.verify(signed) if signer is not None and len(signed) <= signed_size(settings) else None
        message = None if text is None else KeptMessage.decode(text)
        return message if message is not None and message.run == run and run.startswith(f"{loss.token}-") else None

    def _refusal(self, message: KeptMessage) -> str:
        """Return why a signed message is not sent, or "" if it may be."""
        app, settings = self.memsync.app, self.memsync.settings
        task = app.tasks.get(message.task_name)
        # Its time is signed, so one of the future proves that Redis's clock was set back since.  The bound is for how long
        # a copy could be sent again after that clock was wrong for a moment.
        if not -AHEAD < self.memsync.runtime.store.clock.now() - message.signed_at <= settings.default_ttl:
            return "it was signed more than memsync_default_ttl ago"
        if task is None:
            return "its task is not registered here"
        if not self.wanted(task, message.recoveries, settings):
            return "its task is not to be requeued, or was requeued often enough"
        if message.content_type not in _accepted(app.conf.accept_content):
            return "its content type is not in accept_content"
        if self._queue(message.queue) is None:
            return "its queue is not one of the app's"
        return ""

    def _queue(self, name: str) -> Any:
        """Return a queue of the app, or None; names that the app would create count as its own."""
        queues = self.memsync.app.amqp.queues
        return queues.get(name) or (queues.new_missing(name) if queues.create_missing else None)

    def _lost_stage(self, message: KeptMessage) -> TaskRun | None:
        """Return the stage of a run if it is LOST, or None if it ended, came back, or is another one."""
        (task,) = self.memsync.runtime.store.read_tasks([message.task_id])
        stored = task.slots.get(STAGE)
        if stored is None or stored.header.rank != rank_of("LOST") or run_key_of(stored.header.run) != message.run_key:
            return None
        return TaskRun.read(stored, message.task_id)

    # -- one message

    def _requeue(self, producer: Any, message: KeptMessage, stage: TaskRun) -> None:
        """Send a message once, unless its task has succeeded."""
        try:
            if self._has_succeeded(message):
                succeeded = stage.evolve(status=SUCCESS, exception=None)
                self.memsync.sync_task_run(message.task_id, succeeded, message.run_key)
            elif self._may_send(message):
                self._send(producer, message, stage)
        except StoreError:
            raise
        except self._broker_errors():
            raise
        except BaseException as exc:
            if not ends_here(exc):
                raise
            # For example a queue that was declared with other arguments: the other tasks are requeued.
            logger.exception("Could not requeue task %s[%s] of a lost worker", message.task_name, message.task_id)

    def _may_send(self, message: KeptMessage) -> bool:
        """Return whether this process has not sent a message yet: a stored copy of it may come again."""
        now = self.memsync.runtime.store.clock.now()
        if len(self._requeued) >= MAX_REMEMBERED:
            self._requeued = {sent: until for sent, until in self._requeued.items() if until > now}
        return (message.task_id, message.run) not in self._requeued and len(self._requeued) < MAX_REMEMBERED

    def _send(self, producer: Any, message: KeptMessage, stage: TaskRun) -> None:
        recoveries, now = message.recoveries + 1, round(self.memsync.runtime.store.clock.now(), 3)
        key = published_key("", before=message.run_key)
        # By the default exchange, which delivers to the queue of that name and to no other.
        producer.publish(
            message.body, exchange="", routing_key=message.queue, priority=message.priority,
            delivery_mode=message.delivery_mode, content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={**message.headers, self.header: {"published_at": now, "key": key, "recoveries": recoveries}},
            declare=[self._queue(message.queue)], **message.properties)
        self._requeued[message.task_id, message.run] = message.signed_at + self.memsync.settings.default_ttl
        logger.info("Requeued task %s[%s] of a lost worker", message.task_name, message.task_id)
        pending = stage.evolve(
            status="PENDING", name=message.task_name, queue=message.queue, published_at=now, recoveries=recoveries,
            **dict.fromkeys(("worker", "pid", "run", "received_at", "started_at", "finished_at", "runtime", "exception")))
        self.memsync.sync_task_run(message.task_id, pending, key)

    def _has_succeeded(self, message: KeptMessage) -> bool:
        """Return whether the result backend has a success that the lost worker could not record."""
        if self.memsync.app.tasks[message.task_name].ignore_result:
            return False
        try:
            return bool(self.memsync.app.backend.get_state(message.task_id) == SUCCESS)
        except NotImplementedError:
            # There is no result backend.
            return False
        except BaseException as exc:
            if not ends_here(exc):
                raise
            logger.warning("Could not read from the result backend (%s) whether task %s[%s] of a lost worker has succeeded; "
                           "it is taken for lost", type(exc).__name__, message.task_name, message.task_id)
            return False


def _accepted(accept_content: Any) -> set[str]:
    """Return the content types of the setting ``accept_content``."""
    try:
        return set(prepare_accept_content(accept_content) or ())  # type: ignore[no-untyped-call]
    except SerializerNotInstalled:
        return set()
