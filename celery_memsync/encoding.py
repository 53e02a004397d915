"""Values as JSON bytes, and back.

What is decoded comes from Redis or from a message, where other programs write.  So it is either
something that :func:`encode` could have made, or it raises one of :data:`UNREADABLE`.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from json import JSONDecoder, JSONEncoder
from json import encoder as json_encoder
from typing import Any

from kombu.utils import json

from .exceptions import InvalidValue, ValueTooLarge

#: What kombu's JSON marks its own types with; a user's dict of this shape would not come back as it was.
_MARKS = {"__type__", "__value__"}

#: Most dicts and lists inside of each other: to copy or encode many more takes Python's whole stack.
MAX_DEPTH = 100

#: Most digits of a decimal that is written as a whole number; a float has fewer.
MAX_DIGITS = 400


def _chunks_of(encoder: JSONEncoder) -> Callable[[object, int], Iterable[str]]:
    """Return what an encoder makes for each value, made once: that is a third of the cost of a small one."""
    make = getattr(json_encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _: encoder.iterencode(value)
    chunks: Callable[[object, int], Iterable[str]] = make(
        None, encoder.default, json_encoder.encode_basestring_ascii, None, encoder.key_separator, encoder.item_separator,
        encoder.sort_keys, encoder.skipkeys, encoder.allow_nan)
    return chunks


#: Kombu's encoder.  A value that contains itself raises RecursionError.
_chunks = _chunks_of(json.JSONEncoder(separators=(",", ":"), allow_nan=False))

_SORTING_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True)

#: What :func:`decode` may raise for foreign data: kombu makes its own types of them.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)

#: Dicts become lists, and all other bytes but brackets go away.
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _finite(text: str) -> float:
    """Return a number of JSON; one that is too large for a float is none of ours."""
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(constant: str) -> Any:
    """Refuse ``NaN`` and ``Infinity``, which are not JSON."""
    raise ValueError(f"{constant} is no JSON")


def _object(items: dict[str, Any]) -> Any:
    """Return one of kombu's own types, or the dict; infinite decimals raise when they are compared."""
    made = json.object_hook(items)
    if isinstance(made, Decimal) and not made.is_finite():
        raise ValueError("a decimal is no number")
    return made


#: Kombu's decoder, made once: to make one takes five times as long as to decode a small value.
_DECODER = JSONDecoder(object_hook=_object, parse_float=_finite, parse_constant=_refuse_constant)

#: The same for JSON without kombu's own types, which it need not look for in every dict.
_PLAIN_DECODER = JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)

_PLAIN = frozenset({str, int, float, bool, type(None)})


def encode(value: object, what: str, limit: int) -> bytes:
    """Return a value as compact JSON.

    Besides JSON's own types kombu's encoder takes datetime, date, time,
    Decimal, UUID and bytes.  Tuples become lists.

    Args:
        value: What to encode.
        what: Whose value it is; named in errors.
        limit: The largest size allowed, in bytes.

    Raises:
        InvalidValue: If the value would not come back as it was: NaN, an
            infinity, a dict whose keys are not strings, an unknown type,
            more than :data:`MAX_DEPTH` levels.
        ValueTooLarge: If the JSON is longer than ``limit``.
    """
    try:
        is_deep = type(value) not in _PLAIN and _refuse_what_would_change(value, what)
        body = "".join(_chunks(value, 0)).encode()
        if is_deep:
            _check_depth(body)
    except RecursionError:
        raise InvalidValue(f"the value of {what} is nested too deeply, or contains itself") from None
    except (TypeError, ValueError) as exc:
        if isinstance(exc, InvalidValue):
            raise
        raise InvalidValue(
            f"the value of {what} can't be stored as JSON ({type(value).__name__}): {_reason(exc)}"
        ) from None
    if len(body) > limit:
        raise ValueTooLarge(what, len(body), limit)
    return body


def dumps(value: object) -> bytes:
    """Return a value as compact JSON, without a check whether it comes back as it was."""
    return "".join(_chunks(value, 0)).encode()


