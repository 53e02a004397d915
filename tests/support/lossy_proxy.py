"""A proxy that loses answers."""
from __future__ import annotations

import contextlib
import random
import select
import socket
import threading


class LossyProxy:
    """Stands between managers and Redis: cuts connections before an answer that was wanted, or holds answers back.

    Args:
        port: Of Redis.
    """

    def __init__(self, port):
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"
        self.cut_text, self.cuts, self.chance = b"", 0, 1.0
        self.hold_text, self.held, self.released = None, threading.Event(), threading.Event()
        self.random = random.Random(1)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, text, times, chance=1.0):
        """Lose the next answers to commands that contain a text, or some; Redis has run them."""
        self.cut_text, self.cuts, self.chance = text, times, chance

    def hold(self, text):
        """Hold back the answer to the next command with a text, until ``released`` is set."""
        self.hold_text = text

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with contextlib.suppress(ConnectionError), client, socket.create_connection(("127.0.0.1", self.port)) as server:
            question = b""
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(2 ** 20)
                    if not data:
                        return
                    question += data
                    server.sendall(data)
                if server in ready:
                    answer = server.recv(2 ** 20)
                    if not answer or self._is_cut(question, answer):
                        return
                    self._hold(question)
                    question = b""
                    client.sendall(answer)

    def _is_cut(self, question, answer):
        wanted = self.cuts > 0 and self.cut_text in question and not answer.startswith(b"-")
        cut = wanted and self.random.random() < self.chance
        self.cuts -= cut
        return cut

    def _hold(self, question):
        if self.hold_text is not None and self.hold_text in question:
            self.hold_text = None
            self.held.set()
            self.released.wait(10)
