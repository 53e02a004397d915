"""The Lua scripts, by name."""
from __future__ import annotations

from hashlib import sha1
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the name that Redis gives it.

    Attributes:
        text: The Lua.
        sha: What EVALSHA calls it by.
    """

    text: str
    sha: str


def load(name: str) -> Script:
    """Return the script ``lua/<name>.lua``."""
    text = resources.files(__package__).joinpath("lua", f"{name}.lua").read_text()
    return Script(text, sha1(text.encode()).hexdigest())


COORDINATION_WRITE = load("coordination_write")
ENTRY_WRITE = load("entry_write")
LOSS_RENEW = load("loss_renew")
WORKER_BEAT = load("worker_beat")
