"""A Redis that answers what it should not."""
from __future__ import annotations

from tests.support.proxy import Proxy

#: What a Redis may answer, in its protocol and out of it.
ANSWERS = [
    b"+OK\r\n", b"+\r\n", b":0\r\n", b":-1\r\n", b":99999999999999999999\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n",
    b"$0\r\n\r\n", b"$7\r\ngarbage\r\n", b"$3\r\n\xff\xfe\x00\r\n", b"*1\r\n$-1\r\n",
    b"*2\r\n:1\r\n*1\r\n*1\r\n$2\r\n[]\r\n",
    b"-ERR no\r\n", b"-NOSCRIPT no\r\n", b"-WRONGTYPE no\r\n", b"-OOM no\r\n", b"-MOVED 1 127.0.0.1:1\r\n",
    b"-READONLY no\r\n", b"-LOADING no\r\n", b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n",
    b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nx\r\n$1\r\ny\r\n", b"garbage\r\n", b"\r\n", b"\x00\x01\x02\r\n",
    b"$5\r\nab", b"*3\r\n:1\r\n", b"$-5\r\n", b"*x\r\n", b":x\r\n", b"",
]


class Liar(Proxy):
    """A proxy that sometimes answers something else than Redis does.

    Attributes:
        lies: Returns what to answer instead, or None for the answer of Redis.
    """

    lies = staticmethod(lambda: None)

    def _answer(self, data):
        lie = self.lies()
        return data if lie is None else lie