def canonical(value: object) -> bytes:
    """Return JSON that is the same for values that Python calls equal, however they are written.

    Names of a dict are sorted, at every depth, and a list is like a tuple.  Numbers that are equal are one, and so are
    moments in different time zones; only a bool is no number: ``True`` is neither ``1`` nor ``1.0``.

    Raises:
        ValueError: For NaN and infinities; RecursionError for a value that contains itself.
        TypeError: For a type that JSON can't hold.
    """
    return _SORTING_ENCODER.encode(_plain(value)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # Names become texts, as in the message of a task.
        return {one if isinstance(one, str) else canonical(one).decode(): _plain(item) for one, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Decimal) and value.is_finite():
        return _plain_decimal(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc)
    return value


def _plain_decimal(value: Decimal) -> Any:
    if not value:
        return 0
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits))
    kept = text.rstrip("0")
    exponent = int(exponent) + len(text) - len(kept)
    if exponent >= 0 and len(kept) + exponent < MAX_DIGITS:
        return int(value)
    # Not by normalize(), which rounds.
    return float(value) if float(value) == value else Decimal((sign, tuple(map(int, kept)), exponent))


def decode(body: bytes) -> Any:
    """Return the value of JSON bytes.

    Raises:
        ValueError: And the others of :data:`UNREADABLE`, for what :func:`encode` does not make.
    """
    marked = b"__type__" in body or b"\\u" in body
    text = body.decode().strip(" \t\n\r")
    value, end = (_DECODER if marked else _PLAIN_DECODER).raw_decode(text)
    if end != len(text):
        raise ValueError("something follows the JSON")
    _check_depth(body)
    return value


def _check_depth(body: bytes) -> None:
    """Raise RecursionError for JSON of more than :data:`MAX_DEPTH` levels."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    # Without the texts, for their brackets could close what is open; every second part between quotes is one.
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    brackets = b"".join(parts[::2]).translate(_AS_LISTS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        # Each turn takes the innermost level away.
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise RecursionError("too many levels")


def encode_fields(fields: Mapping[str, object], what: str, limit: int) -> dict[str, bytes]:
    """Return every top-level field as JSON, so that fields can be merged without decoding them.

    Raises:
        InvalidValue: If it is not a mapping with string keys, or a value can't be stored.
        ValueTooLarge: If all of them together are longer than ``limit`` bytes.
    """
    if not isinstance(fields, Mapping):
        raise InvalidValue(f"the state of {what} must be a dict, not {type(fields).__name__}")
    encoded = {}
    for name, value in fields.items():
        if not isinstance(name, str):
            raise InvalidValue(f"the fields of {what} are named by strings, not by {type(name).__name__}")
        if name in _MARKS:
            raise InvalidValue(f"the state of {what} has a field {name!r}, which kombu reserves")
        encoded[name] = encode(value, f"{what} (field {name!r})", limit)
    size = sum(len(name) + len(body) + 4 for name, body in encoded.items())
    if size > limit:
        raise ValueTooLarge(what, size, limit)
    return encoded


def join_fields(fields: Mapping[str, bytes]) -> bytes:
    """Return fields as one JSON object."""
    return b"{" + b",".join(dumps(name) + b":" + body for name, body in fields.items()) + b"}"


def split_fields(body: bytes) -> dict[str, bytes]:
    """Return the top-level fields of a JSON object, each as JSON."""
    value = decode(body)
    return {name: dumps(item) for name, item in value.items()} if isinstance(value, dict) else {}


def _refuse_what_would_change(value: object, what: str) -> bool:
    """Raise for what would not come back as it was; return whether its JSON may have more than one level."""
    is_deep = False
    if isinstance(value, dict):
        if value.keys() == _MARKS:
            raise InvalidValue(f"the value of {what} holds a dict of '__type__' and '__value__', which kombu reserves")
        for name, item in value.items():
            if type(item) not in _PLAIN:
                is_deep = _refuse_what_would_change(item, what) or True
            if type(name) is not str and not isinstance(name, str):
                raise InvalidValue(
                    f"the value of {what} holds a dict with a key of type {type(name).__name__}; "
                    "JSON has string keys only"
                )
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) not in _PLAIN:
                is_deep = _refuse_what_would_change(item, what) or True
    elif isinstance(value, Decimal) and not value.is_finite():
        raise InvalidValue(f"the value of {what} holds the decimal {value}; NaN and infinities are refused")
    else:
        return True
    return is_deep


def _reason(exc: Exception) -> str:
    # json's own words name the type, never the value, except for out-of-range floats.
    return "NaN and infinities are refused" if "Out of range" in str(exc) else str(exc)
