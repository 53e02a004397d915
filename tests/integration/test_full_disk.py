"""The private redis-server on a full disk: buffered writes do not fail, and saved data stay."""
from __future__ import annotations

import subprocess
import sys

import pytest

from celery_memsync import MemorySyncManager, StoreError
from tests.support.paths import ROOT
from tests.support.waiting import eventually

#: Size of the disk, in bytes.
SIZE = 256 * 1024

USER = """
import sys
from celery_memsync import MemorySyncManager
with MemorySyncManager('user', sys.argv[1]) as memsync:
    before = memsync.read('counted')
    memsync.write('counted', (before or 0) + 1)
    memsync.force_sync()
    print(before, memsync.read('counted'))
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of a few kilobytes and files; only root may mount one, and not in every container."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=16", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Leave no room for a byte."""
    with pytest.raises(OSError, match="No space left"):
        with (folder / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)


def run(folder):
    """Let a process count, and wait until its server ends; return what it read before and after."""
    done = subprocess.run(
        [sys.executable, "-c", USER, f"embedded://{folder}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    eventually(lambda: not (folder / "redis.sock").exists())
    return done.stdout.split()


def test_on_a_full_disk_all_works_but_nothing_new_is_kept(disk):
    folder = disk / "redis"
    assert run(folder) == ["None", "1"]
    fill(disk)

    assert run(folder) == ["1", "2"]

    (disk / "fill").unlink()
    assert run(folder) == ["1", "2"]
    assert run(folder) == ["2", "3"]


def test_full_disk_is_logged_and_no_pending_write_is_lost(disk, caplog):
    (disk / "redis").mkdir()
    files = []
    with pytest.raises(OSError, match="No space left"):
        for number in range(100):
            files.append(disk / f"file-{number}")
            files[-1].touch()

    with MemorySyncManager("user", f"embedded://{disk}/redis", batch_interval=0.01) as memsync:
        memsync.write("a", 1)
        memsync.sync_task_state("t1", {"x": 1})
        with pytest.raises(StoreError, match="can't be started in .*: No space left on device"):
            memsync.force_sync()
        with pytest.raises(StoreError):
            memsync.read("b")

        for file in files[:-1]:
            file.unlink()
        memsync.force_sync(timeout=10)

        assert (memsync.read("a"), memsync.get_task_state("t1")) == (1, {"x": 1})
