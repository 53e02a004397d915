"""Acquire, renew and release the locks of one process."""
from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable
from functools import partial

from ..background_loop import BackgroundLoop, Steps, take_steps
from ..deadline import within
from ..events import Events
from ..exceptions import LockLost, LockNotAcquired, StoreError, StoreUnavailable
from ..models.lock import LockRecord
from ..store import LockAnswer, LockRequest, Store
from ..store.errors import run_all
from .ended_runs import ENDED_RUN_INTERVAL, EndedRuns, release
from .former_run import former_run
from .lease import NO_TASK, LockLease, Owner, body_of
from .waiting import CONFIRM_AFTER, LockRequester

logger = logging.getLogger(__name__)

#: Seconds until a lease is renewed again whose node of a cluster gave no answer.
AWAY_PAUSE = 0.2

#: Seconds after the end of a lease until which the lock is still released in Redis.
SLACK = 5.0

#: Seconds for which a request that was cut short may still be on its way to Redis.
ON_ITS_WAY = 2.0

#: Most seconds that a shutdown waits for the thread, which may be in a call to Redis.
STOP_TIMEOUT = 0.5


class LockService:
    """Acquires the locks of one process, renews and releases them.

    One thread renews all of them; the first lock starts it.  A soft time limit may raise anywhere in
    here: that thread undoes what is half done then, or the end of the task or of the lease does.

    Args:
        owner_of: Returns for what a call takes a lock of this service.
        replicas: How many replicas of Redis must have a lease before it is valid.
    """

    def __init__(
        self, store: Store, events: Events, owner_of: Callable[[LockService], Owner], replicas: int = 0,
    ) -> None:
        self.store = store
        self.events = events
        self.replicas = replicas
        self._owner_of = owner_of
        self._leases: dict[str, LockLease] = {}
        #: By name: the last one that was granted, and the last one that :meth:`acquire_task` has taken.
        self._last: dict[str, LockLease] = {}
        self._of_tasks: dict[str, LockLease] = {}
        self._ended_runs = EndedRuns(store)
        #: Redis's run id when it was read last, "" if that is not possible; None before.
        self._run_id: str | None = None
        #: Monotonic time when the thread will look again unasked.
        self._next_look = float("inf")
        self._thread = BackgroundLoop("memsync-locks", self.renew, 0, on_demand=True)
        self._requester = LockRequester(store, self._note_held)

    # -- acquire, extend, release

    def acquire(
        self, name: str, ttl: float, wait: float, owner: Owner, max_hold: float = float("inf"), own_wait: float = 0.0,
    ) -> LockLease:
        """Return a lock that is held.

        Args:
            name: Taken as checked.
            wait: Most seconds to wait.
            max_hold: Most seconds to hold it.
            own_wait: Seconds to wait at least if an earlier run of the same task holds it, see :class:`FormerRun`.

        Raises:
            LockNotAcquired: If another holder has it all the time.
            StoreError: If Redis is away, or too few replicas have it.
        """
        return within(
            self.store.timeout + wait, take_steps, self.acquisition(name, ttl, wait, owner, max_hold, own_wait))

    def acquisition(
        self, name: str, ttl: float, wait: float, owner: Owner, max_hold: float = float("inf"), own_wait: float = 0.0,
    ) -> Steps[LockLease]:
        """Return the steps of :meth:`acquire`, whose arguments these are; closed before their end they leave no lock."""
        ttl = min(ttl, max_hold)
        holder = f"{self.store.token}.{next(self.store.serials)}"
        body = body_of(owner, self.store.worker_id)
        request = LockRequest(self.store.keys.lock_location(name), holder, ttl, owner.run, body)
        lease = LockLease(name, request, owner, max_hold)
        began = time.monotonic()
        if self._run_id is None:
            self._read_first_run_id()
        try:
            self._leases[holder] = lease
            answer = self._requester.request(lease)
            former = former_run(self.store, answer, owner.task_id, owner.run, ttl, own_wait)
            if lease.state != "held" and (wait > 0 or former is not None):
                answer = yield from self._requester.wait(lease, answer, began + wait, former)
            if self.replicas and lease.state == "held":
                self._confirm(lease)
        except BaseException:
            self.give_up(lease)
            raise
        if lease.state == "held":
            self.events.emit("lock-acquired", name=name, fence=lease.fence)
            return lease
        self._end(lease)
        waited = time.monotonic() - began if wait > 0 or former is not None else 0.0
        raise LockNotAcquired(name, self._record(name, answer), waited)

    def _read_first_run_id(self) -> None:
        """Read Redis's run id before the first lock is acquired; later each renewal does."""
        with contextlib.suppress(StoreError):  # to acquire it will fail, too
            self._run_id = self.store.read_run_id()

    def _record(self, name: str, answer: LockAnswer) -> LockRecord | None:
        return None if answer.stored is None else LockRecord.of(name, answer.stored, self.store.clock.now())

    def _note_held(self, lease: LockLease) -> None:
        lease.run_id = self._run_id or ""
        lease.state = "held"
        self._schedule_by(lease.renew_at)
        before, self._last[lease.name] = self._last.get(lease.name), lease
        if before is not None and before.fence < lease.fence:
            self._lose(before)  # else only its next renewal would show that

    def _confirm(self, lease: LockLease) -> None:
        """Wait until replicas have a lock that no caller knows of yet; it may have been lost meanwhile."""
        sent_at = time.monotonic()
        (renewal,) = self.store.renew_locks([lease.request], self.replicas)
        if renewal is None or not renewal.is_held:
            self._end(lease)
            return
        lease.extend(sent_at, lease.request.ttl)
        if lease.state == "held" and lease.expired:
            raise StoreUnavailable(
                f"The lock {lease.name} was acquired, and its lease was over before its replicas had it; "
                f"a lease of more than {lease.request.ttl:g} s leaves them more time")

    def extend(self, lease: LockLease, ttl: float) -> None:
        """Let the lease end ``ttl`` seconds from now, or later; it is renewed for as long from then on.

        Raises:
            LockLost: If it is not held any more.
            StoreError: If Redis is away, or too few replicas have it.
        """
        request = lease.request._replace(ttl=ttl)
        sent_at = time.monotonic()
        bounded = lease.bounded(request, sent_at)
        (renewal,) = self.store.renew_locks([bounded], self.replicas) if lease.owned else (None,)
        if renewal is None or not renewal.is_held and not self._restore(lease, bounded, renewal.run_id):
            self._lose(lease)
            raise LockLost(lease.name)
        lease.request = request
        lease.extend(sent_at, ttl)
        if not lease.owned:
            self._lose_late(lease)
            raise LockLost(lease.name)
        self._schedule_by(lease.renew_at)

    def release(self, lease: LockLease) -> bool:
        """Release a lock; return whether it was held until now.

        Raises:
            StoreError: If Redis is away: it is tried again, until the lease ends.
        """
        if self._leases.get(lease.request.holder) is not lease or lease.state != "held":
            return False
        lease.state = "releasing"
        try:
            held = self.store.leave_lock(lease.request)
        except BaseException:
            self.give_up(lease)
            raise
        self._end(lease)
        if held:
            self.events.emit("lock-released", name=lease.name)
        else:
            self._report_lost(lease)
        return held

    def owner(self) -> Owner:
        """Return for what the calling thread takes a lock."""
        return self._owner_of(self)

    def acquire_task(self, name: str, ttl: float, wait: float, owner: Owner | None = None) -> bool:
        """Acquire the lock of a task and keep it by its name; return whether that was possible."""
        try:
            self.keep(self.acquire(name, ttl, wait, owner or self.owner()))
        except LockNotAcquired:
            return False
        return True

    def keep(self, lease: LockLease) -> None:
        """Keep the lock of a task by its name."""
        self._of_tasks[lease.name] = lease
        lease.claim = weakref.ref(self)

    def release_task(self, name: str) -> bool:
        """Release the lock of a task that :meth:`acquire_task` has acquired."""
        lease = self.pop_task(name)
        return lease is not None and self.release(lease)

    def pop_task(self, name: str) -> LockLease | None:
        """Return the lock of a task that was kept by its name, which is not kept any more; None if there is none."""
        return self._of_tasks.pop(name, None)

    # -- ends that no release comes before

    def end_run(self, run: str) -> None:
        """Have the thread release what the run of a task still holds at its end."""
        for lease in list(self._leases.values()):
            # A child that was forked in the body of the task may come here, too.
            if lease.owner.run == run and lease.pid == os.getpid():
                self.give_up(lease)

    def release_if_ended(self, run: str, is_ended: Callable[[], bool]) -> None:
        """Have the thread release what a run of another process holds, as soon as that process is gone."""
        self._ended_runs.add(run, is_ended)
        self._thread.wake()

    def renew_now(self) -> None:
        """Have the thread renew all leases soon, because Redis may have lost locks."""
        now = time.monotonic()
        for lease in list(self._leases.values()):
            lease.renew_at = min(lease.renew_at, now)
        self._schedule_by(now)

    def close(self, free: bool = True, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the thread and release all that is held.

        Args:
            free: Whether Redis is there, so that it makes sense.
            timeout: Most seconds to wait for the thread, if that is less than :data:`STOP_TIMEOUT`.
        """
        for lease in list(self._leases.values()):
            lease.state = "abandoned"
        end = time.monotonic() + (min(timeout, STOP_TIMEOUT) if free else 0)
        # Before the rest: a connection that a thread takes after the store was closed stays open.
        self._requester.close(max(0.0, end - time.monotonic()))
        self._thread.stop(max(0.0, end - time.monotonic()))
        try:
            if free:
                self._ended_runs.release()
                self._leave()
        except StoreError as exc:
            logger.warning("At shutdown locks could not be released, their leases will end: %s", exc)
        finally:
            for known in (self._leases, self._last, self._of_tasks):
                known.clear()

    # -- the thread

    def renew(self) -> float | None:
        """Renew the leases that are due, release what is to be released; return in how many seconds to run again.

        Raises:
            StoreError: If Redis is away.
        """
        promised, self._next_look = self._next_look, float("inf")  # a lock that is taken from now on wakes this thread
        try:
            self._give_up_abandoned()
            # Each step, whatever the others met: of a cluster only one node may be away.
            within(self.store.timeout, run_all, (
                partial(self._renew, time.monotonic()), self._leave, self._ended_runs.release))
        finally:
            self._lose_expired()
        now = time.monotonic()
        times = [lease.renew_at for lease in list(self._leases.values()) if lease.state == "held"]
        times += [lease.arrives_until for lease in list(self._leases.values()) if lease.state == "released"]
        times += [now + ENDED_RUN_INTERVAL] * bool(self._ended_runs)
        if promised > now:
            # What it was for may be gone; but a caller that takes lock after lock need not wake this thread each time.
            times.append(promised)
        self._next_look = min(times, default=float("inf"))
        return None if self._next_look == float("inf") else max(0.0, self._next_look - now)

    def _renew(self, now: float) -> None:
        held = [lease for lease in list(self._leases.values()) if lease.state == "held"]
        for lease in held:
            if lease.renew_at <= now and lease.claim is None:
                lease.renew_at = now + CONFIRM_AFTER
        if not any(lease.renew_at <= now for lease in held):
            return
        due = [lease for lease in held if lease.claim is not None and lease.is_due_with(now)]
        requests = [lease.request for lease in due]
        bounded = [lease.bounded(request, now) for lease, request in zip(due, requests)]
        renewals = self.store.renew_locks(bounded, self.replicas) if bounded else []
        for lease, request, cut, renewal in zip(due, requests, bounded, renewals):
            if renewal is None:
                lease.renew_at = time.monotonic() + AWAY_PAUSE
            elif not renewal.is_held and not self._restore(lease, cut, renewal.run_id):
                self._lose(lease)
            else:
                lease.run_id = self._run_id = renewal.run_id
                if lease.request is request:
                    lease.extend(now, request.ttl)
                    self._lose_late(lease)

    def _restore(self, lease: LockLease, request: LockRequest, run_id: str) -> bool:
        """Take a lock again under its fence if Redis has lost it and no other process has taken it; return whether it has.

        Replicas that must acknowledge a lock have not lost it.  A lock that is missing though the same Redis answers was
        deleted, or its data was: a running task gets it again, for its worker records the task again, too.  Any other
        holder has lost it.

        Args:
            run_id: Redis's run id now; "" if it can't be read.
        """
        is_restarted = not lease.run_id or lease.run_id != run_id
        if self.replicas or not lease.owned or lease.request.run == NO_TASK.run and not is_restarted:
            return False
        if not self.store.restore_lock(request, lease.fence):
            return False
        logger.warning("Redis had lost the lock %s; its holder has it again", lease.name)
        return True

    def _leave(self) -> None:
        run_all([partial(self._leave_one, lease) for lease in list(self._leases.values())])

    def _leave_one(self, lease: LockLease) -> None:
        """Release a lock that is to be released, perhaps for the second time."""
        late = time.monotonic() >= lease.arrives_until
        if lease.state == "abandoned" or lease.state == "released" and late:
            held = release(self.store, lease.request)
            lease.state = "released"
            if held or late:
                self._end(lease)
            if held:
                self.events.emit("lock-released", name=lease.name)

    def _lose_expired(self) -> None:
        now = time.monotonic()
        for lease in list(self._leases.values()):
            if lease.state == "held" and lease.expired:
                self._lose(lease)
            elif lease.state in ("abandoned", "released", "releasing") and now >= lease.until + SLACK:
                self._end(lease)

    def _lose(self, lease: LockLease) -> None:
        if lease.state == "held":
            self._end(lease)
            self._report_lost(lease)

    def _lose_late(self, lease: LockLease) -> None:
        """Lose a lock whose lease had ended when the answer to its renewal came; release what Redis has renewed."""
        if lease.state == "held" and lease.expired:
            self._report_lost(lease)
            self.give_up(lease)

    def _report_lost(self, lease: LockLease) -> None:
        logger.warning("The lock %s is lost: %s, another holder may have it", lease.name, lease.why_lost)
        self.events.emit("lock-lost", name=lease.name)

    def _give_up_abandoned(self) -> None:
        for lease in list(self._leases.values()):
            if lease.is_abandoned and lease.owned:
                logger.warning("Releasing the lock %s: its object was collected, its thread ended, or its block "
                               "was left by an exception at its very end", lease.name)
                lease.state = "abandoned"

    # -- helpers

    def _schedule_by(self, moment: float) -> None:
        if moment < self._next_look:
            self._next_look = moment
            self._thread.wake()

    def give_up(self, lease: LockLease) -> None:
        """Have a lock released by the thread, whether it is held, or was only requested."""
        if lease.state == "requested":
            lease.arrives_until = time.monotonic() + ON_ITS_WAY
        lease.state = "abandoned"
        self._thread.wake()

    def _end(self, lease: LockLease) -> None:
        lease.state = "closed"
        self._leases.pop(lease.request.holder, None)
        for known in (self._last, self._of_tasks):
            if known.get(lease.name) is lease:
                known.pop(lease.name, None)
