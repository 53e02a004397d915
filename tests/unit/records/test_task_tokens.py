"""Tokens of tasks: who signed one, for what, until when, and that it is unchanged."""
from __future__ import annotations

import base64
import pickle
import re
import string

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import example, given
from hypothesis import strategies as st

from celery_memsync import InvalidKey, InvalidToken, InvalidValue, MemSync, MemSyncError
from celery_memsync.keys import is_id
from celery_memsync.records import task_tokens
from celery_memsync.records.task_tokens import MAX_TOKEN, TaskTokens
from celery_memsync.settings import Settings
from celery_memsync.signing import SIGNATURE_SIZE, Signer

NEW, OLD = "new-key-0123456789", "old-key-0123456789"

#: When the tests take place.
NOW = 1_800_000_000.5

#: Letters of which tokens are made.
LETTERS = string.ascii_letters + string.digits + "-_"

ids = st.text(min_size=1, max_size=170).filter(is_id) | st.uuids().map(str)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The clock of the process, which a test can set."""
    class Clock:
        now = NOW

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(task_tokens, "time", clock)
    return clock


def tokens_of(*keys, namespace="shop"):
    return TaskTokens(Settings.build({"signing_key": keys, "namespace": namespace}))


TOKENS = tokens_of(NEW)


def is_refused(token, tokens=TOKENS):
    """Return whether a token is not valid, without being called expired."""
    with pytest.raises(InvalidToken) as caught:
        tokens.check(token)
    return str(caught.value) == "the token is not valid" and not caught.value.expired


@given(task_id=ids)
def test_token_is_fit_for_a_url_and_names_its_task(task_id):
    token = TOKENS.make(task_id, 60)

    assert TOKENS.check(token) == task_id
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert len(token) <= MAX_TOKEN


def test_token_of_the_longest_id_is_accepted():
    for task_id in ("x" * 512, "\U0001f600" * 128):
        assert TOKENS.check(TOKENS.make(task_id, 9e9)) == task_id


def test_token_holds_an_id_and_a_time_and_no_secret():
    token = TOKENS.make("the-task", 60)

    text = token[SIGNATURE_SIZE:]
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == b"%.0f the-task" % (1000 * NOW + 60_000)
    assert re.fullmatch(r"[0-9a-f]{64}", token[:SIGNATURE_SIZE])


@given(task_id=ids, at=st.integers(0, MAX_TOKEN), bit=st.integers(0, 7))
def test_token_with_any_bit_changed_is_refused(task_id, at, bit):
    token = bytearray(TOKENS.make(task_id, 60).encode())

    token[at % len(token)] ^= 1 << bit

    assert is_refused(token.decode("latin-1"))


@given(task_id=ids, cut=st.integers(1, MAX_TOKEN), added=st.text(LETTERS + "= .", min_size=1, max_size=10))
def test_token_that_is_cut_or_longer_is_refused(task_id, cut, added):
    token = TOKENS.make(task_id, 60)

    kept = token[:-cut]
    assert is_refused(kept) and is_refused(token[cut:])
    assert is_refused(token + added) and is_refused(added + token)
    assert is_refused(f" {token}") and is_refused(f"{token}\n")


@given(first=ids, second=ids)
def test_signature_of_a_token_fits_no_other_claim(first, second):
    one, other = TOKENS.make(first, 60), TOKENS.make(second, 61)

    assert is_refused(one[:SIGNATURE_SIZE] + other[SIGNATURE_SIZE:])


@pytest.mark.parametrize("junk", [
    "", "x", "0" * 64, "." * 200, "ü" * 80, "\ud800" * 80, "\x00" * 80, "a" * MAX_TOKEN, "a" * (MAX_TOKEN + 1),
    "a" * 10 ** 7, None, b"bytes", 7, ["list"], float("nan")], ids=lambda junk: repr(junk)[:12])
def test_junk_is_refused(junk):
    assert is_refused(junk)


@given(junk=st.text(max_size=300) | st.text(LETTERS, max_size=300))
def test_made_up_token_is_refused(junk):
    assert is_refused(junk)


@pytest.mark.parametrize("other", [
    tokens_of(OLD), tokens_of(NEW, namespace="shop2"), tokens_of(NEW, namespace="sho"),
    tokens_of(NEW, namespace="token shop")])
def test_token_of_another_key_or_namespace_is_refused(other):
    assert is_refused(TOKENS.make("t1", 60), other)
    assert is_refused(other.make("t1", 60))


def test_text_that_is_signed_for_another_purpose_is_refused():
    claim = TOKENS.make("t1", 60)[SIGNATURE_SIZE:].encode()

    assert is_refused(Signer([NEW.encode()], "requeue shop").sign(claim).decode())
    assert TOKENS.check(Signer([NEW.encode()], "token shop").sign(claim).decode()) == "t1"


@pytest.mark.parametrize("claim", [
    b"", b"x", b"t1", b" t1", b"1e99 t1", b"nan t1", b"99999999999999 ", b"99999999999999 a/b", b"99999999999999 a\nb",
    b"\xff", b"9" * 5000 + b" t1"])
def test_signed_text_of_another_format_is_refused(claim):
    signer = Signer([NEW.encode()], "token shop")

    assert is_refused(signer.sign(base64.urlsafe_b64encode(claim).rstrip(b"=")).decode())
    assert is_refused(signer.sign(b"!" + base64.urlsafe_b64encode(claim)[:9]).decode())


def test_old_key_is_accepted_after_rotation_and_does_not_sign():
    before, during, after = tokens_of(OLD), tokens_of(NEW, OLD), tokens_of(NEW)

    assert during.check(before.make("t1", 60)) == "t1"
    assert after.check(during.make("t1", 60)) == "t1"
    assert is_refused(before.make("t1", 60), after)


@given(max_age=st.floats(1e-6, 1e9), share=st.floats(0, 2))
@example(max_age=0.0006, share=1.1)
def test_token_is_valid_until_its_age_and_no_longer(max_age, share):
    token, age = TOKENS.make("t1", max_age), max_age * share

    task_tokens.time.now = NOW + age
    try:
        if age < max_age - 0.001:
            assert TOKENS.check(token) == "t1"
        elif age > max_age + 1e-6:
            with pytest.raises(InvalidToken, match="^the token has expired; a new one is needed$") as caught:
                TOKENS.check(token)
            assert caught.value.expired
    finally:
        task_tokens.time.now = NOW


def test_forged_token_with_a_past_time_is_not_called_expired():
    forged = "0" * SIGNATURE_SIZE + base64.urlsafe_b64encode(b"1 t1").decode().rstrip("=")

    assert is_refused(forged)


@pytest.mark.parametrize("max_age", [0, -1, float("nan"), float("inf"), 1e10, True, None, "60"])
def test_wrong_age_is_refused(max_age):
    with pytest.raises(InvalidValue, match="max_age"):
        TOKENS.make("t1", max_age)


@pytest.mark.parametrize("task_id", ["", "a/b", "a\nb", "*", "x" * 513, None])
def test_id_of_no_task_has_no_token(task_id):
    with pytest.raises(InvalidKey):
        TOKENS.make(task_id, 60)


def test_error_of_a_token_survives_a_process():
    error = pickle.loads(pickle.dumps(InvalidToken(expired=True)))

    assert (error.expired, str(error)) == (True, "the token has expired; a new one is needed")
    assert isinstance(error, MemSyncError) and isinstance(error, ValueError)


# -- by way of MemSync

@pytest.fixture
def make_app():
    """Makes a MemSync whose Redis is not there."""
    made = []

    def make(**settings):
        made.append(MemSync(Celery("proj", set_as_current=False), backend="redis://127.0.0.1:1/0", **settings))
        return made[-1]

    yield make
    for memsync in made:
        memsync.shutdown(0.5)
        memsync.signals.disconnect()


def test_token_needs_no_redis_and_is_valid_for_an_hour(make_app, clock):
    memsync, other = make_app(signing_key=NEW), make_app(signing_key=(OLD, NEW))
    token = memsync.token("t1")

    clock.now += 3599
    assert other.check_token(token) == "t1"
    clock.now += 2
    with pytest.raises(InvalidToken):
        memsync.check_token(token)


@pytest.mark.parametrize("use", [lambda memsync: memsync.token("t1"), lambda memsync: memsync.check_token("x")])
def test_token_without_a_key_is_an_error_that_names_the_setting(make_app, use):
    with pytest.raises(ImproperlyConfigured, match="memsync_signing_key"):
        use(make_app())
