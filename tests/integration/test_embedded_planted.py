"""embedded:// uses no file and no server of another user."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from celery_memsync import StoreError
from celery_memsync.store import client, embedded
from tests.support.embedded_processes import FOREIGN_UID, StayingUsers, as_root, begin, disown, refusal_of
from tests.support.stress import stressed

#: Listens as another user on an inherited socket, and prints the length of what each client sends.
FOREIGN_SERVER = f"""
import os, socket, sys
os.setgroups([])
os.setgid({FOREIGN_UID})
os.setuid({FOREIGN_UID})
listener = socket.socket(fileno=int(sys.argv[1]))
listener.listen(1000)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.settimeout(5)
    try:
        received = connection.recv(65536)
        if received == b"stop":
            break
        print(len(received), flush=True)
        connection.sendall(b"+PONG\\r\\n")
    except OSError:
        pass
    connection.close()
"""

#: Connects anew for a second and until a write succeeds; prints how many did.
WRITER = """
    import contextlib, time
    from celery_memsync import StoreError
    end = time.monotonic() + 1.0
    written = 0
    while time.monotonic() < end or not written:
        with contextlib.suppress(StoreError):
            memsync = MemorySyncManager('writer', sys.argv[1], batch_interval=60.0)
            try:
                memsync.write('secret', 'card')
                memsync.force_sync(timeout=1.0)
                written += 1
            finally:
                memsync.shutdown(timeout=0)
    print(written)
"""


class ForeignServer:
    """A server of another user whose socket is at a path of this user.

    Args:
        path: Of its socket.
    """

    def __init__(self, path):
        self.path = path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            self.process = subprocess.Popen(
                [sys.executable, "-c", FOREIGN_SERVER, str(listener.fileno())],
                pass_fds=[listener.fileno()], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "listening\n"

    def received(self):
        """Stop it, and return how many bytes each of its clients sent."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(b"stop")
        return [int(line) for line in self.process.communicate(timeout=20)[0].split()]


@pytest.fixture
def foreign_server():
    """Starts servers of another user."""
    servers = []

    def start(path):
        servers.append(ForeignServer(path))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir(mode=0o700)
    return folder


def plant(kind, path, target):
    """Put something at a path that is no plain file of this user."""
    target.write_text("")
    if kind == "symbolic link":
        path.symlink_to(target)
    elif kind == "hard link":
        path.hardlink_to(target)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "file of another user":
        path.write_text("")
        disown(path)


@pytest.mark.parametrize("name", ["users.lock", "start.lock", "redis.log"])
@pytest.mark.parametrize("kind, problem", [
    ("symbolic link", "is a symbolic link"), ("hard link", "has 2 hard links, not 1"),
    ("FIFO", "is not a regular file"),
    pytest.param("file of another user", f"has owner uid {FOREIGN_UID}, not uid 0", marks=as_root),
])
def test_a_planted_file_is_refused(folder, tmp_path, name, kind, problem):
    plant(kind, folder / name, tmp_path / "target")

    error = refusal_of(folder)

    assert f"{folder / name} {problem}; remove it, or name another folder" in error
    assert (tmp_path / "target").read_text() == ""
    assert not (folder / "redis.sock").exists()


@pytest.mark.parametrize("kind, problem", [
    ("symbolic link", "is a symbolic link"), ("hard link", "is not a socket"),
])
def test_a_planted_socket_is_refused(folder, tmp_path, kind, problem):
    plant(kind, folder / "redis.sock", tmp_path / "target")

    error = refusal_of(folder)

    assert f"{folder}/redis.sock {problem}; remove it, or name another folder" in error
    assert os.listdir(folder) == ["redis.sock"]


@as_root
def test_a_server_of_another_user_receives_nothing(folder, foreign_server):
    server = foreign_server(folder / "redis.sock")

    error = refusal_of(folder)
    received = server.received()

    assert f"the server at {folder}/redis.sock runs as uid {FOREIGN_UID}, not as uid 0" in error
    assert "stop it and remove its socket, or name another folder" in error
    assert received == [0]


@as_root
def test_a_connection_to_another_user_is_closed_before_a_byte(folder, foreign_server, monkeypatch):
    server = foreign_server(folder / "redis.sock")
    monkeypatch.setattr(embedded, "start", lambda path: None)
    redis_client = client.connect(f"embedded://{folder}", {})

    with pytest.raises(StoreError, match=f"runs as uid {FOREIGN_UID}"):
        redis_client.ping()
    received = server.received()

    assert received == [0]


@as_root
@pytest.mark.parametrize("swapped", stressed(["link", "socket"], ["socket"]))
def test_a_swap_after_the_checks_leads_no_byte_to_others(tmp_path, foreign_server, swapped):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    users = StayingUsers(ours / "memory")
    users.start()
    (theirs / "memory").mkdir(mode=0o700, parents=True)
    server = foreign_server(theirs / "memory" / "redis.sock")
    os.link(ours / "memory" / "redis.sock", tmp_path / "ours.sock")
    os.link(theirs / "memory" / "redis.sock", tmp_path / "theirs.sock")
    ended = threading.Event()

    def swap():
        turn = 0
        while not ended.is_set():
            turn += 1
            side, new = ("ours", "theirs")[turn % 2], tmp_path / "new"
            new.unlink(missing_ok=True)
            if swapped == "link":
                new.symlink_to(tmp_path / side)
                new.rename(tmp_path / "way")
            else:
                new.hardlink_to(tmp_path / f"{side}.sock")
                new.rename(ours / "memory" / "redis.sock")

    (tmp_path / "way").symlink_to(ours)
    swapper = threading.Thread(target=swap)
    swapper.start()
    writer = begin(WRITER, f"embedded://{tmp_path / 'way' / 'memory'}")
    written, errors = writer.communicate(timeout=60)
    ended.set()
    swapper.join()
    received = server.received()
    users.stop()

    assert "Traceback" not in errors
    assert int(written) > 0
    assert received
    assert set(received) == {0}
