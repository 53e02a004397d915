"""embedded:// uses no folder that another user can change."""
from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from celery_memsync.store import embedded
from tests.support.embedded_processes import FOREIGN_UID, as_root, disown, refusal_of, run, servers_of
from tests.support.waiting import eventually


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def temporary(tmp_path_factory):
    """The folder for temporary files, whose path is short enough for a socket."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def runtime(temporary, tmp_path_factory, monkeypatch):
    """A folder that XDG_RUNTIME_DIR names, apart from the one for temporary files."""
    runtime = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return runtime


def test_a_link_to_an_own_folder_is_refused(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)

    error = refusal_of(link)

    assert f"{link} is a symbolic link; remove it, or name another folder" in error
    assert list(target.iterdir()) == []


@as_root
def test_a_link_to_a_foreign_folder_is_refused(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o755)
    disown(target)
    link.symlink_to(target)

    error = refusal_of(link)

    assert f"{link} is a symbolic link" in error
    assert list(target.iterdir()) == []


def test_a_link_in_place_of_the_default_folder_is_refused(runtime, tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (runtime / "celery-memsync").symlink_to(target)

    error = refusal_of("")

    assert f"{runtime}/celery-memsync is a symbolic link" in error
    assert list(target.iterdir()) == []


@as_root
def test_a_foreign_folder_is_refused(folder):
    disown(folder)

    error = refusal_of(folder)

    assert f"{folder} has owner uid {FOREIGN_UID}, not uid 0; remove it, or name another" in error
    assert list(folder.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    error = refusal_of(tmp_path / "file")

    assert f"{tmp_path}/file is not a directory" in error


def test_a_file_above_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    error = refusal_of(tmp_path / "file" / "memory")

    assert f"{tmp_path}/file/memory: Not a directory" in error


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o777, 0o1777])
def test_a_folder_is_refused_if_others_may_write(folder, mode):
    folder.chmod(mode)

    error = refusal_of(folder)

    assert f"{folder} has mode {mode:04o}" in error
    assert f"run chmod 700 {folder}, or name another folder" in error
    assert list(folder.iterdir()) == []


def test_a_named_folder_may_be_readable_but_its_files_are_not(folder):
    folder.chmod(0o755)

    run("memsync.write('a', 1)", f"embedded://{folder}")
    eventually(lambda: not servers_of(folder))

    assert {"users.lock", "start.lock", "redis.log", "dump.rdb"} <= set(os.listdir(folder))
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_the_default_folder_is_refused_if_others_may_read(runtime):
    own = runtime / "celery-memsync"
    own.mkdir()
    own.chmod(0o750)

    error = refusal_of("")

    assert f"{own} has mode 0750" in error
    assert f"run chmod 700 {own}" in error


@pytest.mark.parametrize("mode", [0o777, 0o770])
@pytest.mark.parametrize("below", ["", "between/"])
def test_a_folder_is_refused_if_others_may_replace_it(tmp_path, mode, below):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)

    error = refusal_of(above / f"{below}memory")

    assert f"{above} has mode {mode:04o}, so other users can replace" in error
    assert f"run chmod go-w {above}, or name another folder" in error
    assert list(above.iterdir()) == []


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_folder_is_refused_in_a_foreign_one(tmp_path, mode):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    disown(above)

    error = refusal_of(above / "memory")

    assert f"{above} has owner uid {FOREIGN_UID}" in error
    assert list(above.iterdir()) == []


@as_root
def test_a_folder_is_refused_behind_a_foreign_link(tmp_path, folder):
    (tmp_path / "link").symlink_to(tmp_path)
    disown(tmp_path / "link")

    error = refusal_of(tmp_path / "link" / "memory")

    assert f"{tmp_path}/link has owner uid {FOREIGN_UID}" in error
    assert list(folder.iterdir()) == []


def test_a_folder_is_refused_behind_a_link_to_an_open_one(tmp_path):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    (tmp_path / "link").symlink_to("above")

    error = refusal_of(tmp_path / "link" / "memory")

    assert f"{above} has mode 0777" in error
    assert list(above.iterdir()) == []


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")

    error = refusal_of(tmp_path / "link" / "memory")

    assert f"{tmp_path}/link" in error


def test_a_folder_works_in_a_sticky_one_and_behind_an_own_link(tmp_path):
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (tmp_path / "link").symlink_to(sticky)

    out = run("memsync.write('a', 1); memsync.force_sync(); print(memsync.read('a'))",
              f"embedded://{tmp_path}/link/between/memory")

    assert out == "1\n"
    assert stat.S_IMODE((sticky / "between").stat().st_mode) == 0o700
    eventually(lambda: not servers_of(sticky / "between" / "memory"))


# -- XDG_RUNTIME_DIR

def test_the_default_folder_is_in_a_private_runtime_folder(runtime):
    path = embedded.socket_path("")

    assert path == f"{runtime}/celery-memsync/redis.sock"
    assert stat.S_IMODE((runtime / "celery-memsync").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "case", ["empty", "relative", "missing", "file", "link", "open", "foreign"])
def test_a_runtime_folder_is_passed_over_unless_private(
        runtime, temporary, tmp_path, monkeypatch, case):
    if case == "foreign" and os.geteuid():
        pytest.skip("only root can act as another user")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(runtime)
    if case == "open":
        runtime.chmod(0o710)
    elif case == "foreign":
        disown(runtime)
    values = {
        "empty": "", "relative": os.path.relpath(runtime), "open": runtime, "foreign": runtime}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(values.get(case, tmp_path / case)))

    path = embedded.socket_path("")

    assert path == f"{temporary}/celery-memsync-{os.geteuid()}/redis.sock"
    assert list(runtime.iterdir()) == []


def test_a_socket_with_a_long_path_is_in_the_runtime_folder(runtime, tmp_path):
    long = tmp_path / ("long-" * 20)

    path = Path(embedded.socket_path(str(long)))

    assert path.parent == runtime / "celery-memsync"


def test_a_socket_with_a_long_path_is_refused_behind_a_link(runtime, tmp_path):
    (tmp_path / "target").mkdir(mode=0o700)
    (runtime / "celery-memsync").symlink_to(tmp_path / "target")

    error = refusal_of(tmp_path / ("long-" * 20))

    assert f"{runtime}/celery-memsync is a symbolic link" in error
