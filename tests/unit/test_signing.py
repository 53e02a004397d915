"""Signatures: the key that signed a text, its purpose, and that it is unchanged."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_memsync.signing import SIGNATURE_SIZE, Signer

KEYS = (b"new-key-0123456789", b"old-key-0123456789")


@given(text=st.binary(max_size=200))
def test_signed_text_is_returned_by_verify(text):
    signer = Signer(KEYS, "messages")

    assert signer.verify(signer.sign(text)) == text


@given(text=st.binary(min_size=1, max_size=60), at=st.integers(0, 200), bit=st.integers(0, 7))
def test_signed_text_with_one_bit_changed_is_refused(text, at, bit):
    signer = Signer(KEYS, "messages")
    signed = bytearray(signer.sign(text))

    signed[at % len(signed)] ^= 1 << bit

    assert signer.verify(bytes(signed)) is None


@given(junk=st.binary(max_size=3 * SIGNATURE_SIZE))
def test_unsigned_text_is_refused(junk):
    assert Signer(KEYS, "messages").verify(junk) is None


def test_old_key_is_accepted_after_rotation_and_does_not_sign():
    before, during, after = Signer(KEYS[1:], "m"), Signer(KEYS, "m"), Signer(KEYS[:1], "m")

    assert during.verify(before.sign(b"text")) == b"text"
    assert after.verify(during.sign(b"text")) == b"text"
    assert after.verify(before.sign(b"text")) is None


@pytest.mark.parametrize("other", ["messages of b", "messages", "messages of a "])
def test_signature_for_another_purpose_is_refused(other):
    signed = Signer(KEYS, "messages of a").sign(b"text")

    assert Signer(KEYS, other).verify(signed) is None
