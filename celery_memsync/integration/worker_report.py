"""What a worker reports of itself with each heartbeat."""
from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import celery
import redis
from celery.worker import state

from .. import __version__
from ..fleet.queue_depths import Idleness, QueueDepths
from ..fleet.stalled_tasks import WatchedTask
from ..fleet.unacked import is_unacked
from ..fleet.visibility import VisibilityRenewal, interval_of
from ..keys import is_id
from ..models import formats
from ..models.order import is_delivered
from ..models.worker import WorkerRecord
from ..types import HeldMessages, RunningTask, WorkerCapacity, WorkerWrites
from ..user_code import ends_here
from .app_manager import AppManager
from .held_messages import held_messages, held_while_draining
from .requests import RECORDED, live, sent_of

if TYPE_CHECKING:
    from celery.worker import WorkController

#: Of what matters to a worker.
VERSIONS = {
    "python": platform.python_version(), "celery": celery.__version__, "redis-py": redis.__version__,
    "celery-memsync": __version__,
}

#: Heartbeats from one look at the depths of the queues to the next.
BROKER_CHECK_INTERVAL = 6


class WorkerInspector:
    """The status of a worker.

    Args:
        worker: Of Celery; it is looked at from the heartbeat's thread.
    """

    def __init__(self, worker: WorkController, memsync: AppManager) -> None:
        self.worker: Any = worker
        self.memsync = memsync
        #: Whether the worker is finishing what it has.
        self.draining = False
        #: How many messages the worker has taken, also of unknown, expired and malformed tasks.
        self.taken = 0
        interval = BROKER_CHECK_INTERVAL * memsync.settings.heartbeat_interval
        self.depths = QueueDepths(worker.app, self._queues, interval, self._connection)
        self._idleness = Idleness()
        #: What the renewal judges by, in a thread of its own.
        self._idleness_of_renewal = Idleness()
        self.renewal = VisibilityRenewal(worker.app, self._held, self._is_stuck)
        self._started_at = time.monotonic()
        self._looked = time.monotonic(), time.process_time()

    def count_messages(self) -> None:
        """Count the messages that the worker takes, when it consumes."""
        create = self.worker.consumer.create_task_handler

        def create_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
            handle = create(*args, **kwargs)

            def on_task_received(message: Any) -> Any:
                self.taken += 1
                return handle(message)

            return on_task_received

        self.worker.consumer.create_task_handler = create_task_handler

    def describe(self) -> WorkerRecord:
        """Return the worker's present record."""
        worker, clock = self.worker, self.memsync.runtime.store.clock
        capacity = self._capacity()
        self.depths.request()
        looked_at, depths = self.depths.known
        return WorkerRecord(
            worker_id=self.memsync.worker_id,
            status="draining" if self.draining else "active" if capacity["free"] else "busy",
            hostname=socket.gethostname(),
            pid=os.getpid(),
            pool=worker.pool_cls.__module__.rpartition(".")[2],
            concurrency=getattr(worker, "max_concurrency", None) or worker.concurrency,
            capacity=capacity,
            queues=tuple(self._queues()),
            running=self._running(),
            counters={"total": state.all_total_count[0]},
            rss=_rss(),
            cpu=self._cpu(),
            load=tuple(round(average, 2) for average in os.getloadavg()),
            started_at=round(clock.at(self._started_at), 3),
            versions=VERSIONS,
            format=formats.FORMAT,
            depths=depths,
            empty_since={queue: round(clock.at(since), 3) for queue, since in self.depths.empty_since.items()},
            skew=round(time.time() - clock.now(), 3),
            writer=self._writer(),
            consuming=self._consuming(looked_at, sum(depths.values()), capacity["free"]),
            held_messages=self._held_messages(),
        )

    def watched_tasks(self) -> Iterator[WatchedTask]:
        """Yield the running tasks that stall if they report nothing for too long."""
        clock, default = self.memsync.runtime.store.clock, self.memsync.settings.stall_timeout
        local_to_redis = clock.now() - time.time()
        for request in _running_requests():
            limit, sent = getattr(request.task, "memsync_stall_after", default), sent_of(request.request_dict)
            if limit and request.time_start is not None and is_delivered(sent.get("key")) and is_id(request.id):
                started_at = request.time_start + local_to_redis
                yield WatchedTask(request.id, request.name, sent["run"], sent["key"], started_at, limit)

    def _queues(self) -> list[str]:
        return list(self.worker.app.amqp.queues.consume_from)

    def _capacity(self) -> WorkerCapacity:
        active = len(_running_requests())
        pool = self.worker.pool
        # Before 5.7 a pool of greenlets counts those that are running.
        total = (pool.limit if pool.is_green else getattr(pool, "num_processes", None)) or self.worker.concurrency
        return {
            "total": total,
            "active": active,
            "reserved": max(0, len(state.reserved_requests) - active),
            "free": max(0, total - active),
        }

    def _running(self) -> tuple[RunningTask, ...]:
        local_to_redis = self.memsync.runtime.store.clock.now() - time.time()
        return tuple(self._running_task(request, local_to_redis) for request in _running_requests())

    def _running_task(self, request: Any, local_to_redis: float) -> RunningTask:
        began = None if request.time_start is None else round(request.time_start + local_to_redis, 3)
        running: RunningTask = {"id": request.id, "name": request.name, "started_at": began}
        if self.renewal.last is not None and is_unacked(request.message):
            running["held"] = True
        return running

    def _held(self) -> list[Any]:
        if self.draining:
            return held_while_draining(self.memsync, getattr(self.worker, "consumer", None))
        return held_messages(self.memsync)

    def _held_messages(self) -> HeldMessages:
        timeout, last = self.renewal.timeout, self.renewal.last
        if timeout is None or last is None:
            return {}
        return {"count": last.messages, "renewed_at": round(self.memsync.runtime.store.clock.at(last.at), 3),
                "interval": interval_of(timeout), "visibility_timeout": timeout}

    def _writer(self) -> WorkerWrites:
        writer = self.memsync.runtime.writer
        return {"pending": writer.pending, "dropped": writer.counts["dropped"], "conflicts": writer.counts["conflicts"]}

    def _cpu(self) -> float:
        before, used_before = self._looked
        self._looked = now, used = time.monotonic(), time.process_time()
        return round(100 * (used - used_before) / (now - before), 1) if now > before else 0.0

    def _consuming(self, looked_at: float, waiting: int, free: int) -> bool:
        idle = self._is_idle(self._idleness, looked_at, waiting, free)
        return bool(self._connection() is not None and self._queues() and not idle)

    def _is_idle(self, idleness: Idleness, looked_at: float, waiting: int, free: int) -> bool:
        prefetch = self._prefetch()
        room = free > 0 and (not prefetch or len(self.memsync.signals.requests.unended()) < prefetch)
        return idleness.judge(looked_at, waiting, self.taken, room)

    def _is_stuck(self) -> bool:
        """Return whether it takes no messages although it should: not if it shuts down or has no queues."""
        looked_at, depths = self.depths.known
        idle = self._is_idle(self._idleness_of_renewal, looked_at, sum(depths.values()), self._capacity()["free"])
        return not self.draining and (self._connection() is None or bool(self._queues() and idle))

    def _prefetch(self) -> int:
        return getattr(getattr(getattr(self.worker, "consumer", None), "qos", None), "value", None) or 0

    def _connection(self) -> Any:
        """Return the open connection of the consumer, None if it has none."""
        connection = getattr(getattr(self.worker, "consumer", None), "connection", None)
        try:
            return connection if connection is not None and connection.connected else None
        except BaseException as exc:
            if not ends_here(exc):
                raise
            # Looked at while the consumer's thread is closing it.
            return None


def _running_requests() -> list[Any]:
    """Return the running requests.

    In threads and greenlets Celery keeps those that have ended by what is no Exception.
    """
    return [request for request in live(state.active_requests.copy) if not hasattr(request, RECORDED)]


def _rss() -> int | None:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
