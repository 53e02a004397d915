"""Signatures over data that is stored in Redis and trusted when it is read back."""
from __future__ import annotations

import hmac
from collections.abc import Iterable

#: Bytes of a signature: HMAC-SHA256 (RFC 2104) in hexadecimal digits.
SIGNATURE_SIZE = 64


class Signer:
    """Signs texts for one purpose and checks such signatures.

    A text that was signed for another purpose, or under another namespace, does not pass: each
    purpose has a key of its own, derived from the given one.

    Args:
        keys: The first one signs; each of them is accepted, so that keys can be rotated.
        purpose: What the texts are for.
    """

    def __init__(self, keys: Iterable[bytes], purpose: str) -> None:
        self._keys = [hmac.digest(key, purpose.encode(), "sha256") for key in keys]

    def sign(self, text: bytes) -> bytes:
        """Return a text with its signature in front."""
        return _signature(self._keys[0], text) + text

    def verify(self, signed: bytes) -> bytes | None:
        """Return a text without its signature, or None if no key has signed it."""
        signature, text = signed[:SIGNATURE_SIZE], signed[SIGNATURE_SIZE:]
        # All are compared, so that the time does not depend on which one fits.
        fits = [hmac.compare_digest(_signature(key, text), signature) for key in self._keys]
        return text if any(fits) else None


def _signature(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256").hex().encode()
