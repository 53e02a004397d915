"""The page of the benchmarks, in Markdown: goals first, then every table."""
from __future__ import annotations

import os
import platform
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import OURS, ROOT, Table
from goals import Result, judge_all, percent
from plot import plot

#: What was measured once, for a decision; it ends the page.
DECISIONS = ROOT / "benchmarks" / "decisions.md"

#: Sections of the page, and their benchmarks.
SECTIONS = {
    "Tasks": ("overhead", "calls", "progress"),
    "Writing and reading": ("writes", "reads"),
    "Locks": ("locks",),
    "Changes, delivered to other processes": ("subscriptions",),
    "Workers": ("fleet", "commands"),
    "Memory": ("memory",),
}

HEAD = """\
# Benchmarks

Written by `make bench`; do not edit. The rows of one table ran in turns, round by round, on one
machine; *ratio* is the median of the ratios to the first row of the same round. Absolute numbers
are those of this machine and say little about yours. The head of each file in `benchmarks/` says
what it measures."""

GOALS = """\
Ratios to the peer, or numbers of a unit; lower is better. *A/A* is the peer, measured a second time
as if it were another variant of the same run, and how far from 1 that may be: the noise. *Floor* is
a prototype in `benchmarks/floors.py` of the least that does the work, without checks, order or
retries. A result is *within noise* if noise may have met or missed the goal."""

QUICK = """\
**Quick mode: little work in few rounds. This is noisy and shows large changes only.**"""


#: Between these lines of a page that people write is what was measured.
MEASURED = "<!-- Written by `make bench ONLY=scale`; do not edit. -->"
END = "<!-- The end of what it has written. -->"


def with_measured(text: str, lines: Iterable[str]) -> str:
    """Return a page with other lines as what was measured."""
    head, _, rest = text.partition(MEASURED)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks the line {MEASURED} or {END}")
    return "\n".join((head + MEASURED, "", *lines, "", end + tail))


def scale(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a large fleet was measured to take."""
    if result["quick"]:
        yield from (QUICK, "")
    yield f"{machine(result)}, {time.strftime('%Y-%m-%d')}."
    yield from facts_of(result)
    for title, table in result["tables"].items():
        yield from ("", f"### {title}", "", *figures(table))


def facts_of(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a benchmark found beside its tables."""
    for fact, value in result["facts"].items():
        yield from ("", *textwrap.wrap(f"{fact}: {str(value).rstrip('.')}.", 100))


def machine(result: Mapping[str, Any]) -> str:
    """Return the machine on which a benchmark ran, and with which versions."""
    return (f"{os.cpu_count()} cores, {cpu_name()}, Linux {platform.release().split('-')[0]}.\n"
            f"Python {result['python']}, celery {result['celery']}, redis-py {result['redis-py']}")


def lines_of(results: Mapping[str, Any], plots: Path) -> Iterator[str]:
    """Yield the lines of the page; write the plots, which it shows, into a folder."""
    any_result = next(iter(results.values()))
    redis = results["reads"]["facts"]["Redis"]
    yield from (
        HEAD, "",
        f"Machine: {machine(any_result)},",
        f"Redis {redis}, {time.strftime('%Y-%m-%d')}.",
        "", "## Goals", "", GOALS, "", *goals(results))
    for section, benchmarks in SECTIONS.items():
        yield from ("", f"## {section}")
        for name in benchmarks:
            for title, table in results[name]["tables"].items():
                yield from ("", f"### {title}", "", *figures(table))
            yield from facts_of(results[name])
    yield from growth(results["growth"]["facts"], plots)
    yield from ("", DECISIONS.read_text().rstrip())


# -- goals


def goals(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of goals, and a list of those that are missed."""
    found = judge_all(results)
    if any(result["quick"] for result in results.values()):
        yield from (QUICK, "")
    yield from aligned([
        ("work", "peer", "ratio", "A/A", "floor", "goal", "result"), *map(row_of, found)])
    missed = [one for one in found if not one.met]
    yield from ("", f"Missed: {len(missed)} of {len(found)}.", "")
    for one in sorted(missed, key=lambda one: (one.within_noise, -one.missed_by)):
        yield f"* {one.goal.work}: {one.verdict}"


def row_of(result: Result) -> tuple[str, ...]:
    """Return the cells of a goal."""
    goal = result.goal

    def cell(figure: float | None) -> str:
        return "" if figure is None else f"{shown(figure)} {goal.unit}".strip()

    if result.again is None:
        second = ""
    elif goal.unit:
        second = f"± {cell(result.noise)}"
    else:
        second = f"{shown(result.again)} ± {percent(result.noise / result.ours)}"
    return (goal.work, goal.peer, cell(result.ours), second, cell(result.floor), cell(goal.most),
            result.verdict if result.met else f"**{result.verdict}**")


# -- tables


def figures(table: Table) -> Iterator[str]:
    """Yield a table of variants: the median of each figure, and its ratio to the peer."""
    rows = list(table.values())
    names = list(rows[0])
    with_ratio = {name for name in names if len(rows) > 1 and "ratio" in rows[-1][name]}
    head = [""]
    for name in names:
        head += [name, "ratio"] if name in with_ratio else [name]
    lines = [head]
    for variant, row in table.items():
        line = [f"**{variant}**" if variant.startswith(OURS) else variant]
        for name in names:
            line.append(shown(row[name]["median"]))
            if name in with_ratio:
                line.append(shown(row[name].get("ratio")))
        lines.append(line)
    yield from aligned(lines)


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose columns are as wide as their longest cell."""
    head, *body = rows
    widths = [max(map(len, column)) for column in zip(head, *body)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (head, rule, *body):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        yield f"| {' | '.join(cells)} |"


def shown(figure: float | None) -> str:
    """Return a figure with three significant digits; "" for None."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def growth(results: Mapping[str, Any], plots: Path) -> Iterator[str]:
    """Yield where the cost grows, and draw it."""
    yield from ("", "## Where the cost grows", "",
                "*Slope* is the exponent: 0 means that the number does not matter, 1 that the cost",
                "is proportional to it.")
    for things, rows in results.items():
        series = {name: {int(number): one for number, one in row["us"].items()}
                  for name, row in rows.items() if isinstance(row, dict)}
        numbers = list(next(iter(series.values())))
        file = plots / f"growth-{things}.svg"
        file.parent.mkdir(exist_ok=True)
        file.write_text(plot(f"Cost by number of {things}", things, "µs", series))
        yield from ("", f"### By number of {things}", "",
                    f"![Cost by number of {things}](plots/{file.name})", "")
        yield from aligned([
            ("µs", *(f"{number:,}" for number in numbers), "slope"),
            *((name, *map(shown, costs.values()), str(rows[name]["slope"]))
              for name, costs in series.items())])
        for name, row in rows.items():
            if not isinstance(row, dict):
                yield from ("", f"{name[0].upper()}{name[1:]}: {row}.")


def cpu_name() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown processor"
