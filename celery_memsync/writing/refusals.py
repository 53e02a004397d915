"""Writes that Redis refuses, or a newer fence, until their callers have been given an error."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..exceptions import LockLost, StoreError, StoreRefused, StoreUnavailable
from ..keys import Location
from ..store import UNREACHABLE, WriteResult, explain_code
from .changes import Change
from .pending import LONGEST_NODE_PAUSE, LONGEST_REFUSED_PAUSE, PendingChanges
from .requests import FencedWrite, FlushRequest
from .write_report import WriteReport

#: Most fenced writes that are kept for their callers.
MAX_FENCED = 1000


class Refusals:
    """Sets refused changes aside, and makes the errors of those who wait for them.

    Attributes:
        in_round: Entries of which a change was refused since the round began: what follows it must not overtake it.
    """

    def __init__(self, pending: PendingChanges, report: WriteReport, address: str) -> None:
        self.in_round: set[Location] = set()
        self._pending = pending
        self._report = report
        self._address = address
        #: What Redis answered to the writes that it refuses.
        self._refused: dict[Location, WriteResult] = {}
        #: What newer fences have refused and :meth:`BatchWriter.force` has not reported to the threads that it concerns.
        self._fenced: deque[FencedWrite] = deque(maxlen=MAX_FENCED)

    def __contains__(self, location: Location) -> bool:
        """Return whether Redis has refused a change of an entry that is still pending."""
        return location in self._refused

    def __bool__(self) -> bool:
        """Return whether Redis refuses anything."""
        return bool(self._refused)

    def add(self, change: Change, result: WriteResult) -> None:
        """Set a change aside that Redis refuses, so that it does not hold up the others."""
        earlier = self._refused.get(change.location)
        if result.code == UNREACHABLE and earlier is not None and earlier.maybe_done:
            result = result._replace(maybe_done=True)
        longest = LONGEST_NODE_PAUSE if result.is_of_node else LONGEST_REFUSED_PAUSE
        self._pending.refuse(change, result.maybe_done, longest)
        self.in_round.add(change.location)
        self._refused[change.location] = result
        if result.is_of_node:
            self._report.node_refused(result.error)
        else:
            self._report.refused(change.location, result.error)

    def keep(self, locations: Iterable[Location]) -> None:
        """Forget all refusals but those of the entries that are refused still."""
        self._refused = {location: self._refused[location] for location in locations if location in self._refused}
        if not any(result.is_of_node for result in self._refused.values()):
            self._report.nodes_restored()

    def error(self, locations: list[Location]) -> StoreError | None:
        """Return the error of a caller that wants these entries to be in Redis, or None if they are not refused."""
        results = [self._refused[location] for location in locations if location in self._refused]
        return refusal(locations[0].path, results, self._address) if results else None

    # -- by newer fences

    def fence_off(self, change: Change) -> None:
        """Take a change that was made under a lock which another process has had since, and has written."""
        self._report.fenced(change.location)
        self._fenced.extend(FencedWrite(change.location.path, author) for author in change.authors or (None,))
        self._report.dropped()

    def fence_error(self, request: FlushRequest) -> LockLost | None:
        """Return the error of a caller: the first of what newer fences refused, and each thread what it wrote itself."""
        if request.given_up:
            return None
        reported: list[FencedWrite] = []
        for _ in range(len(self._fenced)):
            fenced = self._fenced.popleft()
            is_own = fenced.is_by(request.caller)
            if is_own or not fenced.is_reported:
                reported.append(fenced)
            if not is_own and fenced.has_author:
                self._fenced.append(fenced._replace(is_reported=True))
        request.fenced = tuple(reported)
        paths = list(dict.fromkeys(fenced.path for fenced in reported))
        more = f" and {len(paths) - 1} others" if len(paths) > 1 else ""
        return LockLost(f"under which {paths[0]}{more} was written") if paths else None

    def give_back(self, request: FlushRequest) -> None:
        """Keep what was reported to a caller that does not wait any more for the next one."""
        if isinstance(request.error, LockLost):
            self._fenced.extend(request.fenced)


def refusal(key: str, results: list[WriteResult], address: str) -> StoreError:
    """Return the error for entries that Redis refuses to write, of which there may be more than this one."""
    others = f" and {len(results) - 1} more" if len(results) > 1 else ""
    code, error = results[0].code or "WRONGTYPE", results[0].error
    message = f"Could not write {key}{others} (Redis at {address}): {explain_code(code, error)}"
    return StoreUnavailable(message, results[0].maybe_done, code) if results[0].passes else StoreRefused(message, code)
