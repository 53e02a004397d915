"""The steps of a workflow that are not sent yet, as Celery's messages and requests have them.

A message holds the rest of its chain (``chain``: signatures, the next one last) and the body of its chord (``chord``).
Signatures are dicts that may have come with a message, where anybody may write anything.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..keys import is_id
from ..models.stamps import size_of, stamps_of

logger = logging.getLogger(__name__)

#: Most steps that are taken of a message, most bytes of their ids and names, and how deep they may be nested.
MAX_STEPS, MAX_BYTES, MAX_DEPTH = 50, 64 * 1024, 20

#: Most signatures that are looked at to find them.
MAX_LOOKS = 500

#: Longest name of a task, in characters.
MAX_NAME = 512


class Step(NamedTuple):
    """A task of a workflow that is not sent yet.

    Attributes:
        task_id: Its id.
        name: Of its task; None if that is no name.
        group: Id of the group that it is a member of.
        depends_on: Ids of the tasks and groups that come before it.
        is_body: Whether it comes after the chord of which the task itself is a part of the header.
        stamps: What it is stamped with.
    """

    task_id: str
    name: str | None
    group: str | None
    depends_on: tuple[str, ...]
    is_body: bool
    stamps: dict[str, Any] | None = None


class Steps:
    """The steps that come after a task.

    Args:
        task_id: Of the task.
        group: The group that it is a member of.
        embed: ``chain`` and ``chord`` of its message or request.

    Attributes:
        by_id: The steps by task id, in their order.
        sizes: How many members the groups among them have, by group id.
    """

    def __init__(self, task_id: str, group: Any, embed: Mapping[str, Any]) -> None:
        self.by_id: dict[str, Step] = {}
        self.sizes: dict[str, int] = {}
        self._looks = 0
        self._bytes = 0
        chain, chord = _reversed(embed.get("chain")), embed.get("chord")
        # A sender is given the id of what comes last, so a place is left for that.
        self._most = MAX_STEPS - bool(chain) - bool(chord)
        ends = self._walk_all(chain[:-1][:MAX_STEPS], (task_id,), False, 0)
        self._most += bool(chain)
        ends = self._walk_all(chain[-1:], ends, False, 0)
        self._most += bool(chord)
        self._walk(chord, (group,) if is_id(group) else ends, True, 0)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.by_id.values())

    def _walk_all(
        self, signatures: Any, before: tuple[str, ...], is_body: bool, depth: int, group: str | None = None,
    ) -> tuple[str, ...]:
        """Take steps that come one after the other; the last one is the member of a group."""
        rows = signatures if isinstance(signatures, (list, tuple)) else ()
        for number, signature in enumerate(rows):
            before = self._walk(signature, before, is_body, depth, group if number == len(rows) - 1 else None)
        return before

    def _walk(
        self, signature: Any, before: tuple[str, ...], is_body: bool, depth: int, group: str | None = None,
    ) -> tuple[str, ...]:
        """Take the steps of a signature; return the ids of what the next one depends on."""
        self._looks += 1
        if not isinstance(signature, dict) or depth > MAX_DEPTH or self._looks > MAX_LOOKS or len(self.by_id) >= self._most:
            return before
        options, kwargs = _dict(signature.get("options")), _dict(signature.get("kwargs"))
        own = options.get("task_id")
        if group is None and options.get("group_index") is not None and is_id(options.get("group_id")):
            group = options["group_id"]  # without an index it is that of the header before it
        if _is_of(signature, "chain"):
            ends = self._walk_all(kwargs.get("tasks"), before, is_body, depth + 1, group)
        elif _is_of(signature, "group"):
            ends = self._walk_group(kwargs.get("tasks"), own, before, is_body, depth + 1)
        elif _is_of(signature, "chord"):
            header = kwargs.get("header")
            inner = _dict(header)
            # Celery makes up another id when it sends what is around it.
            header_id = None if depth else _dict(inner.get("options")).get("task_id") or own
            members = _dict(inner.get("kwargs")).get("tasks") if inner else header
            self._most -= 1  # for the body
            ends = self._walk_group(members, header_id, before, is_body, depth + 1)
            self._most += 1
            ends = self._walk(kwargs.get("body"), ends, is_body, depth + 1, group)
        else:
            ends = self._add(options, signature.get("task"), group, before, is_body)
        rest = self._walk_all(_reversed(options.get("chain")), ends, is_body, depth + 1)
        self._walk(options.get("chord"), (group,) if group else ends, is_body, depth + 1)
        return rest

    def _walk_group(
        self, members: Any, group_id: Any, before: tuple[str, ...], is_body: bool, depth: int,
    ) -> tuple[str, ...]:
        group = group_id if is_id(group_id) else None
        rows = members if isinstance(members, (list, tuple)) else ()
        if group is not None and rows:
            self.sizes[group] = len(rows)
        ends = [end for row in islice(rows, MAX_STEPS) for end in self._walk(row, before, is_body, depth, group)]
        return (group,) if group is not None else tuple(dict.fromkeys(ends))

    def _add(
        self, options: dict[str, Any], name: Any, group: str | None, before: tuple[str, ...], is_body: bool,
    ) -> tuple[str, ...]:
        task_id: Any = options.get("task_id")
        stamps = stamps_of(options.get("stamped_headers"), options)
        if not is_id(task_id):
            return before
        name = name if isinstance(name, str) and 0 < len(name) <= MAX_NAME else None
        self._bytes += len(task_id.encode()) + len((name or "").encode(errors="replace")) + sum(map(len, before))
        self._bytes += size_of(stamps)
        if self._bytes > MAX_BYTES:
            return before
        self.by_id.setdefault(task_id, Step(task_id, name, group, before[:MAX_STEPS], is_body, stamps))
        return (task_id,)


def part_of(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return what came with a message of the workflow of its task: anybody may send anything."""
    workflow, before, group = sent.get("workflow"), sent.get("depends_on"), sent.get("group")
    ids = [one for one in before if is_id(one)][:MAX_STEPS] if isinstance(before, list) else None
    known = {"workflow": workflow if is_id(workflow) else None, "depends_on": ids or None}
    header = sent.get("header")
    return {**known, "group": group, "header": header if is_id(header) else None} if is_id(group) else known


