"""Locks that are shared by all processes of a namespace."""
from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from .. import encoding
from ..background_loop import BackgroundLoop
from ..deadline import current, within
from ..events import Events
from ..exceptions import LockLost, LockNotAcquired, StoreError, StoreRefused, StoreUnavailable
from ..models.entry import StoredEntry
from ..models.lock import LockRecord, lease_length
from ..store import LockAnswer, LockRequest, Store
from ..store.clock import UNNOTICED
from ..user_code import call_user_code
from .former_run import FormerRun, former_run
from .turns import Turns

logger = logging.getLogger(__name__)

#: A lease is renewed when this part of it is over.
RENEW_AFTER = 1 / 3

#: What is due within this part of the time between two renewals is renewed with the others.
TOGETHER = 0.5

#: Seconds after which a lock that was handed over is renewed; until then Redis keeps it for a moment only.
CONFIRM_AFTER = 0.05

#: Longest that a waiter sleeps before it asks again, in seconds: whoever was first may not have heard that it is its turn.
LONGEST_SLEEP = 2.0

#: Seconds of a lease that are left when it is handed over, at least; with less it is asked for again.
MARGIN = 0.1

#: Seconds by which the end of a lease may be before that of ``max_hold`` and is not renewed any more: Redis takes whole
#: milliseconds.
LAST_MOMENT = 0.002

#: Seconds until a lease is renewed again whose node of a cluster gave no answer.
AWAY_PAUSE = 0.2

#: Seconds after the end of a lease when it makes no sense any more to give the lock back.
SLACK = 5.0

#: Seconds for which a question that was cut short may still be on its way to Redis.
ON_ITS_WAY = 2.0

#: Seconds between two looks whether a child is gone, and for how long its parent looks.
ENDED_RUN_INTERVAL = 0.05

MAX_ENDED_RUN_WAIT = 60.0

#: Most seconds that a shutdown waits for the thread, which may be in a call to Redis.
STOP_TIMEOUT = 0.5


class Owner(NamedTuple):
    """What a lock is held for.

    Attributes:
        task_id: The task that is running; None: none is.
        run: Id of its run, "-" for none.
    """

    task_id: str | None = None
    run: str = "-"


class LockLease:
    """One acquisition of a lock, from asking for it to its end.

    Attributes:
        until: Monotonic time until which it may be trusted.
        max_hold: Most seconds that it is held, however often it is renewed.
        hold_until: Monotonic time when these are over.
        renew_at: Monotonic time when it is to be renewed.
        asked_until: Monotonic time until which a question of which the answer was not heard may still arrive.
        claim: Returns what it is held for, or None if that is gone; None while the call that has asked for it has not
            got it, for an exception may strike before.
        state: ``asking``, ``held``, ``releasing``, ``leaving`` (the thread is to give it back), ``left`` (it has, and
            will once more when the question has arrived) or ``over``.
    """

    __slots__ = (
        "name", "request", "owner", "fence", "until", "max_hold", "hold_until", "renew_at", "asked_until", "state", "pid",
        "claim", "_expired")

    def __init__(self, name: str, request: LockRequest, owner: Owner, max_hold: float) -> None:
        self.name = name
        self.request = request
        self.owner = owner
        self.fence = 0
        self.until = time.monotonic() + request.ttl
        self.max_hold = max_hold
        self.hold_until = float("inf")
        self.renew_at = float("inf")
        self.asked_until = float("-inf")
        self.state = "asking"
        self.pid = os.getpid()
        self.claim: Callable[[], object] | None = None
        self._expired = False

    @property
    def owned(self) -> bool:
        """Whether the lock is held, as far as that can be known without asking Redis; once False, never True again."""
        return self.state == "held" and not self.expired and self.pid == os.getpid()

    @property
    def expired(self) -> bool:
        """Whether the lease has run out; once True, never False again, whatever answer to a renewal comes later."""
        if time.monotonic() >= self.until:
            self._expired = True
        return self._expired

    @property
    def is_abandoned(self) -> bool:
        """Whether no call can release it any more: what it was held for is gone."""
        return self.claim is not None and self.claim() is None

    def trust(self, since: float, lease: float) -> None:
        """Believe in the lease that was answered to a question.

        Args:
            since: Monotonic time when it was asked: the lease began no earlier.
        """
        self.until = min(since + lease, self.hold_until)
        is_last = self.until > self.hold_until - LAST_MOMENT
        # What is left of a lease that was handed over is shorter than the one that was asked for.
        self.renew_at = self.until if is_last else since + min(lease, self.request.ttl) * RENEW_AFTER


