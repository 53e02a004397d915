"""Run a redis-server until the last process that uses it ends.

``embedded.py`` starts this file as a program of its own.

Usage: ``embedded_supervisor.py FOLDER save|nosave COMMAND...``

It imports nothing of this package, so that it needs little memory.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading


def main(folder: str, save: str, command: list[str]) -> int:
    """Start the server, wait for its last user, stop the server."""
    server = subprocess.Popen(command)
    # If the server dies, there is nothing left to supervise.
    threading.Thread(target=lambda: os._exit(server.wait() and 1), daemon=True).start()
    users = os.open(os.path.join(folder, "users.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)
    if save == "save":
        with contextlib.suppress(OSError):  # its directory may be gone by now
            _save(command)
    server.send_signal(signal.SIGTERM)
    server.wait()
    return 0


def _save(command: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(command[command.index("--unixsocket") + 1])
        connection.sendall(b"SAVE\r\n")
        connection.recv(64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
