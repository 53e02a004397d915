"""Draw docs/pictures/architecture.svg: which processes write what to Redis, and who reads it."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT = 960, 440

INK, SOFT, LINE = "#1c2733", "#5b6b7b", "#b8c4d0"

#: Colour of what is ours, of Redis, and of what is Celery's.
OURS, REDIS, CELERY = "#e3f0fb", "#fdeaea", "#eef5e6"

#: Boxes: left, top, width, height, colour, title, lines.
BOXES = (
    (30, 70, 250, 80, CELERY, "Producer, web process", ("send, read, subscribe",)),
    (30, 180, 250, 80, CELERY, "Worker, main process", ("signals, heartbeat, lost workers",)),
    (30, 290, 250, 80, CELERY, "Pool process", ("task body: progress, track, lock",)),
    (345, 70, 270, 66, OURS, "Writer", ("buffered writes: a batch in 0.1 s",)),
    (345, 148, 270, 66, OURS, "Locks, shared queue", ("atomic operations: one round trip",)),
    (345, 226, 270, 66, OURS, "Reader with local cache", ("reads: a copy, or one round trip",)),
    (345, 304, 270, 66, OURS, "Change listener", ("subscriptions: pushed by Redis",)),
    (690, 70, 240, 300, REDIS, "Redis", ()),
)

#: What Redis keeps.
KEPT = (("tasks", "stage, progress, runs, agents"), ("workers", "record, heartbeat"),
        ("locks", "holder, lease, fence, waiters"), ("coordination", "queue, counters"), ("your keys", "versioned values"))

#: Arrows: from x, y to x, y, text, and whether Redis is where it begins.
ARROWS = ((615, 103, 690, 103, "scripts"), (615, 181, 690, 181, "scripts"), (690, 259, 615, 259, "values"),
          (690, 337, 615, 337, "changes"))


def lines() -> Iterator[str]:
    """Yield the lines of the picture."""
    yield (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
           'font-family="Helvetica, Arial, sans-serif">')
    yield "<title>Every process has a writer, a lock service, a cache and a listener; they share state in Redis</title>"
    yield ('<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
           f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>')
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>'
    for x, title in ((155, "Your processes"), (480, "celery-memsync in each of them"), (810, "memsync_backend")):
        yield text(x, 44, title, 15, SOFT, "middle", "bold")
    for left, top, width, height, colour, title, words in BOXES:
        yield f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" fill="{colour}" stroke="{LINE}"/>'
        yield text(left + 16, top + 28, title, 16, INK, "start", "bold")
        for number, line in enumerate(words):
            yield text(left + 16, top + 50 + 18 * number, line, 13, INK)
    for number, (name, content) in enumerate(KEPT):
        yield text(706, 130 + 48 * number, name, 14, INK, "start", "bold")
        yield text(706, 148 + 48 * number, content, 13, INK)
    yield (f'<path d="M292 70H312V370H292M312 220H333" fill="none" stroke="{SOFT}" stroke-width="1.5" '
           'marker-end="url(#head)"/>')
    for x1, y1, x2, y2, label in ARROWS:
        yield (f'<line x1="{x1 + 4 * (x1 < x2) - 4 * (x1 > x2)}" y1="{y1}" x2="{x2 - 4 * (x1 < x2) + 4 * (x1 > x2)}" '
               f'y2="{y2}" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#head)"/>')
        yield text((x1 + x2) / 2, y1 - 8, label, 12, SOFT, "middle")
    yield text(30, 412, "The broker and the result backend stay as they are: celery-memsync sends no messages, "
               "except requeued tasks.", 13, SOFT)
    yield "</svg>"


def text(x: float, y: float, words: str, size: int, colour: str, anchor: str = "start", weight: str = "normal") -> str:
    """Return a text."""
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{words}</text>')


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.svg").write_text("\n".join(lines()) + "\n")
