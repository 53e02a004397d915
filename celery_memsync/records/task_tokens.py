"""Signed texts that let people without any other right see how far one task is."""
from __future__ import annotations

import base64
import time

from celery.exceptions import ImproperlyConfigured

from ..exceptions import InvalidToken
from ..keys import MAX_ID, check_id, is_id
from ..settings import Settings
from ..signing import SIGNATURE_SIZE, Signer
from .checks import check_seconds

#: Longest token: a signature, and in base64 a time in milliseconds, a blank and the longest id.  Any longer text is refused
#: before it is looked at.
MAX_TOKEN = SIGNATURE_SIZE + 2 * (MAX_ID + 20)

#: Seconds for which a token is valid unless its maker chooses another time.
TOKEN_AGE = 3600.0


class TaskTokens:
    """Makes and checks the tokens of a namespace.

    A token is a signature and, in the alphabet of URLs, when it expires and the id of the task.  What is signed is the text
    in that alphabet, so that no two texts are the same token.  Times are by the clock of the process that makes or checks
    one: neither needs Redis.

    Raises:
        ImproperlyConfigured: Without ``memsync_signing_key``.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.signing_keys:
            raise ImproperlyConfigured(
                "tokens of tasks need memsync_signing_key: a secret text, the same in all processes that make and check "
                "them; for example the output of: openssl rand -hex 32")
        self._signer = Signer(settings.signing_keys, f"token {settings.namespace}")

    def make(self, task_id: str, max_age: float) -> str:
        """Return a token of a task, valid for some seconds.

        Raises:
            InvalidKey: If the id can't be one of a task.
            InvalidValue: If the age is not above 0, or not finite.
        """
        task_id = check_id(task_id, "task")
        expires_at = time.time() + check_seconds(max_age, "max_age", positive=True)
        claim = f"{int(expires_at * 1000)} {task_id}"
        return self._signer.sign(base64.urlsafe_b64encode(claim.encode()).rstrip(b"=")).decode()

    def check(self, token: str) -> str:
        """Return the id of the task that a token is of.

        Raises:
            InvalidToken: If it is none of this namespace, or has expired.
        """
        expires_at, task_id = self._read(token)
        if time.time() >= expires_at:
            raise InvalidToken(expired=True)
        return task_id

    def _read(self, token: str) -> tuple[float, str]:
        """Return when a token expires, in seconds since the epoch, and of which task it is."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not token.isascii():
            raise InvalidToken
        text = self._signer.verify(token.encode())
        if text is None:
            raise InvalidToken
        try:
            # Another release may sign other claims with the same key.
            expires_at, task_id = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)).decode().split(" ", 1)
            if is_id(task_id):
                return int(expires_at) / 1000, task_id
        except ValueError:
            pass
        raise InvalidToken
