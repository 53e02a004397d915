"""A proxy that loses answers, and lets questions arrive late."""
from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter


class LateProxy:
    """A TCP proxy that loses answers or connections, and delivers questions after their connection
    was closed.

    Args:
        port: Of Redis.
        chance: Draws what is harmed.
    """

    def __init__(self, port, chance):
        self.port = port
        self.chance = chance
        self.harm = 0.05
        self.harmed = Counter()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            threading.Thread(target=self._pump, args=(client, server, ("late",)), daemon=True).start()
            threading.Thread(
                target=self._pump, args=(server, client, ("cut", "drop")), daemon=True).start()

    def _pump(self, source, target, harms):
        try:
            while data := source.recv(2 ** 16):
                harm = self.chance.choice(harms) if self.chance.random() < self.harm else ""
                if harm and (harm != "late" or b"EVALSHA" in data):
                    self.harmed[harm] += 1
                    getattr(self, harm)(source, target, data)
                else:
                    target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def cut(self, source, target, data):
        raise OSError

    def drop(self, source, target, data):
        pass

    def late(self, source, target, data):
        """Break the connection to the client, and deliver its question later."""
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        time.sleep(self.chance.random())
        target.sendall(data)
        time.sleep(0.1)
