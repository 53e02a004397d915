"""Programs of a few lines that run in a process of their own, with a memory of their own."""
from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.support.paths import ROOT

HEAD = """
import gc, multiprocessing, os, signal, sys, threading, time
from celery_memsync import MemorySyncManager
url = sys.argv[1]
memsync = MemorySyncManager('parent', url, batch_interval=60.0)
"""

#: Begins a child by os.fork() and waits for it; the child must end by itself.
IN_CHILD = """
def in_child(act):
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        try:
            act()
        except BaseException as exc:
            print('child:', repr(exc), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, 'the child failed'
"""


def begin(folder, code, url, head=HEAD):
    script = folder / "script.py"
    script.write_text(head + textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(script), url], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)


def run(folder, code, url, head=HEAD, timeout=30):
    """Run code in a process of its own; return its output."""
    process = begin(folder, code, url, head)
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "Exception ignored" not in errors, errors
    return out + errors
