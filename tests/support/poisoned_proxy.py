"""A proxy that does not let a poison through: it cuts, or holds, each connection on which it comes."""
from __future__ import annotations

import contextlib
import socket
import threading
import time

#: What is in a value that does not get through.
POISON = b"POISON"

#: Seconds until a connection is cut: Redis has done by then what came before the poison.
PAUSE = 0.1


class PoisonedProxy:
    """Stands between managers and Redis.

    Args:
        port: Of Redis.
        window: Bytes that it receives before a sender has to wait; None: as many as the system likes.
        hold: Whether it answers nothing any more instead of cutting.
    """

    def __init__(self, port, window=None, hold=False):
        self.port = port
        self.hold = hold
        self.cuts = 0
        self._left = float("inf")
        self._listener = socket.socket()
        if window is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(50)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._listener.close()

    def url_of(self, url):
        """Return the URL of this proxy with user and password of another one."""
        return f"redis://{url.split('://')[1].split('@')[0]}@{self.url.split('://')[1]}"

    def stop_cutting(self):
        self.stop_cutting_after(0)

    def stop_cutting_after(self, times):
        self._left = times

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client, server):
        last = b""
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(4096):
                if self._left > 0 and POISON in last + data:
                    self._left -= 1
                    self.cuts += 1
                    server.sendall(data.partition(POISON)[0])
                    time.sleep(3 if self.hold else PAUSE)
                    return
                server.sendall(data)
                last = data[-len(POISON):]

    def _answer(self, server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
