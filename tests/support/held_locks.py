"""Checks that no mutex of the package is held during a call that may block."""
from __future__ import annotations

import functools
import linecache
import re
import socket
import sys
import threading

#: Calls of a socket that may block.
SOCKET_CALLS = ("connect", "send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg")

_held = threading.local()


def held():
    """Return the names of the mutexes that this thread holds, in the order in which it took them."""
    if not hasattr(_held, "names"):
        _held.names = []
    return _held.names


class WatchedMutex:
    """A mutex that remembers who holds it.

    Args:
        mutex: A Lock or an RLock.
        name: Such as ``writing.writer.BatchWriter._mutex``.
    """

    def __init__(self, mutex, name):
        self.mutex = mutex
        self.name = name

    def acquire(self, *args, **kwargs):
        taken = self.mutex.acquire(*args, **kwargs)
        if taken:
            held().append(self.name)
        return taken

    def release(self):
        self.mutex.release()
        if self.name in held():
            held().remove(self.name)

    def locked(self):
        return self.mutex.locked()

    def _is_owned(self):
        return self.mutex._is_owned()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exc_info):
        self.release()


class HeldLocks:
    """Watches the mutexes that the package makes from now on.

    Args:
        monkeypatch: Undoes it all.
        allowed: Names of mutexes that may be held while a socket is used: they put exchanges with Redis in order.
    """

    def __init__(self, monkeypatch, allowed=()):
        self.allowed = set(allowed)
        #: What was done while a mutex was held, and the names of those mutexes.
        self.violations = set()
        for kind in ("Lock", "RLock"):
            monkeypatch.setattr(threading, kind, functools.partial(self._make, getattr(threading, kind)))
        for call in SOCKET_CALLS:
            monkeypatch.setattr(socket.socket, call, self._checked_call(call), raising=False)

    def user_code(self, function):
        """Return what a user gives to the package, which looks whether a mutex is held when it is called."""
        @functools.wraps(function)
        def checked(*args, **kwargs):
            self.check("user code", set(held()))
            return function(*args, **kwargs)

        return checked

    def check(self, what, names):
        """Fail if mutexes are held."""
        if names:
            self.violations.add((what, *sorted(names)))
            raise AssertionError(f"{what} while these are held: {sorted(names)}")

    def _make(self, make):
        frame = sys._getframe(1)
        module = frame.f_globals.get("__name__", "")
        mutex = make()
        # A Wakeup is no mutex, nor is a request: it is closed by one thread and opened by another.
        if not module.startswith("celery_memsync") or module.endswith(("background_loop", "writing.requests")):
            return mutex
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        target = re.search(r"(\w+)\s*(?::.*)?=", line).group(1)
        owner = type(frame.f_locals["self"]).__name__ if "self" in frame.f_locals else frame.f_code.co_name
        return WatchedMutex(mutex, f"{_short(module)}.{owner}.{target}")

    def _checked_call(self, name):
        call = getattr(socket.socket, name)

        @functools.wraps(call)
        def checked(sock, *args, **kwargs):
            self.check("a socket is used", set(held()) - self.allowed)
            return call(sock, *args, **kwargs)

        return checked


def _short(module):
    return module.removeprefix("celery_memsync.")
