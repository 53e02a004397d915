"""Run the benchmarks and write docs/performance.md with its plots.

Usage::

    python benchmarks/report.py [FOLDER]

What each benchmark printed is kept in FOLDER (``build/benchmarks``), and what is there already is not run again.
"""
from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT

BENCHMARKS = ("overhead", "progress", "writes", "reads", "locks", "hearing", "fleet", "commands", "memory", "growth")

DOCS = ROOT / "docs"

#: What was measured once, for a decision; it ends the page.
DECISIONS = ROOT / "benchmarks" / "decisions.md"

#: What is shown in bold.
OURS = ("memsync", "progress", "subscribe", "watch")

#: Width of the longest bar, in characters.
BAR = 24

#: Size of a plot and of its margins, in pixels.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 220, 34, 40

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d6a9f", "#c98b00", "#4a5859")

#: A variant, its median and quartiles, and its ratio to the peer.
Row = tuple[str, float, float, float, float]


def run(folder: Path) -> dict[str, Any]:
    """Return what each benchmark printed; run those that did not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in BENCHMARKS:
        file = folder / f"{name}.json"
        if not file.exists():
            print(f"{time.strftime('%H:%M:%S')} {name} ...", file=sys.stderr, flush=True)
            script = str(ROOT / "benchmarks" / f"{name}.py")
            done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True)
            file.write_bytes(done.stdout)
        found[name] = json.loads(file.read_text())
    return found


# -- tables


def table(title: str, unit: str, rows: Sequence[Row], note: str = "") -> Iterator[str]:
    """Yield the lines of a table: name, median and spread, ratio to the peer, and a bar of the ratio."""
    yield from ("", f"### {title}", "", *([note, ""] if note else ()))
    yield from (f"| | {unit} | half of the rounds | ratio | |", "| --- | ---: | ---: | ---: | --- |")
    longest = max(ratio for *_, ratio in rows)
    for name, median, first, third, ratio in rows:
        bar = "█" * max(1, round(BAR * ratio / longest)) if longest else ""
        spread = f"{shown(first)} to {shown(third)}"
        yield f"| {f'**{name}**' if name in OURS else name} | {shown(median)} | {spread} | {ratio:.3g} | {bar} |"


def rows_of(results: Mapping[str, Any], figure: str, peer: str) -> list[Row]:
    """Return a row for each variant, the peer first."""
    names = sorted(results, key=lambda name: name != peer)
    rows = ((name, results[name][figure]) for name in names)
    return [(name, row["median"], row["q1"], row["q3"], row["ratio"]) for name, row in rows]


def glance(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table that stands first: of each thing how we compare, and how the least does that must be done."""
    def ratio(benchmark: str, figure: str, variant: str, *titles: str) -> str:
        results = found[benchmark]["results"]
        for title in titles:
            results = results[title]
        return f"{results[variant][figure]['ratio']:.3g}" if variant in results else "-"

    yield from ("", "## At a glance", "",
                "Ratios to the peer: below 1 is faster. *The least* is a prototype of what cannot be left out",
                "([`least.py`](../benchmarks/least.py)), without checks, order or retries; or what the",
                "work work takes anyway.", "",
                "| work | peer | ratio | the least |", "| --- | --- | ---: | ---: |")
    rows = [
        ("a no-op task, CPU of its worker", "plain Celery", ("overhead", "worker_cpu_us"), "memsync", "least", ()),
        ("the same with `-E`", "plain Celery", ("overhead", "worker_cpu_us"), "events", "", ()),
        ("the same with a result backend", "plain Celery", ("overhead", "worker_cpu_us"), "tracked", "", ()),
        ("a progress call", "`update_state`", ("progress", "microseconds"), "progress", "dict_under_lock", ()),
        ("writing new keys, time", "redis-py's pipeline", ("writes", "wall_us"), "memsync", "least", ("new keys",)),
        ("the same, CPU of the client", "the same", ("writes", "client_cpu_us"), "memsync", "least", ("new keys",)),
        ("increments, time", "redis-py's pipeline", ("writes", "wall_us"), "memsync", "", ("increments",)),
        ("a cached read, flat", "an LRU under a lock", ("reads", "wall_us"), "memsync", "", ("hot, flat",)),
        ("a cached read, nested", "the same", ("reads", "wall_us"), "memsync", "locked_lru_copy", ("hot, nested",)),
        ("an uncached read", "redis-py's GET", ("reads", "wall_us"), "memsync", "get_decode", ("missed",)),
        ("acquiring and releasing a lock", "redis-py's lock", ("locks", "wall_us"), "memsync", "evalsha", ("free",)),
        ("handing a lock over", "BLPOP", ("locks", "p50_us"), "memsync", "", ("hand-over",)),
        *(
            (f"delivering a change, {count} subscribers", "`psubscribe`", ("hearing", "p50_us"), "subscribe", "least",
             (f"{count} listening",))
            for count in (1, 100)
        ),
    ]
    for work, peer, (benchmark, figure), ours, floor, titles in rows:
        least = ratio(benchmark, figure, floor, *titles) if floor else ""
        yield f"| {work} | {peer} | {ratio(benchmark, figure, ours, *titles)} | {least} |"
    asking = found["fleet"]["results"]["asking"]
    questions = ("live workers, 4 of them", "ping", "get_active_workers"), ("their records", "stats", "get_workers")
    hot = found["reads"]["results"]["hot, flat"]
    if "redis_py_cache" in hot:
        share = hot["memsync"]["wall_us"]["median"] / hot["redis_py_cache"]["wall_us"]["median"]
        yield f"| a cached read, flat | redis-py's own cache | {share:.2g} | |"
    for work, peer, ours in questions:
        share = asking[ours]["median_ms"] / asking[f"inspect_{peer}"]["median_ms"]
        yield f"| {work} | `celery inspect {peer}` | {share:.2g} | |"


