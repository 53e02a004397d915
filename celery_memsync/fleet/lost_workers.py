"""What a worker does about others that sent no heartbeat for too long, and about its own return."""
from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..background_loop import BackgroundLoop
from ..events import Events
from ..keys import STAGE, is_id, new_token
from ..models.entry import StoredEntry
from ..models.order import RUNNING, rank_of, run_key_of
from ..models.task import TaskRun
from ..models.worker import WorkerRecord
from ..store import EntryWrite, HeartbeatReply, LostWorkerClaim, Store, in_chunks, raise_unanswered
from .dependents import cancellations

logger = logging.getLogger(__name__)

#: Most tasks of a lost worker that the log names.
NAMED = 10

#: Tasks that are read, and written, in one round trip.
TASKS_PER_BATCH = 200


class LostWorker(NamedTuple):
    """A lost worker, and what its last heartbeat recorded.

    Attributes:
        since: Time of its last heartbeat, in seconds of Redis's clock.
        running: Ids of the tasks that it had then.
        succeeded: Whether another process has its name by now.
    """

    loss: LostWorkerClaim
    since: float
    running: tuple[str, ...]
    succeeded: bool


class LostWorkerMonitor:
    """Reports lost workers and their tasks, which Redis has given to this worker to report.

    It works in a thread of its own, for there may be much to do; the heart goes
    on meanwhile.  If it dies in the middle, or Redis stays away, another worker
    does the rest.

    Args:
        store: Its token is used by this alone.
        lease: Seconds after which another goes on with what was given to this worker; it is renewed.
        running_tasks: Returns ids and run keys of the tasks that this process has.
        settled: Called with losses when all their tasks are recorded; it returns those with which it is done, too.
    """

    def __init__(
        self, store: Store, events: Events, lease: float, running_tasks: Callable[[], Iterable[tuple[str, str]]],
        settled: Callable[[Sequence[LostWorkerClaim]], Sequence[LostWorkerClaim]] | None = None,
    ) -> None:
        self.store = store.with_token(new_token())
        self.events = events
        self.lease = lease
        self.running_tasks = running_tasks
        self.settled = settled
        self._statuses: deque[str] = deque()
        #: Losses that were given to this worker, by name; those that it is about to report; those that it has reported.
        self._claimed: dict[bytes, LostWorkerClaim] = {}
        self._losses: dict[bytes, LostWorkerClaim] = {}
        self._reported: set[bytes] = set()
        #: Tasks of each loss that were marked as lost, in order, until the log has them.
        self._marked: dict[bytes, dict[str, None]] = {}
        #: What is being written, and whose tasks these are; after a lost answer it is sent again under the same numbers.
        self._reporting: tuple[list[tuple[str, LostWorker, TaskRun]], list[EntryWrite]] = [], []
        #: Monotonic time until when others may call tasks of this worker lost although it is back.
        self._doubtful_until = float("-inf")
        self._looked_at = float("-inf")
        self._thread = BackgroundLoop("memsync-losses", self.settle, 0, on_demand=True)

    def note_reply(self, reply: HeartbeatReply) -> None:
        """Take the reply to a heartbeat; what there is to do about it is done soon."""
        if self.take_claims(reply):
            self._thread.wake()

    def take_claims(self, reply: HeartbeatReply) -> bool:
        """Take the reply to a heartbeat; return whether there is something to do about it."""
        if reply.status == "back":
            self._doubtful_until = time.monotonic() + self.lease
        if reply.status != "ok" and (reply.status == "back" or self.events.wanted("worker-online")):
            self._statuses.append(reply.status)
        self._claimed.update((loss.name, loss) for loss in reply.losses)
        return bool(self._statuses or self._claimed or self._looked_at < self._doubtful_until)

    def schedule_recheck(self) -> None:
        """See to it soon that no task of this process is recorded as lost."""
        self._looked_at, self._doubtful_until = float("-inf"), time.monotonic()
        self._thread.wake()

    def stop(self, timeout: float | None = None) -> None:
        """Do no more; what is left is done by another worker."""
        self._thread.stop(timeout)

    def settle(self) -> float | None:
        """Do what there is to do; return in how many seconds to look again.

        Raises:
            StoreError: If Redis is away; what was not done is done by the next call.
        """
        while self._statuses:
            if self._statuses.popleft() == "back":
                logger.info("Worker %s is back; other workers had declared it lost", self.store.worker_id)
            self.events.emit("worker-online", worker_id=self.store.worker_id)
        if self._looked_at < self._doubtful_until:
            looked_at = time.monotonic()
            self.restore()
            self._looked_at = looked_at
        self._finish()
        while self._claimed:
            name, loss = self._claimed.popitem()
            self._losses[name] = loss
        if self._losses:
            self._settle(list(self._losses.values()))
        left = self._doubtful_until - time.monotonic()
        return max(0.0, left) + 0.1 if self._looked_at < self._doubtful_until else None

    # -- its own return

    def restore(self) -> None:
        """Record again the runs of this process that were recorded as lost.

        Raises:
            StoreError: If Redis is away.
        """
        for chunk in in_chunks(self.running_tasks(), TASKS_PER_BATCH):
            tasks = self.store.read_tasks([task_id for task_id, _ in chunk])
            # Each at the version that was read: the run may have ended since.
            raise_unanswered(self.store.write_entries([
                self.store.stage_write(task_id, stage, _found(run), str(stage.header.version))
                for (task_id, key), task in zip(chunk, tasks)
                if (stage := task.slots.get(STAGE)) is not None and run_key_of(stage.header.run) == key
                and stage.header.rank == rank_of("LOST") and (run := TaskRun.read(stage, task_id)) is not None
            ]))

    # -- the loss of others

    def _settle(self, losses: list[LostWorkerClaim]) -> None:
        for loss in losses:
            if time.monotonic() > loss.until:
                # It took too long to come to it: another worker has it, or it will be given to one anew.
                del self._losses[loss.name]
            elif loss.fresh and loss.name not in self._reported:
                self._reported.add(loss.name)
                self.events.emit("worker-lost", worker_id=loss.worker_id)
        losses = self._renewed(list(self._losses.values()))
        lost = self._find_lost(losses)
        for task_ids in in_chunks(self._candidates(lost), TASKS_PER_BATCH):
            if any(time.monotonic() > loss.until - self.lease / 2 for loss in losses):
                losses = self._renewed(losses)
                lost = [one for one in lost if one.loss.name in self._losses]
            self._report_lost(task_ids, lost)
        self._log(losses, lost)
        self.store.close_losses(losses if self.settled is None else self.settled(losses))
        for loss in losses:
            self._losses.pop(loss.name, None)
        self._reported &= set(self._losses)

    def _renewed(self, losses: list[LostWorkerClaim]) -> list[LostWorkerClaim]:
        """Return losses for another lease; of workers that came back there is nothing to report any more."""
        renewed = self.store.renew_losses(losses, self.lease)
        for loss in losses:
            del self._losses[loss.name]
        self._losses.update((loss.name, loss) for loss in renewed)
        return renewed

    def _find_lost(self, losses: list[LostWorkerClaim]) -> list[LostWorker]:
        locations = [self.store.keys.worker_location(loss.worker_id, "heartbeat") for loss in losses]
        return [_lost(loss, stored) for loss, stored in zip(losses, self.store.read_entries(locations))]

    def _candidates(self, lost: list[LostWorker]) -> Iterator[str]:
        """Yield ids of tasks that lost workers may have had: those they recorded, and all that are running."""
        known = {task_id for one in lost for task_id in one.running}
        yield from known
        cursor = 0
        while lost:
            cursor, task_ids = self.store.scan_processing(cursor)
            new = set(task_ids) - known
            known |= new
            yield from new
            if not cursor:
                return

    def _report_lost(self, task_ids: list[str], lost: list[LostWorker]) -> None:
        by_token = {one.loss.token: one for one in lost}
        by_name = {one.loss.worker_id: one for one in lost if not one.succeeded}
        found: list[tuple[str, LostWorker, TaskRun]] = []
        writes = []
        for task_id, task in zip(task_ids, self.store.read_tasks(task_ids)):
            stage = task.slots.get(STAGE)
            run = None if stage is None else TaskRun.read(stage, task_id)
            if stage is None or run is None or stage.header.rank != RUNNING:
                continue
            one = by_token.get(str(run.run).partition("-")[0]) or by_name.get(stage.header.worker_id)
            if one is not None:
                found.append((task_id, one, run))
                writes.append(self.store.stage_write(task_id, stage, self._as_lost(run, one)))
        self._reporting = found, writes
        self._finish()

    def _finish(self) -> None:
        found, writes = self._reporting
        outcomes = self.store.write_entries(writes)
        raise_unanswered(outcomes)
        self._reporting = [], []
        lost = [(task_id, run.evolve(status="LOST")) for (task_id, _, run), outcome in zip(found, outcomes)
                if outcome.status in ("ok", "again")]
        self.store.write_entries(cancellations(self.store, lost))
        for (task_id, one, run), outcome in zip(found, outcomes):
            if outcome.status in ("ok", "again"):
                self._marked.setdefault(one.loss.name, {})[task_id] = None
                self.events.emit("task-lost", task_id=task_id, name=run.name, worker_id=one.loss.worker_id, since=one.since)

    def _log(self, losses: Sequence[LostWorkerClaim], lost: Sequence[LostWorker]) -> None:
        """Log each lost worker once, with the tasks that were marked."""
        gaps = {one.loss.name: one.loss.at - one.since for one in lost}
        for loss in losses:
            marked = list(self._marked.pop(loss.name, ()))
            if marked or loss.name in self._reported:
                gap = gaps.get(loss.name)
                # None is known if its record has expired, or is that of another process with its name.
                why = "the time of its last heartbeat is not known"
                if gap:
                    why = f"no heartbeat for {gap:.3g} s"
                logger.warning(
                    "Worker %s lost (%s); %s", loss.worker_id, why, _describe_tasks(marked))

    def _as_lost(self, run: TaskRun, one: LostWorker) -> TaskRun:
        message = f"the worker {one.loss.worker_id} sent no heartbeat for too long"
        why = {"type": "WorkerLostError", "message": message}
        return run.evolve(status="LOST", exception=why, finished_at=round(self.store.clock.now(), 3))


def _lost(loss: LostWorkerClaim, stored: StoredEntry | None) -> LostWorker:
    if stored is None or stored.header.writes != loss.token:
        return LostWorker(loss, loss.at, (), stored is not None)
    record = WorkerRecord.from_dict(loss.worker_id, stored.value)
    running = tuple(task["id"] for task in record.running if isinstance(task, dict) and is_id(task.get("id")))
    return LostWorker(loss, stored.header.stored_at / 1000, running, False)


def _describe_tasks(task_ids: Sequence[str]) -> str:
    if not task_ids:
        return "it had no running tasks"
    more = f" and {len(task_ids) - NAMED} more" if len(task_ids) > NAMED else ""
    named = ", ".join(task_ids[:NAMED])
    return f"{len(task_ids)} running task{'s' * (len(task_ids) > 1)} marked LOST: {named}{more}"


def _found(run: TaskRun) -> TaskRun:
    """Return a run that was called lost as it was before."""
    return run.evolve(status="STARTED", exception=None, finished_at=None)
