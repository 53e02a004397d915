"""Redis's globs, as patterns over full keys and as regular expressions."""
from __future__ import annotations

import functools
import re
from collections.abc import Callable

from .exceptions import InvalidKey

#: Letters of a glob that stand for others; a pattern without them matches itself alone.
GLOB_LETTERS = "*?[\\"


def shown_text(value: str) -> str:
    """Return a text as an error shows it: in ASCII, and cut."""
    return ascii(value if len(value) <= 60 else value[:57] + "...")


def is_glob(pattern: str) -> bool:
    """Return whether a pattern may match anything but itself."""
    return any(letter in pattern for letter in GLOB_LETTERS)


def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that returns whether a path matches a glob, as Redis would: ``*`` goes across slashes.

    Raises:
        InvalidKey: If a ``[`` has no ``]``.
    """
    matches = glob_regex(pattern).fullmatch
    return lambda path: matches(_bytewise(path))


@functools.lru_cache(maxsize=256)
def glob_regex(pattern: str) -> re.Pattern[str]:
    """Return a glob of Redis's as a regular expression: ``*``, ``?``, ``[abc]``, ``[a-z]``, ``[^a]``, ``\\x``.

    What stands between two stars is looked for once, where it comes first, and
    never again (a lookahead and what it found, as in :mod:`fnmatch`): a pattern
    of many stars would take for ever otherwise.
    """
    text, at = _bytewise(pattern), 0
    pieces = [""]
    while at < len(text):
        letter, at = text[at], at + 1
        if letter == "*":
            pieces.append("")
        elif letter == "?":
            pieces[-1] += "."
        elif letter == "[":
            regex, at = _class_regex(text, at)
            pieces[-1] += regex
        elif letter == "\\" and at < len(text):
            pieces[-1] += re.escape(text[at])
            at += 1
        else:
            pieces[-1] += re.escape(letter)
    first, *between = pieces
    if not between:
        return re.compile(first, re.DOTALL)
    last = between.pop()
    inner = (f"(?=(?P<g{i}>.*?{piece}))(?P=g{i})" for i, piece in enumerate(filter(None, between)))
    return re.compile(f"{first}{''.join(inner)}.*{last}", re.DOTALL)


def _class_regex(text: str, at: int) -> tuple[str, int]:
    """Return the class that begins after a ``[`` as a regular expression, and where it ends; as Redis reads it."""
    negated = text.startswith("^", at)
    at += negated
    spans = ""
    while at < len(text) and text[at] != "]":
        if text[at] == "\\" and at + 1 < len(text):
            low = high = text[at + 1]
            at += 2
        elif at + 2 < len(text) and text[at + 1] == "-":
            low, high = sorted((text[at], text[at + 2]), key=_signed)
            at += 3
        else:
            low = high = text[at]
            at += 1
        if _signed(low) < 0 <= _signed(high):
            spans += f"{re.escape(low)}-\xff\0-{re.escape(high)}"
        else:
            spans += f"{re.escape(low)}-{re.escape(high)}"
    if at >= len(text):
        raise InvalidKey(f"the pattern {shown_text(text)} has a '[' without its ']'")
    if not spans:
        return "." if negated else "(?!)", at + 1
    return f"[{'^' if negated else ''}{spans}]", at + 1


def _signed(byte: str) -> int:
    """Return the number of a byte as C has it where Redis mostly runs: above 127 they are negative."""
    return ord(byte) - 256 * (ord(byte) > 127)


def _bytewise(text: str) -> str:
    """Return a character for each byte of a text: Redis matches bytes."""
    return text.encode(errors="surrogatepass").decode("latin-1")
