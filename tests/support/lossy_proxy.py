"""A proxy that loses answers."""
from __future__ import annotations

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
        self.cut_word, self.cuts, self.chance = b"", 0, 1.0
        self.hold_word, self.held, self.released = None, threading.Event(), threading.Event()
        self.random = random.Random(1)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, word, times, chance=1.0):
        """Lose the next answers to commands that hold a word, or some of them; Redis has carried them out."""
        self.cut_word, self.cuts, self.chance = word, times, chance

    def hold(self, word):
        """Keep back the next answer to a command that holds a word, until ``released`` is set."""
        self.hold_word = word

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self.port)) as server:
            asked = b""
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    question = client.recv(2 ** 20)
                    if not question:
                        return
                    asked += question
                    server.sendall(question)
                if server in ready:
                    answer = server.recv(2 ** 20)
                    if not answer or self._is_cut(asked, answer):
                        return
                    self._hold(asked)
                    asked = b""
                    client.sendall(answer)

    def _is_cut(self, asked, answer):
        wanted = self.cuts > 0 and self.cut_word in asked and not answer.startswith(b"-")
        cut = wanted and self.random.random() < self.chance
        self.cuts -= cut
        return cut

    def _hold(self, asked):
        if self.hold_word is not None and self.hold_word in asked:
            self.hold_word = None
            self.held.set()
            self.released.wait(10)
