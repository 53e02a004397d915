"""A subscriber that hangs until Redis cuts it off ends at the last value."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.publishing import publish
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")


HANGING = """
import json, sys
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager("hangs", url=sys.argv[1])
memsync.subscribe("*", lambda key, value, entry: print(json.dumps([key, value[:5], entry.version]), flush=True))
print("[]", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hanging(own_server, tmp_path):
    """A process that subscribes to everything, and the file to which it writes what it receives."""
    output = tmp_path / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING, own_server.url], stdin=subprocess.PIPE, stdout=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)})
    eventually(output.read_text, timeout=30)
    yield process, output
    process.kill()
    process.wait(10)


@pytest.mark.slow
def test_subscriber_cut_off_while_it_hangs_ends_at_the_last_value(
    make_memsync, own_server, hanging,
):
    process, output = hanging
    other, redis = make_memsync(url=own_server.url, batch_interval=60.0), own_server.client()
    redis.config_set("client-output-buffer-limit", "pubsub 65536 0 0")
    publish(other, {"a": "first", "unmoved": "first"})
    eventually(lambda: output.read_text().count("first") == 2)

    process.send_signal(signal.SIGSTOP)
    for number in range(500):
        publish(other, {"a": f"{number:05}" + "x" * 200_000})
        if not redis.client_list(_type="pubsub"):
            break
    publish(other, {"a": "final", "b": "final"})
    process.send_signal(signal.SIGCONT)
    eventually(lambda: output.read_text().count("final") == 2, timeout=30)
    process.stdin.close()

    received = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    versions = [version for key, _, version in received if key.endswith("/a")]
    assert number < 499
    assert versions == sorted(set(versions))
    assert [key for key, _, _ in received].count("task-sentinel/unmoved") == 1
    assert process.wait(30) == 0
