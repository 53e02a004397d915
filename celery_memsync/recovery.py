"""Tasks that went with a lost worker are sent again, if that is asked for."""
from __future__ import annotations

import threading
import weakref
from typing import Any, Callable, Iterator, Sequence

from celery.states import SUCCESS
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from . import values
from .broker import bounded_connection
from .exceptions import InvalidKey, StoreError
from .keys import LIFE
from .periodic import PeriodicThread
from .records import TaskRun, rank_of, run_key
from .store import Loss

logger = get_logger(__name__)

#: What is done about the tasks of a lost worker: only told, or sent again.
MARK, REQUEUE = "mark", "requeue"

#: Properties of a message that its second sending has too; the others are the broker's, or given by themselves.
PROPERTIES = ("correlation_id", "reply_to", "message_id", "type", "app_id")

#: What is kept of a message.
_PARTS = frozenset({
    "id", "key", "recoveries", "body", "headers", "exchange", "routing_key", "priority", "delivery_mode", "content_type",
    "content_encoding", "properties"})

#: Messages that are kept, or forgotten, in one round trip.
AT_ONCE = 100


class Recovery:
    """Keeps the messages of tasks at work that are to be sent again if this worker is lost, and sends those of others.

    A message is kept from when it is received until the run has ended, for tasks that ask for it only.  What Redis has
    is made like what this process has, by a thread of its own, so nothing waits for Redis.

    Arguments:
        memsync: With an app.
        header: Name of what this package sends along with messages.
    """

    def __init__(self, memsync: Any, header: str) -> None:
        self.memsync: Any = memsync
        self.header = header
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: what the parent has received is the parent's."""
        self._kept: dict[str, tuple[Callable[[], Any], bytes]] = {}
        self._stored: set[str] = set()
        self._syncing = threading.Lock()
        self._thread: PeriodicThread | None = None
        self._warned = False

    # -- what this worker has

    def receive(self, request: Any, run: str, key: str, recoveries: int) -> None:
        """Keep the message of a request, if its task is to be sent again.

        Arguments:
            run: Id of its run.
            recoveries: How often it was sent again before.
        """
        if not self._wanted(request.task, recoveries):
            return
        body = self._packed(request, key, recoveries)
        if body is not None:
            self._kept[run] = weakref.ref(request), body
            self._wake()

    def end(self, run: str) -> None:
        """Forget the message of a run that has ended."""
        if self._kept.pop(run, None) is not None:
            self._wake()

    def refresh(self) -> None:
        """Store all that is kept anew: Redis may have forgotten it, or will soon."""
        self._stored = set()
        if self._kept:
            self._wake()

    def close(self, timeout: float) -> None:
        """Keep nothing any more: this worker leaves, and takes nothing with it.

        Raises:
            StoreError: If Redis is away.
        """
        self._kept.clear()
        if self._thread is not None:
            self._thread.stop(timeout)
            self.sync()

    def sync(self) -> None:
        """Let Redis keep the messages of this process's runs, and no others.

        Raises:
            StoreError: If Redis is away; the next call does what is left.
        """
        store, ttl = self.memsync.store, self.memsync.settings.default_ttl
        with self._syncing:
            kept = {run: body for run, (request, body) in self._kept.copy().items() if request() is not None}
            for run in set(self._kept) - set(kept):
                self._kept.pop(run, None)
            stored = self._stored
            changed = [*(kept.keys() - stored), *(stored - kept.keys())]
            for start in range(0, len(changed), AT_ONCE):
                runs = changed[start:start + AT_ONCE]
                store.keep_messages(store.token, {run: kept.get(run) for run in runs}, ttl)
                stored ^= set(runs)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = PeriodicThread(
                "memsync-messages", self.sync, self.memsync.settings.batch_interval, on_demand=True)
        self._thread.wake()

    def _wanted(self, task: Any, recoveries: int) -> bool:
        settings = self.memsync.settings
        # What is acknowledged late is redelivered by the broker.
        if (getattr(task, "memsync_recover", None) or settings.recover) != REQUEUE or task.acks_late:
            return False
        most = getattr(task, "memsync_max_recoveries", None)
        return bool(recoveries < (settings.max_recoveries if most is None else most))

    def _packed(self, request: Any, key: str, recoveries: int) -> bytes | None:
        message = request._message
        delivery = request.delivery_info
        if self._is_broadcast(delivery.get("exchange")):
            return None
        # The body has been decompressed.
        headers = {name: value for name, value in message.headers.items() if name not in ("compression", self.header)}
        packed = {
            "id": request.id, "key": key, "recoveries": recoveries, "body": message.body, "headers": headers,
            "exchange": delivery.get("exchange"), "routing_key": delivery.get("routing_key"),
            "priority": message.properties.get("priority"), "delivery_mode": message.properties.get("delivery_mode"),
            "content_type": message.content_type, "content_encoding": message.content_encoding,
            "properties": {name: message.properties[name] for name in PROPERTIES if message.properties.get(name)},
        }
        try:
            return values.encode(packed, "a message", self.memsync.settings.max_value_size)
        except ValueError as exc:
            if not self._warned:
                self._warned = True
                logger.warning("The message of a task %s can't be kept, so it is not sent again: %s", request.name, exc)
            return None

    def _is_broadcast(self, exchange: Any) -> bool:
        return bool(exchange) and any(
            queue.exchange.name == exchange and queue.exchange.type == "fanout"
            for queue in list(self.memsync.app.amqp.queues.values()))

    # -- what lost workers had

    def settle(self, losses: Sequence[Loss]) -> list[Loss]:
        """Send the tasks of lost workers again; return the losses with which this is done.

        Raises:
            StoreError: If Redis is away.
        """
        done = []
        for loss in losses:
            try:
                done += self._settle(loss)
            except self._broker_errors() as exc:
                logger.warning("The broker does not take the tasks of the lost worker %s (%s); another try follows",
                               loss.worker_id, type(exc).__name__)
        return done

    def _broker_errors(self) -> tuple[type[BaseException], ...]:
        connection = self.memsync.app.connection_for_write()
        return (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError)

    def _settle(self, loss: Loss) -> list[Loss]:
        """Send the tasks of a worker again; return its loss as it is by then, or nothing if it is another's by now."""
        messages = self.memsync.store.read_messages(loss.token)
        if not messages:
            return [loss]
        lease = self.memsync.settings.worker_ttl
        with bounded_connection(self.memsync.app, write=True) as connection:
            connection.connect()
            producer: Any = Producer(connection.channel(), auto_declare=False)  # type: ignore[no-untyped-call]
            for run, packed, life in self._lost(messages):
                # Each time: the worker may be back, or this one have been paused.
                renewed = self.memsync.store.renew_losses([loss], lease)
                if not renewed:
                    return []
                (loss,) = renewed
                self._send_unless_done(producer, packed, life)
                # Only now, so that it is sent by another if this one is killed before.
                self.memsync.store.keep_messages(loss.token, {run: None}, self.memsync.settings.default_ttl)
        return [loss]

    def _lost(self, messages: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any], TaskRun]]:
        """Yield what is to be sent again: runs that are lost, and not those that have ended or came back."""
        for run, body in messages.items():
            packed = _unpacked(body)
            if packed is None:
                continue
            (task,) = self.memsync.store.read_tasks([packed["id"]])
            life = task.slots.get(LIFE)
            known = None if life is None else TaskRun.from_row(life.value, packed["id"])
            if life is not None and known is not None and life.header.run == packed["key"] and \
                    life.header.rank == rank_of("LOST"):
                yield run, packed, known

    def _send_unless_done(self, producer: Any, packed: dict[str, Any], life: TaskRun) -> None:
        try:
            if self._has_succeeded(packed["id"], life):
                self._tell(packed["id"], life.evolve(status=SUCCESS, exception=None), packed["key"])
            else:
                self._send(producer, packed, life)
        except StoreError:
            raise
        except self._broker_errors():
            raise
        except Exception:
            # Such as an exchange that is declared otherwise by now: the others are sent all the same.
            logger.exception("Task %s[%s] of a lost worker can't be sent again", life.name, packed["id"])

    def _send(self, producer: Any, packed: dict[str, Any], life: TaskRun) -> None:
        recoveries, now = packed["recoveries"] + 1, round(self.memsync.store.clock.now(), 3)
        exchange, queues = packed["exchange"], self.memsync.app.amqp.queues.values()
        producer.publish(
            packed["body"], exchange=exchange or "", routing_key=packed["routing_key"], priority=packed["priority"],
            delivery_mode=packed["delivery_mode"], content_type=packed["content_type"],
            content_encoding=packed["content_encoding"],
            headers={**packed["headers"], self.header: {"published_at": now, "recoveries": recoveries}},
            declare=[queue for queue in queues if exchange and queue.exchange.name == exchange],
            **packed["properties"],
        )
        logger.info("Task %s[%s] of a lost worker was sent again", life.name, packed["id"])
        waiting = life.evolve(
            status="PENDING", published_at=now, recoveries=recoveries,
            **dict.fromkeys(("worker", "pid", "run", "received_at", "started_at", "finished_at", "runtime", "exception")))
        self._tell(packed["id"], waiting, run_key(life.retries, now))

    def _has_succeeded(self, task_id: str, life: TaskRun) -> bool:
        """Whether there is a result: the worker was killed before it could tell the memory."""
        task = self.memsync.app.tasks.get(life.name)
        if task is not None and task.ignore_result:
            return False
        try:
            return bool(self.memsync.app.backend.get_state(task_id) == SUCCESS)
        except Exception:
            # No result backend, or it is away: nobody knows of a success.
            return False

    def _tell(self, task_id: str, run: TaskRun, key: str) -> None:
        try:
            self.memsync.sync_task_run(task_id, run, key)
        except InvalidKey:
            # It came from somebody else's memory.
            return


def _unpacked(body: bytes) -> dict[str, Any] | None:
    """Return a message that is kept; None for what another version may have left there."""
    try:
        packed = values.decode(body)
    except ValueError:
        return None
    return packed if isinstance(packed, dict) and _PARTS <= packed.keys() else None
