"""The log is seen in any process, also if logging was not configured."""
from __future__ import annotations

import logging
import re
import subprocess
import sys

from celery_memsync import runtime
from tests.support.paths import ROOT
from tests.support.redis_server import free_port

PROGRAM = """
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager(url="redis://:geheim@127.0.0.1:{port}/0", batch_interval=0.0)
memsync.write("a", 1)
{then}
memsync.shutdown(0.5)
"""


def run(then):
    """Return what a process without any configuration of logging writes to standard error."""
    text = PROGRAM.format(port=free_port(), then=then)
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "geheim" not in done.stderr
    return done.stderr


def test_lost_writes_are_seen_in_a_process_that_has_not_configured_logging():
    shown = run("import time; time.sleep(0.3)")

    assert re.search(r"Could not .*Redis at 127.0.0.1.*it refused the connection", shown)
    assert "1 write could not be written" in shown


def test_the_log_of_this_package_can_be_switched_off_as_any_other():
    assert run("import logging; logging.getLogger('celery_memsync').setLevel(logging.CRITICAL)") == ""


def test_every_logger_is_a_plain_one_below_the_package():
    import celery_memsync.app  # noqa: F401

    names = [name for name in logging.Logger.manager.loggerDict if name.startswith("celery_memsync.")]

    assert names and all(logging.getLogger(name).handlers == [] for name in names)
    assert all(logging.getLogger(name).propagate for name in names)


def test_python_without_the_gil_is_reported_once(make_memsync, monkeypatch, caplog):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(runtime, "_warned_without_gil", False)

    for _ in range(2):
        make_memsync(batch_interval=60.0).write("a", 1)

    assert [record.getMessage() for record in caplog.records] == [
        "This Python runs without the GIL, in which celery-memsync is not tested; start it with PYTHON_GIL=1"]
