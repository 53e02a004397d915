"""Entries that are put back as they were."""
from __future__ import annotations

from typing import Any, NamedTuple, Sequence

from ..connections import redis_call
from ..keys import SLOTS, Place
from ..records import WAITING, Header, Stored
from ..scripts import COORDINATION_RESTORE, ENTRY_RESTORE
from .calls import SCRIPT_SIZE, Calls, ms
from .entries import MAX_FORMER, Outcome


class Saved(NamedTuple):
    """An entry that is to be put back; see ``lua/entry_restore.lua``.

    Attributes:
        place: Where it goes.
        stored: What was stored there.
        left: Seconds that it lives from now on.
        former: Whether an earlier run of its task told it.
        published: Of a stage: when the task was published, in seconds; 0 if that is not known.
        due: Of a heartbeat: seconds from now after which its worker is lost unless it beats; negative: when it was lost,
            or has said goodbye, in seconds of Redis's clock.  None: it is no heartbeat.
    """

    place: Place
    stored: Stored
    left: float
    former: bool = False
    published: float = 0.0
    due: float | None = None


class RestoreCalls(Calls):
    """What is about putting things back."""

    @redis_call
    def restore_entries(self, entries: Sequence[Saved]) -> list[Outcome]:
        """Put entries back unless newer ones are there: ``ok``, ``same``, ``newer`` or ``error`` for each."""
        own = self.keys
        calls = []
        for start in range(0, len(entries), SCRIPT_SIZE):
            chunk = entries[start:start + SCRIPT_SIZE]
            keys = [one.place.key for one in chunk]
            keys += (own.task_index, own.names, own.pending, own.processing, own.about, own.beats)
            args: list[Any] = [len(chunk), self._horizon, SLOTS, MAX_FORMER, self.prefix, self._together]
            for place, stored, left, former, published, due in chunk:
                header = stored.header
                args += (f"{place.slot}@" if former else place.where, place.path, place.task_id, header.version, header.run,
                         header.rank, header.fence, header.time, ms(left), header.writes, header.worker_id,
                         round(published * 1e4) if header.rank in WAITING else 0,
                         "-" if due is None else round(due * 1000), stored.body)
            calls.append((keys, args))
        answers = self._run(ENTRY_RESTORE, calls, tells=True) if calls else []
        return [_restored(one) for answer in answers for one in answer[2:]]

    @redis_call
    def restore_together(self, thing: str, header: Header, left: float, rest: Sequence[Any]) -> Outcome:
        """Put a part of the queue or of the metrics back, as :meth:`restore_entries`.

        Arguments:
            rest: As ``lua/coordination_restore.lua`` has it.
        """
        own = self.keys
        args = [thing, header.version, header.time, ms(left), header.worker_id, self.prefix, self._together, *rest]
        names = [own.pending, own.processing, own.metrics, own.about]
        return _restored(self._run(COORDINATION_RESTORE, [(names, args)], tells=True)[0])


def _restored(answer: Sequence[Any]) -> Outcome:
    status = answer[0].decode()
    return Outcome(status, error=answer[1].decode()) if status == "error" else Outcome(status, answer[1])