def is_member(facts: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Return whether a task is a member of the group that its message names; the body of a chord has no number in it."""
    return facts.get("group_index") is not None or "member" in sent


def has_steps(embed: Any) -> bool:
    """Return whether something comes after a task, according to what its message or request embeds."""
    return isinstance(embed, Mapping) and bool(embed.get("chain") or embed.get("chord"))


def embed_of(body: Any) -> Mapping[str, Any]:
    """Return what the body of a message embeds beside arguments; {} of a body that is none of Celery's second protocol."""
    embed = body[2] if isinstance(body, (list, tuple)) and len(body) == 3 else None
    return embed if isinstance(embed, Mapping) else {}


def embed_in(message: Any) -> Mapping[str, Any]:
    """Return what the body of a message that a worker received embeds; {} if it can't be read."""
    try:
        return embed_of(getattr(message, "payload", None))
    except Exception:  # of kombu's decoders, whatever they are
        logger.debug("Could not read which steps come after a message", exc_info=True)
        return {}


def last_id(embed: Mapping[str, Any]) -> str | None:
    """Return the id of what comes last after a task, by which it is recognized in each message that has it."""
    chain = embed.get("chain")
    last = chain[0] if isinstance(chain, (list, tuple)) and chain else embed.get("chord")
    found = _dict(_dict(last).get("options")).get("task_id")
    return found if is_id(found) else None


def _is_of(signature: Any, kind: str) -> bool:
    return isinstance(signature, dict) and (
        signature.get("subtask_type") == kind or signature.get("task") == f"celery.{kind}")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _reversed(chain: Any) -> Sequence[Any]:
    return chain[::-1] if isinstance(chain, (list, tuple)) else ()
