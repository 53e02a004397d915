"""The file by which ``celery-memsync-probe`` sees how a worker is."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time

logger = logging.getLogger(__name__)


class ProbeFile:
    """The file in which a worker reports its status.

    Times are those of the monotonic clock, which all processes of a host share.

    Args:
        path: Where it is; its folder must be there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._replied_at: float | None = None
        self._warned = False

    def note_reply(self) -> None:
        """Take note that Redis took a heartbeat."""
        self._replied_at = time.monotonic()

    def write(self, within: float, consuming: bool) -> None:
        """Write that the heartbeat thread runs; log once if the file can't be written.

        Args:
            within: Seconds after which this is too old to be true.
            consuming: Whether the worker takes messages, as far as it should.
        """
        now = time.monotonic()
        facts = {"pid": os.getpid(), "round": now, "replied_at": self._replied_at, "within": within, "consuming": consuming}
        try:
            self._replace(json.dumps(facts))
        except OSError as exc:
            if not self._warned:
                logger.warning("memsync_probe_file can't be written (%s); see that its folder is there", exc.strerror)
            self._warned = True
        else:
            self._warned = False

    def remove(self) -> None:
        """Remove it: this worker leaves."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _replace(self, text: str) -> None:
        folder, name = os.path.split(os.path.abspath(self.path))
        handle, draft = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with open(handle, "w") as file:
                file.write(text)
            os.chmod(draft, 0o644)
            os.replace(draft, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
