"""Run a redis-server until the last process that uses it ends.

``embedded.py`` starts this file as a program of its own, and uses its checks.

Usage: ``embedded_supervisor.py FOLDER save|nosave|remove COMMAND...``

It imports nothing of this package, so that it needs little memory.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading

#: What an error proposes where no mode has to be changed.
ADVICE = "or name another folder, as in embedded:///path/to/folder"

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "regular file", stat.S_IFSOCK: "socket"}

#: ``struct ucred`` of Linux: pid, uid, gid.
_UCRED = struct.Struct("iII")


class UnsafePathError(ValueError):
    """A file, folder or server that another user controls or could replace."""


def check_own(path: str, info: os.stat_result, kind: int) -> None:
    """Raise UnsafePathError unless a file is of a kind and owned by this user.

    Args:
        path: For the error.
        info: From ``lstat`` or ``fstat``: a symbolic link is an error.
        kind: Such as ``stat.S_IFREG``.
    """
    if stat.S_ISLNK(info.st_mode):
        problem = "is a symbolic link"
    elif stat.S_IFMT(info.st_mode) != kind:
        problem = f"is not a {_KINDS[kind]}"
    elif info.st_uid != os.geteuid():
        problem = f"has owner uid {info.st_uid}, not uid {os.geteuid()}"
    elif kind == stat.S_IFREG and info.st_nlink != 1:
        problem = f"has {info.st_nlink} hard links, not 1"
    else:
        return
    raise UnsafePathError(f"{path} {problem}; remove it, {ADVICE}")


def open_file(path: str) -> int:
    """Open a file of this user for reading and appending; create it if missing.

    Returns:
        A file descriptor that child processes do not inherit.

    Raises:
        UnsafePathError: If it is not a regular file of this user with one link.
    """
    # Opening a device or a FIFO may have effects, so the kind is checked before and after.
    with contextlib.suppress(FileNotFoundError):
        check_own(path, os.lstat(path), stat.S_IFREG)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(path, flags, 0o600)
    try:
        check_own(path, os.fstat(file), stat.S_IFREG)
        # A file made by an older version or by hand may be open to others, who could lock it.
        os.fchmod(file, 0o600)
    except BaseException:
        os.close(file)
        raise
    return file


def check_peer(connection: socket.socket) -> None:
    """Raise UnsafePathError if another user's process listens on a unix socket.

    Only Linux reports the user.  Elsewhere the checks of the folder have to suffice.
    """
    if sys.platform == "linux":
        option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid = _UCRED.unpack(option)[1]
        if uid != os.geteuid():
            raise UnsafePathError(
                f"the server at {connection.getpeername()} runs as uid {uid}, not as uid "
                f"{os.geteuid()}, and was sent nothing; stop it and remove its socket, {ADVICE}"
            )


def main(folder: str, at_end: str, command: list[str]) -> int:
    """Start the server, wait for its last user, stop the server.

    Args:
        at_end: What is done with its data then: ``save``, ``nosave``, or ``remove`` the folder.
    """
    users = open_file(os.path.join(folder, "users.lock"))
    server = subprocess.Popen(command)  # noqa: S603 # the list that embedded.py has made
    ending = threading.Event()
    # If the server dies, there is nothing left to supervise.
    threading.Thread(target=_end_with, args=(server, ending), daemon=True).start()
    fcntl.flock(users, fcntl.LOCK_EX)
    ending.set()
    if at_end == "save":
        # The folder may have been deleted meanwhile.
        with contextlib.suppress(OSError, UnsafePathError):
            _save(command)
    server.send_signal(signal.SIGTERM)
    server.wait()
    if at_end == "remove":
        import shutil  # it needs memory, and milliseconds

        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _end_with(server: subprocess.Popen[bytes], ending: threading.Event) -> None:
    code = server.wait()
    if not ending.is_set():
        os._exit(code and 1)


def _save(command: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(command[command.index("--unixsocket") + 1])
        check_peer(connection)
        connection.sendall(b"SAVE\r\n")
        connection.recv(64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
