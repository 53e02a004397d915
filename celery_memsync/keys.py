"""Every key: how users name it, where Redis keeps it, which ids are fit for it.

Users name a thing by its path, ``<namespace>/tasks/<task_id>/state``.  Redis
keeps state and progress of one task in one string, its *page*: that takes half
the memory of a key each.  All that belongs to one task is in one slot of a cluster.

A pattern stands for many keys: a glob as Redis has them, over full paths.
"""
from __future__ import annotations

import random
import re
import string
from typing import NamedTuple
from uuid import UUID

from .exceptions import InvalidKey
from .globs import glob_regex, shown_text

#: Longest id and longest key, in bytes.
MAX_ID = 512

MAX_KEY = 4 * MAX_ID

#: Ids that need no further look: those of Celery and of most people.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:@-]{1,512}").fullmatch

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:@/-]{1,512}").fullmatch

#: A user's key that needs no further look, behind what it must not begin with.
_OWN_KEY = r"(?!(?:{})/)[A-Za-z0-9_.:@-]+(?:/[A-Za-z0-9_.:@-]+)*"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_GLOB = re.compile(r"[*?\[\]\\]")

#: Slots of the record of a task: what Celery's signals record, what users write, how
#: far it is.  A user's own key has a page with the first slot only.
STAGE, STATE, PROGRESS = 1, 2, 3

SLOTS = 3

#: First part of the path of what the agents of a task share.
AGENTS = "agents/"

#: Between a slot and the entry of an earlier run that the page keeps.
FORMER = b"@"

#: Paths of what the processes of a namespace do together, and what of it has no value in one piece.
COORDINATION = "coordination"

QUEUE, METRICS, ASSIGNMENTS = "queue", "metrics", "assignments"

#: Path under which it is published that the cancelled ids have changed.
CANCELLED = f"{COORDINATION}/cancelled"

#: First parts of the paths of what this package knows of; all others are users' own.
_NOUNS = frozenset({"tasks", "workers", "locks", COORDINATION})

_TOKEN_LETTERS = string.ascii_letters + string.digits


class Location(NamedTuple):
    """Where Redis keeps an entry.

    Attributes:
        key: The Redis key: a page, or a hash.
        slot: The slot of the page; 0 for a hash.
        field: The field of the hash.
        path: What users call it; its changes are published under that name.
        task_id: The task to which it belongs, or "".
    """

    key: str
    slot: int
    field: str
    path: str
    task_id: str = ""

    @property
    def slot_or_field(self) -> str:
        """The slot, or a colon and the field, as the scripts take and publish it."""
        return str(self.slot) if self.slot else ":" + self.field


def new_token() -> str:
    """Return eight letters and digits that no other writer has."""
    # Not the random module's own generator: its state crosses a fork, and users seed it.
    return "".join(random.SystemRandom().choices(_TOKEN_LETTERS, k=8))


def check_id(value: object, what: str) -> str:
    """Return an id that is fit to be part of a key.

    Args:
        value: The id; of a :class:`uuid.UUID` its text is taken.
        what: What the id is of, such as ``"task"``; named in the error.

    Raises:
        InvalidKey: If it is neither string nor UUID, empty, longer than 512 bytes, or holds
            ``/``, a control character or a glob character.
    """
    if type(value) is str and _PLAIN_ID(value):
        return value
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        such_as = ", such as result.id" if what == "task" else ""
        raise InvalidKey(f"a {what} id is a string or a UUID{such_as}, not {type(value).__name__}")
    if not value:
        raise InvalidKey(f"the {what} id is empty")
    if "/" in value:
        raise InvalidKey(f"the {what} id {shown_text(value)} holds '/', which separates the parts of a key")
    _check_text(value, f"{what} id", MAX_ID)
    return value


def is_id(value: object) -> bool:
    """Return whether something that was read is a text that is fit to be an id."""
    if type(value) is str and _PLAIN_ID(value):
        return True
    try:
        return check_id(value, "read") is value
    except InvalidKey:
        return False


def _check_text(value: str, what: str, limit: int, globs: bool = False) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"the {what} {shown_text(value)} is not valid Unicode text") from None
    if size > limit:
        raise InvalidKey(f"the {what} {shown_text(value)} is {size} bytes long; at most {limit} are allowed")
    if _CONTROL.search(value):
        raise InvalidKey(f"the {what} {shown_text(value)} holds a control character")
    if not globs and _GLOB.search(value):
        raise InvalidKey(f"the {what} {shown_text(value)} holds a glob character (one of * ? [ ] \\)")


