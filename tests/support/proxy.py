"""A slow line to Redis."""
from __future__ import annotations

import contextlib
import socket
import threading
import time

#: Words by which connections are known.
LISTENER, READERS, WRITER = b"SUBSCRIBE", b"TRACKING", b"EVALSHA"


def is_known_by(word, asked):
    """Whether what was asked over a connection shows that it is of a kind; who listens tracks too."""
    return word in asked and not (word == READERS and LISTENER in asked)


class Proxy:
    """A TCP proxy before Redis that can hold back its answers.

    Attributes:
        url: Where it listens.
        held: What is held back.
    """

    def __init__(self, port):
        self.port = port
        self.held = []
        self._asked = []
        self._holding = lambda asked: False
        self._questions = None
        self._changed = threading.Condition()
        #: Seconds by which every answer is late.
        self.delay = 0.0
        #: Seconds between two bytes of an answer.
        self.dribble = 0.0
        #: Bytes a second that questions may have, any number of them if it is 0.
        self.rate = 0
        self._ends = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()
        self._listener.close()

    def hold(self, *words, new=True):
        """Hold back answers on connections over which one of some words was sent, or will be unless ``new`` is false."""
        known = list(map(id, self._asked))
        self._hold_if(lambda asked: (new or id(asked) in known) and any(is_known_by(word, asked) for word in words))

    def hold_all(self):
        """Hold back all answers from now on."""
        self._hold_if(lambda asked: True)

    def hold_asked(self):
        """Hold back all answers on the connections that there are by now."""
        known = list(map(id, self._asked))
        self._hold_if(lambda asked: id(asked) in known)

    def hold_questions(self, word):
        """Hold back what is asked from now on over connections on which a word was sent."""
        with self._changed:
            self._questions = word

    def release_answers(self):
        self._hold_if(lambda asked: False)

    def release(self):
        with self._changed:
            self._questions = None
        self.release_answers()

    def cut(self):
        """Break all connections."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _hold_if(self, holding):
        with self._changed:
            self._holding = holding
            self._changed.notify_all()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server, asked = socket.create_connection(("127.0.0.1", self.port)), bytearray()
            except OSError:  # Redis is away
                client.close()
                continue
            self._asked.append(asked)
            self._ends = [end for end in self._ends if end.fileno() >= 0] + [client, server]
            threading.Thread(target=self._pump, args=(client, server, asked, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, asked, True), daemon=True).start()

    def _pump(self, source, target, asked, answers):
        try:
            while data := source.recv(65536):
                if answers:
                    time.sleep(self.delay)
                    data = self._answer(data)
                    self._wait(data, asked)
                else:
                    with self._changed:
                        self._changed.wait_for(lambda: self._questions is None or self._questions not in asked)
                    asked += data
                    time.sleep(len(data) / self.rate if self.rate else 0)
                self._send(target, data, answers)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _send(self, target, data, answers):
        for at in range(len(data)):
            if not answers or not self.dribble:
                return target.sendall(data[at:])
            target.sendall(data[at:at + 1])
            time.sleep(self.dribble)

    def _answer(self, data):
        """Return what to say instead of what Redis says."""
        return data

    def _wait(self, data, asked):
        with self._changed:
            if self._holding(asked):
                self.held.append(data)
                self._changed.wait_for(lambda: not self._holding(asked))
