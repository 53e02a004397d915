"""Puts back what a Redis broker delivered too long ago, as workers do."""
from __future__ import annotations

import contextlib
import threading


class Sweeper:
    """Sweeps a broker all the time; before kombu 5.7 a worker does it every 100 seconds.

    Args:
        app: Whose broker it is, with its ``visibility_timeout``.
        interval: Seconds between two sweeps.
    """

    def __init__(self, app, interval):
        self.app = app
        self.interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stopped.set()
        self._thread.join(5)

    def _run(self):
        while not self._stopped.wait(self.interval):
            with contextlib.suppress(Exception), self.app.connection() as connection:  # the broker may be away
                connection.default_channel.qos.restore_visible(interval=1)
