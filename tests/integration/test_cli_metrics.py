"""`celery memsync metrics`: what it prints, and what it serves."""
from __future__ import annotations

import signal
import socket
import sys
import urllib.request

import pytest

from tests.support.redis_server import free_port
from tests.support.shell import Shell, one_line, plain
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def shell(module_fleet):
    return Shell(module_fleet.env())


def test_metrics_are_printed_as_prometheus_takes_them(shell):
    lines = plain(shell.run("metrics", "--per-worker")).splitlines()

    assert "celery_memsync_redis_up 1.0" in lines
    assert "# TYPE celery_memsync_run_seconds histogram" in lines
    assert "# TYPE celery_memsync_worker_up gauge" in lines


def test_metrics_have_the_names_of_celery_exporter_on_request(shell):
    lines = plain(shell.run("metrics", "--names", "celery-exporter")).splitlines()

    assert "# TYPE celery_task_runtime histogram" in lines
    assert "# TYPE celery_task_succeeded_total counter" in lines


@pytest.mark.acceptance
def test_metrics_are_served_until_ctrl_c(shell):
    port = free_port()
    running = shell.start("metrics", "--serve", f"127.0.0.1:{port}")

    def served():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    text = eventually(served, timeout=30)
    done = running.end(signal.SIGINT)

    assert "celery_memsync_redis_up 1.0" in text
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout == f"Serving http://127.0.0.1:{port}/metrics\n"


def test_an_address_that_is_taken_is_exit_code_73(shell):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = shell.run("metrics", "--serve", f"127.0.0.1:{taken.getsockname()[1]}")

    assert done.returncode == 73
    assert "could not listen" in one_line(done)


@pytest.mark.parametrize("args", [
    ["--serve", "9808"], ["--serve", "host:port"], ["--serve", ":70000"], ["--serve", ":-1"], ["--names", "flower"],
    ["--serve", ":0", "--json"],
])
def test_wrong_options_are_exit_code_64(shell, args):
    assert shell.run("metrics", *args).returncode == 64


def test_without_prometheus_client_it_says_what_to_install(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    done = shell.run("metrics")

    assert done.returncode == 78
    assert "celery-memsync[metrics]" in one_line(done)
    assert "celery_memsync_redis_up" in plain(shell.run("metrics", "--json"))
