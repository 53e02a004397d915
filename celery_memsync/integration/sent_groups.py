"""The groups that are being sent: Celery's messages do not say how many members a group has."""
from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from itertools import chain, islice
from typing import Any

from celery import canvas

from ..keys import is_id
from ..models.task import TaskRun, workflow_id_of
from ..store.members import SINCE, TOTAL, TOTAL_FROM, note
from ..user_code import ends_here

logger = logging.getLogger(__name__)

#: Most members of a group; what has more is wrong.
MAX_MEMBERS = 10 ** 9

#: Most groups, each in the next, of which the sizes are taken from a message.
MAX_GROUPS = 20


class SentGroup:
    """A group whose members are being sent by this thread or greenlet.

    Attributes:
        group_id: Its id.
        size: How many members it has, of which some may be sent later, as the last task of a chain; 0 of a generator that
            has not made the last one yet.
        outer: The group as a member of which it is sent, if there is one.
        noted: Which size was recorded, with the first message, and with the last one if it was not known before.
    """

    __slots__ = ("group_id", "size", "outer", "noted")

    def __init__(self, group_id: str, size: int, outer: SentGroup | None) -> None:
        self.group_id = group_id
        self.size = size
        self.outer = outer
        self.noted: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of this group and of those around it, which travel with its messages.

        A worker may record members before the sender has recorded anything, and no reader may take them for all.
        """
        return {self.group_id: self.size, **({} if self.outer is None else self.outer.sizes)}

    @property
    def outermost(self) -> str:
        """The id of the group of which all others are a part."""
        return self.group_id if self.outer is None else self.outer.outermost

    def notes(self, run: TaskRun) -> tuple[tuple[str, str], ...]:
        """Return what to note of this group, and of those around it, with a message.

        Args:
            run: What that message sends.
        """
        outer = () if self.outer is None else self.outer.notes(run)
        if self.noted == self.size:
            return outer
        is_first, self.noted = self.noted is None, self.size
        own = size_notes(self.group_id, self.size, run.published_at if is_first else None)
        whole = workflow_id_of(run)
        is_part = is_first and whole is not None and whole != self.group_id and is_id(whole)
        return (*outer, *own, *([(str(whole), note(f"/{self.group_id}"))] if is_part else []))


#: The group whose members are being sent by this thread or greenlet.
sent_group: ContextVar[SentGroup | None] = ContextVar("sent_group", default=None)


def size_notes(group_id: str, size: int, since: float | None) -> tuple[tuple[str, str], ...]:
    """Return what to note of the size of a group, and of when it was sent, in seconds of Redis's clock."""
    total = (group_id, note(TOTAL, TOTAL_FROM + size))
    return (total,) if since is None else (total, (group_id, note(SINCE, -round(since * 1000))))


def sizes_of(sent: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of groups that came with a message: anybody may send anything."""
    sizes = sent.get("sizes")
    rows = islice(sizes.items(), MAX_GROUPS) if isinstance(sizes, dict) else ()
    return {group_id: size for group_id, size in rows
            if is_id(group_id) and type(size) is int and 0 <= size < MAX_MEMBERS}


def sizes_in(sent: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what to note of the sizes of groups that came with a message."""
    return tuple((group_id, note(TOTAL, TOTAL_FROM + size)) for group_id, size in sizes_of(sent).items())


def count_sent_groups() -> None:
    """Let the sending of every group say how many members it has; there is no signal."""
    send = canvas.group._apply_tasks
    if hasattr(send, "counts_members"):
        return

    @functools.wraps(send)
    def send_counted(self: Any, tasks: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
        outer = sent_group.get()
        rest = iter(tasks)
        first = next(rest, None)
        sent = _sent(self, first, outer)
        sent_group.set(sent)
        rest = rest if first is None else chain((first,), rest)
        if sent is not None and sent.size == 0:
            rest = _counted(rest, sent)
        try:
            yield from send(self, rest, *args, **kwargs)
        finally:
            sent_group.set(outer)

    send_counted.counts_members = True  # type: ignore[attr-defined]
    canvas.group._apply_tasks = send_counted


def _counted(tasks: Iterable[Any], sent: SentGroup) -> Iterator[Any]:
    """Yield the members of a group, and count them: Celery sends the last one after it has looked for another."""
    size = 0
    for task in tasks:
        size += canvas._chord._descend(task[0])
        yield task
    sent.size = size


def _is_open(tasks: Any) -> bool:
    """Whether the members of a group come from a generator, which counting would exhaust."""
    if isinstance(tasks, canvas._regen):
        return not getattr(tasks, "_regen__done", True)
    return any(isinstance(one, canvas.group) and _is_open(one.tasks) for one in tasks)


def _sent(group: Any, first: Any, outer: SentGroup | None) -> SentGroup | None:
    """Return the group that is about to be sent; the one around it if this can't be known."""
    try:
        group_id, is_open = first[2], _is_open(group.tasks)
        size = 0 if is_open else canvas._chord._descend(group)
    except Exception as exc:  # it is Celery's, and counts what users have put together
        if not ends_here(exc):
            raise
        logger.debug("Could not count the members of a group", exc_info=True)
        return outer
    return SentGroup(group_id, size, outer) if is_id(group_id) and (is_open or 0 < size < MAX_MEMBERS) else outer
