"""The pytest plugin, in projects of their own, with real servers and workers."""
from __future__ import annotations

import itertools
import re
import signal
from pathlib import Path

import pytest

from tests.support.embedded_processes import servers_of
from tests.support.plugin_project import TASKS, Project
from tests.support.stress import stressed
from tests.support.waiting import eventually

#: What a test prints of the server that it uses.
SERVER = re.compile(r"SERVER redis\+socket://(\S+)/redis\.sock")

SHOW_SERVER = """
    def test_server(memsync_server, memsync):
        print("SERVER", memsync_server)
        memsync.write("a", 1)
"""


def test_plugin_imports_nothing_before_a_fixture_is_used(tmp_path):
    project = Project(tmp_path, conftest="", test_nothing="""
        import sys

        def test_nothing(pytestconfig):
            assert "memsync_redis_url" in pytestconfig._parser._inidict

            parts = [name.split(".") for name in sys.modules]
            assert not {"celery", "kombu", "redis", "click"} & {part[0] for part in parts}
            assert {".".join(part) for part in parts if part[0] == "celery_memsync"} == {
                "celery_memsync", "celery_memsync.contrib", "celery_memsync.contrib.pytest_plugin"}
    """)

    project.passes("-p", "no:valkey", tests=1)


def test_fixtures_are_listed_with_what_they_are(tmp_path):
    output = Project(tmp_path).run("--fixtures")

    for name in ("memsync_server [session scope]", "memsync", "memsync_worker", "memsync_session_worker [session scope]",
                 "wait_for", "assert_progress"):
        assert re.search(rf"^{re.escape(name)} -- .*pytest_plugin.py:\d+\n    \w+", output, re.M), name


# -- the server

def test_server_is_gone_with_its_folder_after_the_session(tmp_path):
    output = Project(tmp_path, test_a=SHOW_SERVER).passes("-W", "error::ResourceWarning", tests=1)

    assert "ResourceWarning" not in output
    folder = SERVER.search(output).group(1)
    assert Path(folder).name.startswith("memsync-test-")
    assert not Path(folder).exists()
    assert servers_of(folder) == []


@pytest.mark.parametrize("how", stressed((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), (signal.SIGINT, signal.SIGKILL)))
def test_server_is_gone_with_its_folder_after_a_signal(tmp_path, how):
    process = Project(tmp_path, test_a=SHOW_SERVER, test_b="""
        import time

        def test_b(memsync_worker, memsync_server):
            print("SERVER", memsync_server, flush=True)
            time.sleep(60)
    """).begin("-s")
    lines = iter(process.stdout.readline, "")
    first, second = itertools.islice(filter(None, map(SERVER.search, lines)), 2)
    folder = second.group(1)
    running = servers_of(folder)

    process.send_signal(how)
    process.communicate(timeout=30)

    assert first.group(1) == folder and running
    eventually(lambda: not Path(folder).exists() and not servers_of(folder), message="the server goes on")


def test_each_process_of_xdist_has_a_server_of_its_own(tmp_path):
    project = Project(tmp_path, tasks=TASKS, test_a="""
        import os

        import pytest
        from tasks import convert

        @pytest.mark.parametrize("number", range(2))
        def test_state(memsync, memsync_server, memsync_worker, wait_for, number):
            print("SERVER", memsync_server, "of", os.environ["PYTEST_XDIST_WORKER"])
            assert memsync.read("a") is None
            memsync.write("a", number)
            assert wait_for(convert.delay(2))["status"] == "SUCCESS"
            assert len(memsync.get_active_workers()) == 1
    """)

    output = project.passes("-n", "2", "--dist", "each", tests=4)

    servers = {(match.group(1), process) for match, process in
               ((SERVER.search(line), line.split()[-1]) for line in output.splitlines() if line.startswith("SERVER"))}
    assert len(servers) == 2 == len({server for server, _ in servers})
    assert [folder for folder, _ in servers if Path(folder).exists()] == []


@pytest.mark.parametrize("how", ["environment", "setting"])
def test_named_server_is_used_and_left_without_a_key(tmp_path, redis_url, redis, how):
    project = Project(tmp_path, tasks=TASKS, test_a="""
        from tasks import convert

        def test_named(memsync_server, memsync, memsync_worker, wait_for):
            print("NAMED", memsync_server)
            memsync.write("a", 1)
            memsync.sync_task_state("t1", {"x": 1})
            wait_for(convert.delay(3))
    """)
    redis.set("another", 1)

    if how == "setting":
        output = project.passes("-o", f"memsync_redis_url={redis_url}", tests=1)
    else:
        output = project.passes("-o", "memsync_redis_url=redis://other", tests=1, env={"MEMSYNC_TEST_REDIS_URL": redis_url})

    assert f"NAMED {redis_url}" in output
    assert redis.keys("*") == [b"another"]


@pytest.mark.parametrize("env, part", [
    ({"PATH": "/nowhere"}, "needs a redis-server or valkey-server and there is none; install"),
    ({"MEMSYNC_TEST_REDIS_URL": "redis://localhost:1/0"}, "localhost:1"),
    ({"MEMSYNC_TEST_REDIS_URL": "redis+cluster://localhost:1"}, "can't be a cluster"),
])
def test_missing_server_is_an_error_that_says_what_to_do(tmp_path, env, part):
    project = Project(tmp_path, test_a=SHOW_SERVER, conftest="""
        from celery_memsync.store import embedded

        embedded.find_spec = lambda name: None
    """)

    output = project.run(env=env)

    line = next(line for line in output.splitlines() if line.startswith("memsync_server:"))
    assert part in line
    assert "or name a Redis in MEMSYNC_TEST_REDIS_URL or in pytest's setting memsync_redis_url" in line
    assert "1 error in" in output
    assert "Traceback" not in output


# -- states and threads

def test_test_has_a_state_of_its_own(tmp_path):
    Project(tmp_path, test_a="""
        import threading

        import pytest

        @pytest.fixture(autouse=True)
        def threads():
            yield
            assert [thread.name for thread in threading.enumerate() if thread.name.startswith("memsync-")] == []

        @pytest.mark.parametrize("number", range(2))
        def test_state(memsync, number):
            assert memsync.read("a") is None
            memsync.subscribe("*", lambda key, value: None)
            memsync.write("a", 1)
            memsync.force_sync()

        def test_eager(memsync, assert_progress):
            memsync.app.conf.task_always_eager = True

            @memsync.app.task
            def work():
                memsync.progress(1, 2, "halfway")
                raise ValueError

            assert_progress(work.delay(), 50, message="halfway")

        def test_bad_value(memsync):
            @memsync.app.task
            def work():
                memsync.progress(-1)

            assert type(work.apply().result).__name__ == "InvalidValue"
    """).passes("-W", "error::pytest.PytestUnraisableExceptionWarning", tests=4)
