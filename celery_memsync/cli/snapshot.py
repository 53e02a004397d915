"""What `celery memsync top` shows: read at one time, and chosen by what was typed."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..app import MemSync
from ..exceptions import InvalidKey
from ..keys import check_id
from ..models.order import RUNNING, rank_of
from ..models.statistics import RunSums
from ..models.worker import GONE, WorkerRecord
from .output import figure, shorten

#: Most tasks of each list of the queue that are read.
MOST = 500

#: Newest tasks whose stages are shown as events.
NEWEST = 100

#: Longest text to look for.
LONGEST_FILTER = 60

#: Orders, by name, of workers and of tasks.
WORKER_ORDERS = ("name", "load", "status", "heartbeat")

TASK_ORDERS = ("runtime", "progress", "name", "worker")

#: What a terminal sends for keys.
ENTER, ESCAPE, BACKSPACE = "\r\n", "\x1b", "\x7f\b"


@dataclass(frozen=True)
class Running:
    """A running task.

    Attributes:
        started_at: In seconds of Redis's clock, None if unknown.
        progress: As :meth:`MemorySyncManager.get_task_progress` has it.
        usual: Seconds that half of the runs of its task take at most, or None if that is not known.
    """

    task_id: str
    status: str = "-"
    name: str = "-"
    worker: str = "-"
    started_at: float | None = None
    progress: Mapping[str, Any] | None = None
    usual: float | None = None

    @property
    def done(self) -> float:
        """Percent, 0 if that is not known."""
        return figure((self.progress or {}).get("progress")) or 0.0


@dataclass(frozen=True)
class Event:
    """What happened, and when, in seconds of Redis's clock."""

    at: float
    what: str
    subject: str
    detail: str = ""


@dataclass(frozen=True)
class Snapshot:
    """All that is shown.

    Attributes:
        at: When it was read, in seconds of Redis's clock.
        latency: Seconds that Redis took for an answer.
        pending: How many tasks wait, up to :data:`MOST`.
        away: Why Redis could not be asked again since; "" if it could.
        address: Where Redis is.
        minutes: What all runs came to in the last minutes, with ``memsync_history``.
    """

    at: float
    namespace: str
    version: str = "-"
    used_memory: float | None = None
    latency: float = 0.0
    workers: tuple[WorkerRecord, ...] = ()
    running: tuple[Running, ...] = ()
    pending: int = 0
    events: tuple[Event, ...] = ()
    away: str = ""
    address: str = ""
    minutes: tuple[tuple[int, RunSums], ...] = ()


def take(memsync: MemSync) -> Snapshot:
    """Read all that is shown: eight round trips.

    Raises:
        StoreError: If Redis is away.
    """
    asked = time.monotonic()
    info = memsync.runtime.store.read_server_info()
    latency = time.monotonic() - asked
    workers = memsync.get_workers()
    queue = memsync.get_queue(limit=MOST)
    newest = memsync.get_tasks(limit=NEWEST)
    running = list(_running(memsync, queue["processing"]))
    usual = memsync.runtime.statistics.usual_runtimes(one.name for one in running)
    minutes = memsync.runtime.statistics.minutes()
    running = [replace(one, usual=usual.get(one.name)) for one in running]
    return Snapshot(
        at=memsync.runtime.store.clock.now(), address=memsync.runtime.store.address, namespace=memsync.settings.namespace,
        version=shorten(info.get("redis_version")),
        used_memory=figure(info.get("used_memory")), latency=latency, workers=tuple(workers), running=tuple(running),
        minutes=tuple(minutes),
        pending=len(queue["pending"]), events=tuple(events_of(newest, workers)))


def _running(memsync: MemSync, task_ids: Sequence[str]) -> Iterator[Running]:
    ids = []
    for task_id in task_ids:
        with contextlib.suppress(InvalidKey):  # a foreign one
            ids.append(check_id(task_id, "task"))
    keys = [f"tasks/{one}/{thing}" for one in ids for thing in ("state", "progress")]
    found = memsync.read_many(keys, consistent=True)
    for task_id in ids:
        state, progress = found[f"tasks/{task_id}/state"], found[f"tasks/{task_id}/progress"]
        known = state if isinstance(state, dict) else {}
        if rank_of(known.get("status")) == RUNNING:
            yield Running(
                task_id, _text(known.get("status")), _text(known.get("name")), _text(known.get("worker")),
                figure(known.get("started_at")), progress if isinstance(progress, dict) else None)


