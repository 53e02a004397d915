"""The requests that a worker has are found although others come and go."""
from __future__ import annotations

import threading
import time
import weakref

from celery_memsync.integration.requests import ReceivedRequests

#: So many that a thread which adds some gets its turn in any loop over them.
MANY = 100_000


class Request:
    """A request of Celery, as far as this needs it."""


def test_unended_requests_are_found_while_others_are_received():
    received, kept, stopped = ReceivedRequests(), [Request() for _ in range(MANY)], threading.Event()
    received.by_run.update({str(number): weakref.ref(request) for number, request in enumerate(kept)})

    def receive():
        while not stopped.is_set():
            kept.append(Request())
            received.by_run[str(len(kept))] = weakref.ref(kept[-1])
            time.sleep(0.0001)

    thread = threading.Thread(target=receive)
    thread.start()
    found = [len(received.unended()) for _ in range(3)]
    stopped.set()
    thread.join()

    assert min(found) >= MANY