class LockService:
    """Takes the locks of one process, renews them and gives them back.

    One thread renews all of them; it is started by the first one.  A soft time
    limit may raise anywhere in here: what is half done then is undone by that
    thread, or by the end of the task, or by the end of the lease.

    Args:
        replicas: How many replicas of Redis must have a lease before it is believed in.
    """

    def __init__(self, store: Store, events: Events, replicas: int = 0) -> None:
        self.store = store
        self.events = events
        self.replicas = replicas
        self._numbers = count(1)
        self._grants: dict[str, LockLease] = {}
        #: By name: the last one that was granted, and the last one that :meth:`acquire_task` has taken.
        self._last: dict[str, LockLease] = {}
        self._of_tasks: dict[str, LockLease] = {}
        self._told_of: tuple[Owner | None, bytes] = None, b""
        #: Runs whose child is going: what is held for them is to be freed; with the time when that is given up.
        self._ending_runs: dict[str, tuple[Callable[[], bool], float]] = {}
        #: Redis's run id when a lock was missing last; "" before.
        self._run_id = ""
        #: Monotonic time when the thread will look again unasked.
        self._next_look = float("inf")
        self._thread = BackgroundLoop("memsync-locks", self.renew, 0, on_demand=True)
        self._turns = Turns(store)

    # -- take, extend, give back

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
        return within(self.store.timeout + wait, self._acquire, name, min(ttl, max_hold), wait, owner, max_hold, own_wait)

    def _acquire(
        self, name: str, ttl: float, wait: float, owner: Owner, max_hold: float, own_wait: float,
    ) -> LockLease:
        holder = f"{self.store.token}.{next(self._numbers)}"
        request = LockRequest(self.store.keys.lock_location(name), holder, ttl, owner.run, self._about(owner))
        grant = LockLease(name, request, owner, max_hold)
        began = time.monotonic()
        try:
            self._grants[holder] = grant
            answer = self._ask(grant)
            former = former_run(self.store, answer, owner.task_id, owner.run, ttl, own_wait)
            if answer.status != "ok" and (wait > 0 or former is not None):
                answer = self._wait(grant, answer, began + wait, former)
            if self.replicas and grant.state == "held":
                self._confirm(grant)
        except BaseException:
            self._give_up(grant)
            raise
        if grant.state == "held":
            self.events.emit("lock-acquired", name=name, fence=grant.fence)
            return grant
        self._end(grant)
        waited = time.monotonic() - began if wait > 0 or former is not None else 0.0
        raise LockNotAcquired(name, self._record(name, answer), waited)

    def _ask(self, grant: LockLease) -> LockAnswer:
        """Take a lock if it is free; ask again if the answer came when the lease was over already."""
        while True:
            asked_at = time.monotonic()
            answer = self.store.take_lock(grant.request)
            if answer.status != "ok" or self._hold(grant, answer.fence, asked_at, answer.lease):
                return answer

    def _about(self, owner: Owner) -> bytes:
        """Return what readers are to know of who holds a lock; a task that takes many says the same each time."""
        last, body = self._told_of
        if owner != last:
            body = encoding.dumps({"worker_id": self.store.worker_id, "task_id": owner.task_id, "run": owner.run})
            self._told_of = owner, body
        return body

    def _record(self, name: str, answer: LockAnswer) -> LockRecord | None:
        return None if answer.stored is None else LockRecord.of(name, answer.stored, self.store.clock.now())

    def _wait(self, grant: LockLease, answer: LockAnswer, deadline: float, former: FormerRun | None) -> LockAnswer:
        """Stand in the queue until the lock is given to us, or the deadline, or that of an earlier run."""
        if former is not None and (call := current()) is not None:
            call.postpone(max(0.0, former.deadline - max(deadline, time.monotonic())))
        request = grant.request = grant.request._replace(channel=self._turns.channel)
        while grant.state == "asking":
            turn = self._turns.turn_of(request)
            turn.listen(self.store.timeout)
            asked_at = time.monotonic()
            answer = self.store.wait_for_lock(request)
            if answer.status == "ok":
                if self._hold(grant, answer.fence, asked_at, answer.lease):
                    return answer
                continue
            if former is not None and former.is_dead(answer):
                self.store.free_lock(request.location, answer.fence)
                continue
            until = deadline if former is None else max(deadline, former.wait_until(answer))
            left = until - time.monotonic()
            if left <= 0:
                break
            told = turn.wait(answer.fence, min(left, answer.lease + 0.001, LONGEST_SLEEP))
            if told is not None and self._take_turn(grant, told, asked_at):
                return answer
        self.store.leave_lock(request)
        return answer

    def _take_turn(self, grant: LockLease, told: tuple[int, float], asked_at: float) -> bool:
        """Take a lock that was handed over; return False if so much time has passed that it is asked for again.

        Until it is renewed it is trusted as if it had been given when we asked last.
        """
        fence, lease = told
        now = time.monotonic()
        until = asked_at + min(lease, grant.request.ttl)
        if until < now + MARGIN and until < now + grant.request.ttl / 2:
            return False
        grant.hold_until = now + grant.max_hold
        grant.fence, grant.until = fence, until
        grant.renew_at = now + min(CONFIRM_AFTER, (until - now) / 4)
        self._note_held(grant)
        return True

    def _hold(self, grant: LockLease, fence: int, asked_at: float, lease: float) -> bool:
        """Take note that a lock was granted; return False if its lease was over when the answer came."""
        grant.fence = fence
        grant.hold_until = asked_at + grant.max_hold
        grant.trust(asked_at, lease)
        if time.monotonic() >= grant.until:
            return False
        self._note_held(grant)
        return True

    def _note_held(self, grant: LockLease) -> None:
        grant.state = "held"
        self._schedule_by(grant.renew_at)
        before, self._last[grant.name] = self._last.get(grant.name), grant
        if before is not None and before.fence < grant.fence:
            self._lose(before)  # else it would learn that from its next renewal only

    def _confirm(self, grant: LockLease) -> None:
        """See that replicas have a lock that no caller knows of yet; it may have been lost meanwhile."""
        asked_at = time.monotonic()
        if self.store.renew_locks([grant.request], self.replicas) != [True]:
            self._end(grant)
            return
        grant.trust(asked_at, grant.request.ttl)
        if grant.state == "held" and grant.expired:
            raise StoreUnavailable(
                f"The lock {grant.name} was acquired, and its lease was over before its replicas had it; "
                f"a lease of more than {grant.request.ttl:g} s leaves them more time")

    def extend(self, grant: LockLease, ttl: float) -> None:
        """Let the lease end ``ttl`` seconds from now, or later; it is renewed for as long from then on.

        Raises:
            LockLost: If it is not held any more.
            StoreError: If Redis is away, or too few replicas have it.
        """
        request = grant.request._replace(ttl=ttl)
        asked_at = time.monotonic()
        bounded = _bounded(grant, request, asked_at)
        is_held = grant.owned and self.store.renew_locks([bounded], self.replicas) == [True]
        if not is_held and not self._restore(grant, bounded):
            self._lose(grant)
            raise LockLost(grant.name)
        grant.request = request
        grant.trust(asked_at, ttl)
        if not grant.owned:
            self._lose_late(grant)
            raise LockLost(grant.name)
        self._schedule_by(grant.renew_at)

    def release(self, grant: LockLease) -> bool:
        """Give a lock back; tell whether it was held until now.

        Raises:
            StoreError: If Redis is away: it is tried again, until the lease ends.
        """
        if self._grants.get(grant.request.holder) is not grant or grant.state != "held":
            return False
        grant.state = "releasing"
        try:
            held = self.store.leave_lock(grant.request)
        except BaseException:
            self._give_up(grant)
            raise
        self._end(grant)
        if held:
            self.events.emit("lock-released", name=grant.name)
        else:
            self._report_lost(grant)
        return held

    def acquire_task(self, name: str, ttl: float, wait: float, owner: Owner) -> bool:
        """Take the lock of a task and remember it by its name; tell whether it was to be had."""
        try:
            grant = self._of_tasks[name] = self.acquire(name, ttl, wait, owner)
            grant.claim = weakref.ref(self)
        except LockNotAcquired:
            return False
        return True

    def release_task(self, name: str) -> bool:
        """Give back the lock of a task that was taken by :meth:`acquire_task`."""
        grant = self._of_tasks.pop(name, None)
        return grant is not None and self.release(grant)

    # -- who else is there

    def held(self) -> list[LockRecord]:
        """Return all locks that are held, sorted by name."""
        names = sorted(self.store.read_held_locks())
        rows, now = self._read(names), self.store.clock.now()
        records = (LockRecord.of(name, stored, now, waiters)
                   for name, (stored, waiters) in zip(names, rows) if stored is not None)
        return [record for record in records if record is not None]

    def record(self, name: str) -> LockRecord | None:
        """Return who holds a lock; None: nobody does."""
        ((stored, waiters),) = self._read([name])
        return None if stored is None else LockRecord.of(name, stored, self.store.clock.now(), waiters)

    def _read(self, names: Sequence[str]) -> list[tuple[StoredEntry | None, int]]:
        """Return locks as they are stored; have leases cut that end too late, because Redis's clock was set back."""
        rows, now = self.store.read_locks(names), self.store.clock.now()
        cut = [LockRequest(self.store.keys.lock_location(name), "-", lease_length(stored), "-", b"")
               for name, (stored, _) in zip(names, rows)
               if stored is not None and not stored.deleted
               and stored.header.expires_at / 1000 - now > lease_length(stored) + UNNOTICED]
        with contextlib.suppress(StoreRefused):  # who may not write sees them as they are
            self.store.renew_locks(cut)
        return rows

    def awaited(self, task_id: str) -> LockRecord | None:
        """Return the lock for which a task stands in the queue; None: for none."""
        held = [record for record in self.held() if record.waiters]
        for record, waiting in zip(held, self.store.read_waiters([record.name for record in held])):
            if any(isinstance(one.value, dict) and one.value.get("task_id") == task_id for one in waiting):
                return record
        return None

    # -- what ends without a word

    def end_run(self, run: str) -> None:
        """Give back what the run of a task still holds at its end; the thread does it."""
        for grant in list(self._grants.values()):
            if grant.owner.run == run:
                self._give_up(grant)

    def release_if_ended(self, run: str, is_ended: Callable[[], bool]) -> None:
        """Free what a run of another process holds, as soon as that process is gone; the thread does it.

        Args:
            is_ended: Returns whether the process has ended.
        """
        self._ending_runs[run] = (is_ended, time.monotonic() + MAX_ENDED_RUN_WAIT)
        self._thread.wake()

    def renew_now(self) -> None:
        """Renew all leases soon, because Redis may have lost locks; the thread does it."""
        now = time.monotonic()
        for grant in list(self._grants.values()):
            grant.renew_at = min(grant.renew_at, now)
        self._schedule_by(now)

    def close(self, free: bool = True, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the thread and give back all that is held.

        Args:
            free: Whether Redis is there, so that it makes sense.
            timeout: Most seconds to wait for the thread, if that is less than :data:`STOP_TIMEOUT`.
        """
        for grant in list(self._grants.values()):
            grant.state = "leaving"
        end = time.monotonic() + (min(timeout, STOP_TIMEOUT) if free else 0)
        # Before the rest: a connection that a thread takes after the store was closed stays open.
        self._turns.close(max(0.0, end - time.monotonic()))
        self._thread.stop(max(0.0, end - time.monotonic()))
        try:
            if free:
                self._free_ended_runs()
                self._leave()
        except StoreError as exc:
            logger.warning("At shutdown locks could not be given back, their leases will end: %s", exc)
        finally:
            for leases in (self._grants, self._last, self._of_tasks):
                leases.clear()

    # -- the thread

    def renew(self) -> float | None:
        """Renew the locks for which it is time, give back what is to be; return in how many seconds to look again.

        Raises:
            StoreError: If Redis is away.
        """
        promised, self._next_look = self._next_look, float("inf")  # a lock that is taken from now on wakes this thread
        try:
            self._give_up_abandoned()
            # Each step, whatever the others met: of a cluster only one node may be away.
            within(self.store.timeout, _run_all, (
                partial(self._renew, time.monotonic()), self._leave, self._free_ended_runs))
        finally:
            self._lose_expired()
        now = time.monotonic()
        times = [grant.renew_at for grant in list(self._grants.values()) if grant.state == "held"]
        times += [grant.asked_until for grant in list(self._grants.values()) if grant.state == "left"]
        times += [now + ENDED_RUN_INTERVAL] * bool(self._ending_runs)
        if promised > now:
            # What it was for may be gone; but who takes one lock after another need not ring each time.
            times.append(promised)
        self._next_look = min(times, default=float("inf"))
        return None if self._next_look == float("inf") else max(0.0, self._next_look - now)

    def _renew(self, now: float) -> None:
        held = [grant for grant in list(self._grants.values()) if grant.state == "held"]
        for grant in held:
            if grant.renew_at <= now and grant.claim is None:
                grant.renew_at = now + CONFIRM_AFTER
        if not any(grant.renew_at <= now for grant in held):
            return
        due = [grant for grant in held if grant.claim is not None and grant.renew_at < grant.until
               and grant.renew_at <= now + grant.request.ttl * RENEW_AFTER * TOGETHER]
        requests = [grant.request for grant in due]
        bounded = [_bounded(grant, request, now) for grant, request in zip(due, requests)]
        answers = self.store.renew_locks(bounded, self.replicas) if bounded else []
        for grant, request, lease, still in zip(due, requests, bounded, answers):
            if still is None:
                grant.renew_at = time.monotonic() + AWAY_PAUSE
            elif not still and not self._restore(grant, lease):
                self._lose(grant)
            elif grant.request is request:
                grant.trust(now, request.ttl)
                self._lose_late(grant)

    def _restore(self, grant: LockLease, request: LockRequest) -> bool:
        """Take a lock again under its fence if Redis has lost it and no other process has taken it; return whether it has.

        Replicas that must acknowledge a lock have not lost it.  A lock that is missing though Redis was not restarted was
        deleted, or its data was: a running task gets it again, for its worker records the task again, too.  Any other
        holder has lost it.
        """
        if self.replicas or not grant.owned or grant.request.run == Owner().run and not self._is_restarted():
            return False
        if not self.store.restore_lock(request, grant.fence):
            return False
        logger.warning("Redis had lost the lock %s; its holder has it again", grant.name)
        return True

    def _is_restarted(self) -> bool:
        """Whether another Redis answers than the one that has given the first lock, or that can't be known."""
        before, self._run_id = self._run_id or self.store.run_id, self.store.read_run_id()
        return not before or self._run_id != before

    def _leave(self) -> None:
        _run_all([partial(self._leave_one, grant) for grant in list(self._grants.values())])

    def _leave_one(self, grant: LockLease) -> None:
        """Give a lock back that is to be given back, perhaps for the second time."""
        late = time.monotonic() >= grant.asked_until
        if grant.state == "leaving" or grant.state == "left" and late:
            held = self._released(grant.request)
            grant.state = "left"
            if held or late:
                self._end(grant)
            if held:
                self.events.emit("lock-released", name=grant.name)

    def _lose_expired(self) -> None:
        now = time.monotonic()
        for grant in list(self._grants.values()):
            if grant.state == "held" and grant.expired:
                self._lose(grant)
            elif grant.state in ("leaving", "left", "releasing") and now >= grant.until + SLACK:
                self._end(grant)

    def _lose(self, grant: LockLease) -> None:
        if grant.state == "held":
            self._end(grant)
            self._report_lost(grant)

    def _lose_late(self, grant: LockLease) -> None:
        """Lose a lock whose lease had run out when the answer to its renewal came; give back what Redis has renewed."""
        if grant.state == "held" and grant.expired:
            self._report_lost(grant)
            self._give_up(grant)

    def _report_lost(self, grant: LockLease) -> None:
        why = "its lease has run out"
        if grant.until > grant.hold_until - LAST_MOMENT:
            why = f"it was held for longer than its max_hold of {grant.max_hold:g} s"
        logger.warning("The lock %s is lost: %s, another holder may have it", grant.name, why)
        self.events.emit("lock-lost", name=grant.name)

    def _give_up_abandoned(self) -> None:
        for grant in list(self._grants.values()):
            if grant.is_abandoned and grant.owned:
                logger.warning("Releasing the lock %s: its object was collected, its thread ended, or its block "
                               "was left by an exception at its very end", grant.name)
                grant.state = "leaving"

    def _free_ended_runs(self) -> None:
        now = time.monotonic()
        ending = list(self._ending_runs.items())
        gone = {run for run, (is_gone, _) in ending if call_user_code("A look whether a child is gone", is_gone)}
        if gone:
            self._free_of(gone)
        for run, (_, end) in ending:
            if run in gone or now > end:
                self._ending_runs.pop(run, None)

    def _free_of(self, runs: set[str]) -> None:
        names = self.store.read_held_locks()
        for name, (stored, _) in zip(names, self.store.read_locks(names)):
            if stored is not None and stored.header.run in runs:
                holder = stored.header.writes.partition(",")[0]
                self._released(LockRequest(self.store.keys.lock_location(name), holder, 1.0, "-", b""))

    # -- helpers

    def _released(self, request: LockRequest) -> bool:
        """Give a lock back; tell whether it was held."""
        try:
            return self.store.leave_lock(request)
        except StoreRefused:
            return False  # something else is stored there: there is nothing to give back

    def _schedule_by(self, moment: float) -> None:
        if moment < self._next_look:
            self._next_look = moment
            self._thread.wake()

    def _give_up(self, grant: LockLease) -> None:
        """Have a lock given back by the thread, whether it is held, or was only asked for."""
        if grant.state == "asking":
            grant.asked_until = time.monotonic() + ON_ITS_WAY
        grant.state = "leaving"
        self._thread.wake()

    def _end(self, grant: LockLease) -> None:
        grant.state = "over"
        self._grants.pop(grant.request.holder, None)
        for leases in (self._last, self._of_tasks):
            if leases.get(grant.name) is grant:
                leases.pop(grant.name, None)


def _run_all(actions: Iterable[Callable[[], None]]) -> None:
    """Call actions, each whatever the others raise.

    Raises:
        StoreError: The first that one of them has raised.
    """
    failures: list[StoreError] = []
    for action in actions:
        try:
            action()
        except StoreError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]


def _bounded(grant: LockLease, request: LockRequest, now: float) -> LockRequest:
    """Return a request whose lease ends no later than ``max_hold``, so that the lock is free then."""
    left = grant.hold_until - now
    return request if request.ttl <= left else request._replace(ttl=left)
