"""What is decoded is something that could have been encoded, or it is refused."""
from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_memsync import InvalidValue, encoding


@pytest.mark.parametrize("body", [
    b"1e999", b"-1e999", b'{"x": [1e400]}', b"NaN", b"Infinity", b"[-Infinity]",
    b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101,
    b'["]",' * 101 + b"0" + b',"["]' * 101, b'{"]":{"}":' * 51 + b"[]" + b"}}" * 51,
    b"[" + b'"[[[",' * 200 + b"[" * 100 + b"]" * 100 + b"]", b"[1," * 101 + b"[]" + b"]" * 101,
    b'{"__type__":"decimal","__value__":"NaN"}', b'{"__type__":"decimal","__value__":"sNaN"}',
    b'{"__type__":"uuid","__value__":5}', b'{"__type__":"datetime","__value__":"x"}', b"", b"{", b"\xff",
], ids=lambda body: repr(body)[:30])
def test_decode_refuses_what_encode_does_not_make(body):
    with pytest.raises(encoding.UNREADABLE):
        encoding.decode(body)


@pytest.mark.parametrize("value", [
    Decimal("NaN"), [Decimal("sNaN")], Decimal("Infinity"), float("nan")])
def test_encode_refuses_what_decode_would_refuse(value):
    with pytest.raises(InvalidValue):
        encoding.encode(value, "a", 10_000)


@pytest.mark.parametrize("value", [
    "\\ud800", "\U0001f600", ["[" * 500, "]" * 500], [[], [[]]] * 200, "\"[" * 200, ["\\", "[" * 200],
], ids=lambda one: repr(one)[:20])
def test_text_that_looks_like_structure_comes_back_equal(value):
    assert encoding.decode(encoding.encode(value, "a", 10_000)) == value


def test_deepest_value_comes_back_equal_and_a_deeper_one_is_refused():
    value = []
    for _ in range(encoding.MAX_DEPTH - 1):
        value = [value]

    assert encoding.decode(encoding.encode(value, "a", 10_000)) == value
    with pytest.raises(InvalidValue, match="nested too deeply"):
        encoding.encode([value], "a", 10_000)


@given(
    depth=st.integers(90, 110), texts=st.lists(st.text('[]{}"\\,:x', max_size=6), min_size=1, max_size=6),
    named=st.lists(st.booleans(), min_size=1, max_size=6))
def test_depth_is_that_of_the_structure_whatever_the_texts_are(depth, texts, named):
    value = 0
    for level in range(depth):
        text = texts[level % len(texts)]
        value = {text: value, f"{text}.": text} if named[level % len(named)] else [text, value, text]

    if depth <= encoding.MAX_DEPTH:
        assert encoding.decode(encoding.encode(value, "a", 10_000)) == value
    else:
        with pytest.raises(InvalidValue, match="nested too deeply"):
            encoding.encode(value, "a", 10_000)
        with pytest.raises(encoding.UNREADABLE):
            encoding.decode(encoding.dumps(value))


@given(text=st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_comes_back_equal_with_halves_of_surrogate_pairs(text):
    assert encoding.decode(encoding.encode([text], "a", 10_000)) == [text]
