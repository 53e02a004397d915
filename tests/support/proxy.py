"""A slow line to Redis."""
from __future__ import annotations

import contextlib
import socket
import threading
import time

#: Texts that show what kind a connection is of.
LISTENER, READERS, WRITER = b"SUBSCRIBE", b"TRACKING", b"EVALSHA"


def is_of_kind(mark, sent):
    """Whether the commands of a connection show that it is of a kind; the listener tracks, too."""
    return mark in sent and not (mark == READERS and LISTENER in sent)


class Proxy:
    """A TCP proxy before Redis that can hold back its answers.

    Attributes:
        url: Where it listens.
        held: What is held back.
    """

    def __init__(self, port):
        self.port = port
        self.held = []
        self._sent = []
        self._holding = lambda sent: False
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

    def hold(self, *marks, new=True):
        """Hold back answers on connections of some kinds.

        Args:
            new: Also on connections that become one of these kinds later.
        """
        known = list(map(id, self._sent))
        self._hold_if(
            lambda sent: (new or id(sent) in known) and any(
                is_of_kind(mark, sent) for mark in marks))

    def hold_all(self):
        """Hold back all answers from now on."""
        self._hold_if(lambda sent: True)

    def hold_open(self):
        """Hold back all answers on the connections that are open now."""
        known = list(map(id, self._sent))
        self._hold_if(lambda sent: id(sent) in known)

    def hold_questions(self, mark):
        """Hold back further commands on connections of a kind."""
        with self._changed:
            self._questions = mark

    def release_answers(self):
        self._hold_if(lambda sent: False)

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
                server, sent = socket.create_connection(("127.0.0.1", self.port)), bytearray()
            except OSError:  # Redis is away
                client.close()
                continue
            self._sent.append(sent)
            self._ends = [end for end in self._ends if end.fileno() >= 0] + [client, server]
            threading.Thread(
                target=self._pump, args=(client, server, sent, False), daemon=True).start()
            threading.Thread(
                target=self._pump, args=(server, client, sent, True), daemon=True).start()

    def _pump(self, source, target, sent, answers):
        try:
            while data := source.recv(65536):
                if answers:
                    time.sleep(self.delay)
                    data = self._answer(data)
                    self._wait(data, sent)
                else:
                    with self._changed:
                        self._changed.wait_for(
                            lambda: self._questions is None or self._questions not in sent)
                    sent += data
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
        """Return what to send instead of what Redis answers."""
        return data

    def _wait(self, data, sent):
        with self._changed:
            if self._holding(sent):
                self.held.append(data)
                self._changed.wait_for(lambda: not self._holding(sent))
