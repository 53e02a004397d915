"""Calls of our functions for a no-op task, in a worker's main process and in its pool child.

They are counted by the test that compares them with their budget, and have no noise.
"""
from __future__ import annotations

import re
import subprocess
import sys

import common

TEST = "tests/integration/test_counts.py"
LINE = re.compile(r"(main|child): ([\d.]+) calls of ours a task")
NAMES = {"main": "in main", "child": "in a child"}


def main() -> None:
    # The test fails where a budget is exceeded; what it counted is printed all the same.
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-s", TEST], cwd=common.ROOT,
                          capture_output=True, text=True, check=False)
    counted = {NAMES[process]: {"median": float(calls)}
               for process, calls in LINE.findall(done.stdout)}
    assert len(counted) == len(NAMES), done.stdout
    common.print_results("calls", {"Calls of our functions for a no-op task": {"memsync": counted}})


if __name__ == "__main__":
    main()