def events_of(tasks: Sequence[Mapping[str, Any]], workers: Sequence[WorkerRecord]) -> list[Event]:
    """Return what happened to tasks and workers, newest first, by their records."""
    found = []
    for task in tasks:
        state = task["state"] if isinstance(task["state"], dict) else {}
        last = str(state.get("status"))
        for name, what in (("published_at", "PENDING"), ("started_at", "STARTED"), ("finished_at", last)):
            if figure(state.get(name)) is not None:
                name_of_task = _text(state.get("name"))
                found.append(Event(state[name], shorten(what), task["id"], name_of_task))
    for one in workers:
        if figure(one.started_at) is not None:
            found.append(Event(one.started_at or 0.0, "online", one.worker_id))
        if one.status in GONE and figure(one.last_beat) is not None:
            found.append(Event(one.last_beat or 0.0, one.status, one.worker_id))
    return sorted(found, key=lambda event: event.at, reverse=True)


def _text(value: object) -> str:
    return shorten(value) if isinstance(value, str) and value else "-"


@dataclass(frozen=True)
class View:
    """What was typed: orders, and a text that is looked for.

    Attributes:
        reverse: Whether tasks are shown the other way round.
        typing: Whether keys go into the text.
        over: Whether it is time to end.
    """

    task_order: str = TASK_ORDERS[0]
    worker_order: str = WORKER_ORDERS[0]
    reverse: bool = False
    text: str = ""
    typing: bool = False
    over: bool = field(default=False)

    def after(self, key: str) -> View:
        """Return the view after a key was pressed; what is no key changes nothing."""
        if self.typing:
            return self._after_letter(key)
        if key in ("q", "Q", "\x04"):
            return replace(self, over=True)
        if key == "s":
            return replace(self, task_order=_next(TASK_ORDERS, self.task_order))
        if key == "w":
            return replace(self, worker_order=_next(WORKER_ORDERS, self.worker_order))
        if key == "r":
            return replace(self, reverse=not self.reverse)
        if key == "/":
            return replace(self, typing=True)
        return replace(self, text="") if key == ESCAPE else self

    def _after_letter(self, key: str) -> View:
        if key == ESCAPE:
            return replace(self, typing=False, text="")
        if key in ENTER:
            return replace(self, typing=False)
        if key in BACKSPACE:
            return replace(self, text=self.text[:-1])
        fits = key.isprintable() and len(key) == 1 and len(self.text) < LONGEST_FILTER
        return replace(self, text=self.text + key) if fits else self

    def workers(self, snapshot: Snapshot) -> list[WorkerRecord]:
        """Return the workers that are to be shown, in order."""
        order: dict[str, Callable[[WorkerRecord], Any]] = {
            "name": lambda one: one.worker_id, "load": lambda one: -load_of(one), "status": lambda one: one.status,
            "heartbeat": lambda one: -(one.last_beat or 0.0)}
        chosen = [one for one in snapshot.workers if self._fits(one.worker_id, one.status, *map(str, one.queues))]
        return sorted(chosen, key=order[self.worker_order])

    def tasks(self, snapshot: Snapshot) -> list[Running]:
        """Return the running tasks that are to be shown, in order."""
        order: dict[str, Callable[[Running], Any]] = {
            "runtime": lambda one: one.started_at or 0.0, "progress": lambda one: -one.done, "name": lambda one: one.name,
            "worker": lambda one: one.worker}
        chosen = [one for one in snapshot.running if self._fits(one.task_id, one.name, one.worker, one.status)]
        return sorted(chosen, key=order[self.task_order], reverse=self.reverse)

    def events(self, snapshot: Snapshot) -> list[Event]:
        """Return the events that are to be shown, newest first."""
        return [one for one in snapshot.events if self._fits(one.what, one.subject, one.detail)]

    def _fits(self, *texts: str) -> bool:
        return not self.text or any(self.text.lower() in text.lower() for text in texts)


def load_of(one: WorkerRecord) -> float:
    """Return which part of its slots a worker uses, 0 to 1."""
    total, free = (figure(one.capacity.get(name)) for name in ("total", "free"))
    return min(1.0, max(0.0, 1 - (free or 0) / total)) if total else 0.0


def _next(names: Sequence[str], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]