def _tagged(name: str) -> str:
    """Return an id in braces, which choose the slot of a cluster unless they hold nothing; no id holds a slash."""
    return f"{{{name}}}" if not name.startswith("}") else f"{{/}}{{{name}}}"


class Keys:
    """The keys under one namespace.

    Args:
        namespace: Root of every key.
        together: Whether all that is of no single task or key is to be in one slot of a cluster.
    """

    def __init__(self, namespace: str, together: bool = False) -> None:
        self.namespace = namespace
        self._together = together
        self._root = namespace + "/"
        self._is_own = re.compile(_OWN_KEY.format("|".join(map(re.escape, (namespace, *_NOUNS))))).fullmatch
        #: High-water mark of the clock of fences and lives of keys (us), see ``store/lua/hybrid_clock.lua``; kept for ever.
        self.clock = f"{namespace}//{{clock}}"
        #: Stream of task ids in the order of their first write.
        self.task_index = self._shared("tasks")
        #: Hash of records of workers, a field per worker and thing.
        self.workers = self._shared("workers")
        #: Sorted set of the paths of users' own keys by when they are over (ms).
        self.names = self._shared("keys")
        #: Hash of entries that stand for the queue and the metrics: their versions.
        self.about = self._shared("coordination")
        #: Sorted sets of task ids by when they are over (us), which is in the order in which they came.
        self.pending = f"{self.about}/pending"
        self.processing = f"{self.about}/processing"
        #: Hash of counters.
        self.metrics = f"{self.about}/metrics"
        #: Sorted sets of the tasks of groups and workflows, by how far they are.
        self._members = self._shared("members")
        #: Sorted set of the records of statistics, by when they are forgotten (ms), see ``store/lua/statistics.lua``.
        self.statistics = f"{self.about}/statistics"
        #: Sorted set of cancelled ids, by when they are forgotten (ms); hash of who cancelled each, when and why.
        self.cancelled = f"{self.about}/cancelled"
        self.cancel_causes = f"{self.cancelled}/causes"
        #: Sorted set of the locks that are held, by the end of their lease (ms).
        self.locks = self._shared("locks")
        #: Sorted set of workers by when they are lost without a further heartbeat (ms).
        self.heartbeats = f"{self.workers}/heartbeats"
        #: Sorted set of lost workers whose tasks are not recorded yet, by the end of the lease of the recording worker (ms).
        self.lost = f"{self.workers}/lost"
        #: Hash of how many workers were lost.
        self.worker_totals = f"{self.workers}/totals"
        #: Sorted set of workers by the newest format that each knows.
        self.formats = f"{self.workers}/formats"
        #: Sorted set of tasks and paths by when what was noted of them last was written (us); of a cluster.
        self.noted = f"{self.about}/noted"
        #: What may be written to see whether it may.
        self.scratch = self._shared("rights")

    def _shared(self, name: str) -> str:
        return f"{self.namespace}//{{{self.namespace}}}/{name}" if self._together else f"{self.namespace}//{{{name}}}"

    def messages(self, token: str) -> str:
        """The hash of the messages that a worker keeps of its running tasks, a field per run."""
        return f"{self.workers}/messages/{token}"

    def members(self, group_id: str) -> str:
        """The sorted set of the tasks of a group or workflow; the id is taken as checked."""
        return f"{self._members}/{group_id}"

    # -- places, by noun

    def task(self, task_id: str) -> str:
        """The page of a task; the id is taken as checked.  No path of a user's ends with a slash."""
        return f"{self._root}tasks/{_tagged(task_id)}/"

    def agents(self, task_id: str) -> str:
        """The hash of what the agents of a task share; the id is taken as checked."""
        return f"{self._root}tasks/{_tagged(task_id)}/{AGENTS}"

    def task_location(self, task_id: str, slot: int) -> Location:
        """Where a thing of a task is kept; the id is taken as checked."""
        name = "progress" if slot == PROGRESS else "state"
        return Location(f"{self._root}tasks/{_tagged(task_id)}/", slot, "", f"{self._root}tasks/{task_id}/{name}", task_id)

    def agent_location(self, task_id: str, agent_id: str) -> Location:
        """Where the data of one agent of a task is kept."""
        task_id, agent_id = check_id(task_id, "task"), check_id(agent_id, "agent")
        path = f"{self._root}tasks/{task_id}/{AGENTS}{agent_id}"
        return Location(self.agents(task_id), 0, agent_id, path, task_id)

    def worker_location(self, worker_id: str, thing: str) -> Location:
        """Where ``status``, ``heartbeat`` or ``capacity`` of a worker is kept."""
        return Location(self.workers, 0, f"{worker_id}/{thing}", f"{self._root}workers/{worker_id}/{thing}")

    def coordination_location(self, thing: str) -> Location:
        """Where the queue, the metrics or the assignments are kept."""
        path = f"{self._root}{COORDINATION}/{thing}"
        return Location(path, 1, "", path) if thing == ASSIGNMENTS else Location(self.about, 0, thing, path)

    def lock_location(self, name: str) -> Location:
        """Where a lock is kept; its name is taken as checked.  ``tasks/<task_id>`` names the lock of a task."""
        noun, _, task_id = name.partition("/")
        if task_id:
            return Location(f"{self._root}{noun}/{_tagged(task_id)}/lock", 1, "", f"{self._root}{name}/lock")
        return Location(f"{self._root}locks/{_tagged(name)}", 1, "", f"{self._root}locks/{name}")

    def lock_name(self, path: str) -> str | None:
        """Return the name of the lock that is kept under a path, None for anything else."""
        noun, _, rest = path[len(self._root):].partition("/")
        if noun not in _NOUNS:
            return None
        owner, _, thing = rest.partition("/")
        if noun == "tasks" and thing == "lock":
            return f"tasks/{owner}"
        return owner if noun == "locks" and owner and not thing else None

    @property
    def turns(self) -> str:
        """The begin of the names of channels on which a process is notified that a lock is given to it."""
        return f"{self.namespace}//{{locks}}/turns/"

    def done(self, token: str, kind: str) -> str:
        """The numbers of the changes of one kind that one process made last, kept for a second try of them."""
        return f"{self.about}/done/{token}/{kind}"

    def new_list(self, token: str, serial: int, name: str) -> str:
        """A list of the queue while it is made, to be put in the place of the one of that name."""
        return f"{self.about}/new/{token}/{serial}/{name}"

    # -- places, by path

    def full(self, key: object) -> str:
        """Return a key with its namespace.

        Raises:
            InvalidKey: If no part of it, or the whole, is fit for a key.
        """
        return self._root + self._relative(key)

    def _relative(self, key: object) -> str:
        """Return a key without its namespace."""
        if not isinstance(key, str):
            raise InvalidKey(f"a key is a string, not {type(key).__name__}")
        relative = key[len(self._root):] if key.startswith(self._root) else key
        if _PLAIN_KEY(relative) and "//" not in f"/{relative}/":
            return relative
        if not relative:
            raise InvalidKey("the key is empty")
        _check_text(relative, "key", MAX_KEY)
        parts = relative.split("/")
        if not all(parts):
            raise InvalidKey(f"the key {shown_text(key)} has an empty part; parts are separated by single slashes")
        if any(len(part.encode()) > MAX_ID for part in parts):
            raise InvalidKey(f"a part of the key {shown_text(key)} is longer than {MAX_ID} bytes")
        return relative

    def pattern(self, pattern: object) -> str:
        """Return a pattern over full paths.

        Raises:
            InvalidKey: If it is no text, empty, too long, holds a control
                character, or a ``[`` without its ``]``.
        """
        if not isinstance(pattern, str):
            raise InvalidKey(f"a pattern is a string, not {type(pattern).__name__}")
        if not pattern:
            raise InvalidKey("the pattern is empty; '*' stands for all keys")
        _check_text(pattern, "pattern", MAX_KEY, globs=True)
        glob_regex(pattern)
        return pattern if pattern.startswith(self._root) else self._root + pattern

    def location(self, key: object) -> Location:
        """Return where an entry is kept that is named by its path.

        Raises:
            InvalidKey: As :meth:`full`.
        """
        if type(key) is str and len(key) <= MAX_ID and self._is_own(key):
            full = self._root + key
            return Location(full, 1, "", full)
        relative = self._relative(key)
        full = self._root + relative
        noun, _, rest = relative.partition("/")
        if noun not in _NOUNS:
            return Location(full, 1, "", full)
        owner, _, thing = rest.partition("/")
        if noun == COORDINATION and rest in (QUEUE, METRICS):
            return self.coordination_location(rest)
        if noun == "workers" and thing:
            return Location(self.workers, 0, f"{owner}/{thing}", full)
        lock = self.lock_name(full)
        if lock is not None:
            return self.lock_location(lock)
        if noun != "tasks" or not thing:
            return Location(full, 1, "", full)
        if thing in ("state", "progress"):
            return self.task_location(owner, STATE if thing == "state" else PROGRESS)
        if thing.startswith(AGENTS):
            return Location(self.agents(owner), 0, thing[len(AGENTS):], full, owner)
        return Location(f"{self._root}tasks/{_tagged(owner)}/{thing}", 1, "", full)
