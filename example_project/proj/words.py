"""A workflow: choose modules, count their words in a group of tasks, and put the counts together."""
from __future__ import annotations

import re
import time
from collections import Counter

from celery import chain, group
from celery.canvas import Signature

from . import survey
from .celery import app, memsync

#: How many words are listed.
LISTED = 5

#: Seconds that a module takes at least: long enough to be watched, and to be cancelled halfway.
PACE = 0.1


def words_of(module: str) -> Counter[str]:
    """Return how often each word of letters is in a module."""
    text = (survey.STDLIB / module).read_text(errors="replace")
    return Counter(re.findall(r"[a-z]{4,}", text.lower()))


def most_common(counts: list[dict[str, int]]) -> list[tuple[str, int]]:
    """Return the most common words, by number and name."""
    total = sum(map(Counter, counts), Counter())
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))[:LISTED]


@app.task
def choose(limit: int) -> list[str]:
    """Return the modules whose words are counted."""
    return survey.modules(limit)


@app.task
def count(modules: list[str], first: int, parts: int) -> dict[str, int]:
    """Count the words of every so many modules; `track` ends it if the workflow is cancelled."""
    words: Counter[str] = Counter()
    for module in memsync.track(modules[first::parts], message="counting"):
        words += words_of(module)
        time.sleep(PACE)
    return dict(words)


@app.task
def rank(counts: list[dict[str, int]]) -> list[tuple[str, int]]:
    """Return the most common words of all."""
    return most_common(counts)


def workflow(limit: int, parts: int) -> Signature:
    """Return the workflow: a chain of a task, a group, and a task that gets what the group returns."""
    members = [count.s(first, parts) for first in range(parts)]
    return chain(choose.s(limit), group(members), rank.s())
