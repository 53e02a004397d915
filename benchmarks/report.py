"""Run the benchmarks, print which goals are met, write docs/performance.md and its plots.

Usage::

    python benchmarks/report.py [--quick] [NAME...]

NAME is a benchmark, such as ``writes``; without one all run. What each printed last is kept in
``build/benchmarks``, and the page is written from that; what ``scale`` printed goes into
docs/scaling.md. With ``--quick`` they take a few minutes, and all of it is in
``build/benchmarks/quick``.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import page
from common import ROOT

BENCHMARKS = ("overhead", "calls", "progress", "writes", "reads", "locks", "subscriptions",
              "fleet", "commands", "memory", "growth", "scale")

#: Seconds that a benchmark may take to stop what it has started.
STOP_TIMEOUT = 60.0

#: Where the results of each benchmark are kept.
OUTPUT = ROOT / "build" / "benchmarks"


def run(name: str, quick: bool) -> bytes:
    """Run a benchmark; return what it printed.

    At Ctrl-C, which reaches it as well, it has the time to stop what it has started.
    """
    environment = {**os.environ, "BENCH_QUICK": "1" if quick else ""}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait(STOP_TIMEOUT)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return printed


def run_all(names: Sequence[str], quick: bool, folder: Path) -> None:
    """Run benchmarks one after the other; keep their results in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, 1):
        start = f"{time.strftime('%H:%M:%S')} {number}/{len(names)} {name} "
        print(start, end="", file=sys.stderr, flush=True)
        began = time.monotonic()
        (folder / f"{name}.json").write_bytes(run(name, quick))
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def read(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the results that are kept of benchmarks."""
    files = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure, and compare with the goals.")
    parser.add_argument("--quick", action="store_true", help="measure little, which is noisy")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmark; all if none is named")
    arguments = parser.parse_args()
    folder = OUTPUT / "quick" if arguments.quick else OUTPUT
    docs = folder if arguments.quick else ROOT / "docs"
    names = arguments.names or BENCHMARKS
    run_all(names, arguments.quick, folder)
    results = read(BENCHMARKS, folder)
    if len(results) == len(BENCHMARKS):
        lines = page.lines_of(results, docs / "plots")
        (docs / "performance.md").write_text("\n".join(lines) + "\n")
    if "scale" in results:
        text = (ROOT / "docs" / "scaling.md").read_text()
        (docs / "scaling.md").write_text(page.with_measured(text, page.scale(results["scale"])))
    print("\n".join(page.goals(read(names, folder))))


if __name__ == "__main__":
    main()
