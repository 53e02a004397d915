"""Every key: how users name it, where Redis keeps it, which ids are fit for it.

Users name a thing by its path, ``<namespace>/tasks/<task_id>/state``.  Redis
keeps state and progress of one task in one string, its *page*: that takes half
the memory of a key each.  All that belongs to one task is in one slot of a cluster.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from .exceptions import InvalidKey

#: Longest id and longest key, in bytes.
MAX_ID = 512
MAX_KEY = 4 * MAX_ID

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_GLOB = re.compile(r"[*?\[\]\\]")

#: Slots of the page of a task: what Celery's signals tell, what users tell, how
#: far it is.  A user's own key has a page with the first slot only.
LIFE, STATE, PROGRESS = 1, 2, 3
SLOTS = 3
#: First part of the path of what the agents of a task share.
AGENTS = "agents/"
#: Between a slot and the entry of an earlier run that the page keeps.
FORMER = b"@"


class Place(NamedTuple):
    """Where Redis keeps an entry.

    Attributes:
        key: The Redis key: a page, or a hash.
        slot: The slot of the page; 0 for a hash.
        field: The field of the hash.
        channel: The entry's own key, also the channel on which its changes are told.
        task_id: The task whose page it is, or "".
    """

    key: str
    slot: int
    field: str
    channel: str
    task_id: str = ""


def check_id(value: object, what: str) -> str:
    """Return an id that is fit to be part of a key.

    Arguments:
        what: What the id is of, such as ``"task"``; named in the error.

    Raises:
        InvalidKey: If it is no string, empty, longer than 512 bytes, or holds
            ``/``, a control character or a glob character.
    """
    if not isinstance(value, str):
        raise InvalidKey(f"a {what} id is a string, not {type(value).__name__}")
    if not value:
        raise InvalidKey(f"the {what} id is empty")
    if "/" in value:
        raise InvalidKey(f"the {what} id {_shown(value)} holds '/', which separates the parts of a key")
    _check_text(value, f"{what} id", MAX_ID)
    return value


def _check_text(value: str, what: str, limit: int) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"the {what} {_shown(value)} is not valid Unicode text") from None
    if size > limit:
        raise InvalidKey(f"the {what} {_shown(value)} is {size} bytes long; at most {limit} are allowed")
    if _CONTROL.search(value):
        raise InvalidKey(f"the {what} {_shown(value)} holds a control character")
    if _GLOB.search(value):
        raise InvalidKey(f"the {what} {_shown(value)} holds a glob character (one of * ? [ ] \\)")


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else value[:57] + "...")


class Keys:
    """The keys under one namespace.

    Arguments:
        namespace: Root of every key.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._root = namespace + "/"
        #: Stream of task ids in the order of their first write.
        self.task_index = f"{namespace}//{{tasks}}"
        #: Hash of what is told of workers, a field per worker and thing.
        self.workers = f"{namespace}//{{workers}}"
        #: Sorted set of worker ids by the time of their last beat (ms).
        self.beats = f"{namespace}//{{workers}}/beats"

    # -- places, by noun

    def task(self, task_id: str) -> str:
        """The page of a task; the id is taken as checked.  No path of a user's ends with a slash."""
        return f"{self._root}tasks/{{{task_id}}}/"

    def agents(self, task_id: str) -> str:
        """The hash of what the agents of a task share; the id is taken as checked."""
        return f"{self._root}tasks/{{{task_id}}}/{AGENTS}"

    def task_place(self, task_id: str, slot: int) -> Place:
        """Where a thing of a task is kept; the id is taken as checked."""
        name = "progress" if slot == PROGRESS else "state"
        return Place(f"{self._root}tasks/{{{task_id}}}/", slot, "", f"{self._root}tasks/{task_id}/{name}", task_id)

    def agent_place(self, task_id: str, agent_id: str) -> Place:
        """Where the data of one agent of a task is kept."""
        check_id(task_id, "task")
        check_id(agent_id, "agent")
        return Place(self.agents(task_id), 0, agent_id, f"{self._root}tasks/{task_id}/{AGENTS}{agent_id}")

    def worker_place(self, worker_id: str, thing: str) -> Place:
        """Where ``status``, ``heartbeat`` or ``capacity`` of a worker is kept."""
        return Place(self.workers, 0, f"{worker_id}/{thing}", f"{self._root}workers/{worker_id}/{thing}")

    # -- places, by path

    def full(self, key: object) -> str:
        """Return a key with its namespace.

        Raises:
            InvalidKey: If no part of it, or the whole, is fit for a key.
        """
        if not isinstance(key, str):
            raise InvalidKey(f"a key is a string, not {type(key).__name__}")
        relative = key[len(self._root):] if key.startswith(self._root) else key
        if not relative:
            raise InvalidKey("the key is empty")
        _check_text(relative, "key", MAX_KEY)
        parts = relative.split("/")
        if not all(parts):
            raise InvalidKey(f"the key {_shown(key)} has an empty part; parts are separated by single slashes")
        if any(len(part.encode()) > MAX_ID for part in parts):
            raise InvalidKey(f"a part of the key {_shown(key)} is longer than {MAX_ID} bytes")
        return self._root + relative

    def place(self, key: object) -> Place:
        """Return where an entry is kept that is named by its path.

        Raises:
            InvalidKey: As :meth:`full`.
        """
        full = self.full(key)
        noun, _, rest = full[len(self._root):].partition("/")
        owner, _, thing = rest.partition("/")
        if noun == "workers" and thing:
            return Place(self.workers, 0, f"{owner}/{thing}", full)
        if noun != "tasks" or not thing:
            return Place(full, 1, "", full)
        if thing in ("state", "progress"):
            return self.task_place(owner, STATE if thing == "state" else PROGRESS)
        if thing.startswith(AGENTS):
            return Place(self.agents(owner), 0, thing[len(AGENTS):], full)
        return Place(f"{self._root}tasks/{{{owner}}}/{thing}", 1, "", full)
