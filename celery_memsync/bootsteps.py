"""The heartbeat's place in a Celery worker."""
from __future__ import annotations

import atexit
import os
import platform
import socket
import time
from typing import TYPE_CHECKING, Any

import celery
import redis
from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.utils.nodenames import node_format
from celery.worker import state

from .depths import Idleness, QueueDepths
from .exceptions import StoreError
from .heartbeat import Heartbeat
from .losses import Losses
from .probe_file import ProbeFile
from .records import WorkerRecord
from .signals import live
from .store import Beat

if TYPE_CHECKING:
    from celery.worker import WorkController

    from .plugin import MemSync

logger = get_logger(__name__)

#: Beats from one look at the depths of the queues to the next.
LOOK_EVERY = 6


class HeartbeatStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Beat from the start to the very end of a worker.

    Celery stops this step before the pool has finished its last tasks, and a
    cold shutdown tells no signal, so the heart stops at ``worker_shutdown`` or
    at the exit of the process, whichever comes first, and not in ``stop``.
    """

    requires = ("celery.worker.components:Pool",)
    label = "MemSync"

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.memsync: MemSync = parent.app.memsync
        self._describer = Describer(parent, self.memsync)
        settings = self.memsync.settings
        self.memsync.signals.requeuer.check()
        self._kept = self.memsync.signals.kept
        self._losses = Losses(
            self.memsync.store, self.memsync.events, settings.worker_ttl,
            at_work=self.memsync.signals.at_work, settled=self.memsync.signals.requeuer.settle)
        self._heartbeat = Heartbeat(
            self.memsync.store, self._before_beat, settings.heartbeat_interval,
            keep=max(settings.default_ttl, 2 * settings.worker_ttl), silence=settings.worker_ttl, on_beat=self._on_beat,
        )
        path = settings.probe_file
        self._probe_file = None if path is None else ProbeFile(node_format(path, parent.hostname))
        self._left = False
        self._refreshed = time.monotonic()

    def start(self, parent: WorkController) -> None:
        """Beat from now on."""
        self._pid = os.getpid()
        signals.worker_shutdown.connect(self._on_shutdown, sender=parent)
        atexit.register(self._leave)
        self._heartbeat.start()

    def close(self, parent: WorkController) -> None:
        """Tell that the worker takes no more tasks; the heart goes on."""
        self._describer.draining = True
        self._heartbeat.hurry()

    def stop(self, parent: WorkController) -> None:
        """Do nothing: the pool may still be at work."""

    def terminate(self, parent: WorkController) -> None:
        """Do nothing: the pool may still be at work."""

    def _before_beat(self) -> WorkerRecord:
        """Return what to tell; now and then tell the tasks again too, so that long ones do not expire."""
        if time.monotonic() - self._refreshed > self.memsync.settings.default_ttl / 3:
            self._refreshed = time.monotonic()
            self.memsync.signals.refresh()
            self._losses.look_again()
            self._kept.refresh()
        record = self._describer.describe()
        self._write_probe_file(record)
        return record

    def _write_probe_file(self, record: WorkerRecord) -> None:
        if self._probe_file is not None and not self._left:
            consuming = bool(record.consuming) or record.status == "draining"
            self._probe_file.write(self._heartbeat.silence * self._heartbeat.stretch, consuming)

    def _on_beat(self, beat: Beat) -> None:
        if self._probe_file is not None:
            self._probe_file.heard()
        if beat.word != "ok":
            self._kept.refresh()
        self._losses.hear(beat)

    def _on_shutdown(self, **_: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        """Say goodbye, and write what waits."""
        if self._left or os.getpid() != self._pid:
            return
        self._left = True
        atexit.unregister(self._leave)
        self.memsync.signals.mend()
        self._losses.stop(timeout=0.5)
        self._describer.depths.stop()
        try:
            self._heartbeat.stop(timeout=1.0)
            self._kept.close(timeout=0.5)
        except StoreError as exc:
            logger.warning("This worker could not say goodbye: %s", exc)
            self.memsync.shutdown(timeout=0)
        else:
            self.memsync.shutdown()
        if self._probe_file is not None:
            self._probe_file.remove()


class Describer:
    """Says what state a worker is in.

    Arguments:
        worker: Of Celery; it is looked at from the heartbeat's thread.
    """

    def __init__(self, worker: WorkController, memsync: MemSync) -> None:
        self.worker: Any = worker
        self.memsync = memsync
        #: Whether the worker is finishing what it has.
        self.draining = False
        self.depths = QueueDepths(worker.app, self._queues, LOOK_EVERY * memsync.settings.heartbeat_interval)
        self._idleness = Idleness()
        self._started_at = time.monotonic()
        self._looked = time.monotonic(), time.process_time()

    def describe(self) -> WorkerRecord:
        """Return the worker's present record."""
        worker = self.worker
        capacity = self._capacity()
        self.depths.remind()
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
            started_at=round(self.memsync.store.clock.at(self._started_at), 3),
            versions=_versions(),
            depths=depths,
            skew=round(time.time() - self.memsync.store.clock.now(), 3),
            writer=self._writer(),
            consuming=self._consuming(looked_at, sum(depths.values()), capacity["free"]),
        )

    def _queues(self) -> list[str]:
        return list(self.worker.app.amqp.queues.consume_from)

    def _capacity(self) -> dict[str, int]:
        active = len(state.active_requests)
        pool = self.worker.pool
        # Before 5.7 a pool of greenlets counts those at work.
        total = (pool.limit if pool.is_green else getattr(pool, "num_processes", None)) or self.worker.concurrency
        return {
            "total": total,
            "active": active,
            "reserved": max(0, len(state.reserved_requests) - active),
            "free": max(0, total - active),
        }

    def _running(self) -> tuple[dict[str, Any], ...]:
        local_to_redis = self.memsync.store.clock.now() - time.time()
        return tuple(
            {"id": request.id, "name": request.name,
             "started_at": None if request.time_start is None else round(request.time_start + local_to_redis, 3)}
            for request in live(state.active_requests.copy)
        )

    def _writer(self) -> dict[str, int]:
        writer = self.memsync.writer
        return {"pending": writer.pending, "dropped": writer.counts["dropped"], "conflicts": writer.counts["conflicts"]}

    def _cpu(self) -> float:
        before, used_before = self._looked
        self._looked = now, used = time.monotonic(), time.process_time()
        return round(100 * (used - used_before) / (now - before), 1) if now > before else 0.0

    def _consuming(self, looked_at: float, waiting: int, free: int) -> bool:
        tasks, prefetch = self.memsync.signals, self._prefetch()
        room = free > 0 and (not prefetch or tasks.held < prefetch)
        idle = self._idleness.judge(looked_at, waiting, tasks.received, room)
        return bool(self._connected() and self._queues() and not idle)

    def _prefetch(self) -> int:
        return getattr(getattr(getattr(self.worker, "consumer", None), "qos", None), "value", None) or 0

    def _connected(self) -> bool:
        connection = getattr(getattr(self.worker, "consumer", None), "connection", None)
        try:
            return bool(connection is not None and connection.connected)
        except Exception:
            # Looked at while the consumer's thread is closing it.
            return False


def _rss() -> int | None:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _versions() -> dict[str, str]:
    from . import __version__

    return {
        "python": platform.python_version(), "celery": celery.__version__, "redis-py": redis.__version__,
        "celery-memsync": __version__,
    }