def shown(figure: float) -> str:
    """Return a figure with three digits that count."""
    if figure >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.3g}"


def page(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    versions = found["overhead"]
    yield from (
        "# Benchmarks", "",
        "Written by `python benchmarks/report.py`; do not edit. The rows of one table ran in turns, round by",
        "round, on one machine; *ratio* is the median of the ratios to the first row of the same round.",
        "Absolute numbers are those of this machine and say little about yours. The head of each file in",
        "`benchmarks/` says what it measures; `make bench` runs all.", "",
        f"Machine: {os.cpu_count()} cores, {cpu_name()}, Linux {platform.release().split('-')[0]}.",
        f"Python {versions['python']}, celery {versions['celery']}, redis-py {versions['redis-py']},",
        f"Redis {found['reads']['results']['redis']}, {time.strftime('%Y-%m-%d')}.",
    )
    yield from glance(found)
    overhead = found["overhead"]["results"]
    yield from ("", "## Tasks")
    yield from table("A no-op task: CPU of the worker, main process and child", "µs a task",
                     rows_of(overhead, "worker_cpu_us", "plain"),
                     "`plain_again` is a second plain worker: its difference is noise. `tracked` is Celery's result "
                     "backend with `task_track_started`; `events` is `-E`; `least` records the end of a task only.")
    for process in ("main", "child"):
        yield from table(f"Of that, the {process} process", "µs a task", rows_of(overhead, f"{process}_cpu_us", "plain"))
    yield from table("The same: time from task to task", "µs a task", rows_of(overhead, "wall_us", "plain"))
    yield from table("The same: CPU of Redis, as broker and store", "µs a task", rows_of(overhead, "redis_cpu_us", "plain"))
    yield from table("A progress call in a task's body", "µs a call",
                     rows_of(found["progress"]["results"], "microseconds", "update_state"))
    yield from ("", "## Writing and reading")
    for title, results in found["writes"]["results"].items():
        peer = next(iter(results))
        yield from table(f"10,000 writes of 200 bytes: {title}, time", "µs a write", rows_of(results, "wall_us", peer))
        yield from table(f"10,000 writes of 200 bytes: {title}, CPU of the client", "µs a write",
                         rows_of(results, "client_cpu_us", peer))
    reads = found["reads"]["results"]
    for title in (title for title in reads if title.startswith(("hot, flat", "hot, nested", "missed"))):
        peer = "get" if title == "missed" else "locked_lru"
        yield from table(f"A read ({title})", "µs a read", rows_of(reads[title], "wall_us", peer))
    yield from ("", f"redis-py's own cache: {reads['redis_py_cache']}.")
    yield from ("", "## Locks")
    locks = found["locks"]["results"]
    yield from table("Acquiring and releasing a free lock", "µs", rows_of(locks["free"], "wall_us", "redis-py"))
    yield from table("Handing a lock from one process to another", "µs", rows_of(locks["hand-over"], "p50_us", "blpop"))
    yield from ("", f"Renewing {locks['renewal']['locks']:,} locks of one process: {locks['renewal']['ms']} ms "
                f"(worst {locks['renewal']['worst_ms']} ms).")
    yield from ("", "## Changes, delivered to other processes")
    for title, results in found["hearing"]["results"].items():
        rows = rows_of(results, "p50_us", "psubscribe")
        yield from table(f"{title.capitalize()}: delivered to half of them after", "µs", rows)
    yield from fleet(found["fleet"]["results"])
    yield from memory(found["memory"]["results"])
    yield from growth(found["growth"]["results"])
    yield from ("", DECISIONS.read_text().rstrip())


def fleet(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what workers cost."""
    asking, probing = results["asking"], results["probing"]
    yield from ("", "## Workers", "", "| | ms |", "| --- | ---: |")
    for name, row in {**asking, **probing}.items():
        yield f"| {name.replace('_', ' ')} | {shown(row['median_ms'])} |"
    yield from ("", "| workers | a heartbeat, ms | of that in Redis, µs | `get_active_workers`, ms | `get_workers`, ms |")
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for size, row in results["fleet"].items():
        figures = [shown(row[name]) for name in ("beat_ms", "beat_server_us", "get_active_workers_ms", "get_workers_ms")]
        yield f"| {int(size):,} | {' | '.join(figures)} |"
    idle = results["idle"]

    def middle(name: str) -> float:
        return float(sorted(idle[name])[len(idle[name]) // 2])

    yield from ("", f"An idle worker sends {middle('plain')} commands a second to its broker; one with celery-memsync",
                f"sends {middle('memsync_broker')}, and {middle('memsync_memory')} to the store. Its main process uses",
                f"{middle('memsync_cpu_ms')} ms of CPU a second, a plain one {middle('plain_cpu_ms')}.",
                "", f"{results['losing']['tasks']} tasks of a lost worker are marked in {results['losing']['seconds']} s.")


def memory(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what memory is used."""
    records, added = results["records"], results["processes"]["added_kb"]
    yield from ("", "## Memory", "",
                f"A finished task with progress takes {records['memsync']} bytes of Redis {records['redis']}, its",
                f"index entries included; three strings of 150 bytes with a ttl take {records['three_keys']}.",
                "", f"A worker's main process has {added['main_idle_kb'] / 1024:.1f} MB more of its own than a plain one",
                f"when it starts and {added['main_after_kb'] / 1024:.1f} MB more after 12,000 tasks; each child",
                f"{added['child_idle_kb'] / 1024:.1f} and {added['child_after_kb'] / 1024:.1f} MB.")


def growth(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the cost grows, and draw it."""
    yield from ("", "## Where the cost grows", "",
                "*Slope* is the exponent: 0 means that the number does not matter, 1 that the cost is proportional to",
                "it.")
    for what, rows in results.items():
        series = {name: {int(x): y for x, y in row["us"].items()} for name, row in rows.items() if isinstance(row, dict)}
        file = DOCS / "plots" / f"growth-{what}.svg"
        file.parent.mkdir(exist_ok=True)
        file.write_text(plot(f"Cost by number of {what}", what, "µs", series))
        numbers = list(next(iter(series.values())))
        yield from ("", f"### By number of {what}", "", f"![Cost by number of {what}](plots/{file.name})", "",
                    "| µs | " + " | ".join(f"{number:,}" for number in numbers) + " | slope |",
                    "| --- |" + " ---: |" * (len(numbers) + 1))
        for name, costs in series.items():
            yield f"| {name} | " + " | ".join(shown(cost) for cost in costs.values()) + f" | {rows[name]['slope']} |"
        for name, row in rows.items():
            if not isinstance(row, dict):
                yield from ("", f"{name[0].upper()}{name[1:]}: {row}.")


def cpu_name() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown processor"


# -- plots


def plot(title: str, x_name: str, y_name: str, series: Mapping[str, Mapping[int, float]]) -> str:
    """Return an SVG of costs over numbers, both by their logarithms."""
    xs = [x for costs in series.values() for x in costs]
    ys = [y for costs in series.values() for y in costs.values()]
    x_low, x_high = math.log10(min(xs)), math.log10(max(xs))
    y_low, y_high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM))

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{title}</text>',
    ]
    for power in range(y_low, y_high + 1):
        left, y = at(min(xs), 10.0 ** power)
        lines.append(f'<line x1="{left:.0f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{10.0 ** power:,g} {y_name}</text>')
    for number in sorted(set(xs)):
        x, bottom = at(number, 10.0 ** y_low)
        lines.append(f'<text x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{number:,}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{x_name}</text>')
    for location, (name, costs) in enumerate(series.items()):
        colour, points = COLOURS[location % len(COLOURS)], [at(x, y) for x, y in costs.items()]
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
                     + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        lines.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 14 + 18 * location}" fill="{colour}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    found = run(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "benchmarks")
    (DOCS / "performance.md").write_text("\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main()
