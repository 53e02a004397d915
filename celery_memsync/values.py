"""Values as JSON bytes, and back."""
from __future__ import annotations

from json import JSONDecoder
from typing import Any, Iterable, Mapping

from kombu.utils import json

from .exceptions import InvalidValue, ValueTooLarge

#: What kombu's JSON marks its own types with; a user's dict of this shape would not come back as it was.
_MARKS = {"__type__", "__value__"}

#: Kombu's encoder, made once: that is a third of the cost of a small value.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

#: What :func:`decode` may raise for somebody else's data: kombu makes its own types of them.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)


def _refuse_constant(word: str) -> Any:
    """Refuse ``NaN`` and ``Infinity``: no JSON has them, and no writer of ours writes them."""
    raise ValueError(word)


#: Kombu's decoder, made once: to make one takes five times as long as to decode a small value.
_DECODER = JSONDecoder(object_hook=json.object_hook, parse_constant=_refuse_constant)
#: The same for JSON without kombu's own types, which it need not look for in every dict.
_PLAIN_DECODER = JSONDecoder(parse_constant=_refuse_constant)

_PLAIN = frozenset({str, int, bool, type(None)})


def encode(value: object, what: str, limit: int) -> bytes:
    """Return a value as compact JSON.

    Besides JSON's own types kombu's encoder takes datetime, date, time,
    Decimal, UUID and bytes.  Tuples become lists.

    Arguments:
        value: What to encode.
        what: Whose value it is; named in errors.
        limit: The largest size allowed, in bytes.

    Raises:
        InvalidValue: If the value would not come back as it was: NaN, an
            infinity, a dict whose keys are not strings, an unknown type.
        ValueTooLarge: If the JSON is longer than ``limit``.
    """
    try:
        if type(value) not in _PLAIN:
            _refuse_what_would_change(value, what)
        body = dumps(value)
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
    """Return a value as compact JSON, without looking whether it would come back as it was."""
    return _ENCODER.encode(value).encode()


def decode(body: bytes) -> Any:
    """Return the value of JSON bytes."""
    marked = b"__type__" in body or b"\\u" in body
    return (_DECODER if marked else _PLAIN_DECODER).decode(body.decode())


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


def _refuse_what_would_change(value: object, what: str) -> None:
    children: Iterable[object]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise InvalidValue(
                    f"the value of {what} holds a dict with a key of type {type(name).__name__}; "
                    "JSON has string keys only"
                )
        if value.keys() == _MARKS:
            raise InvalidValue(f"the value of {what} holds a dict of '__type__' and '__value__', which kombu reserves")
        children = value.values()
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        return
    for item in children:
        if type(item) not in _PLAIN:
            _refuse_what_would_change(item, what)


def _reason(exc: Exception) -> str:
    # json's own words name the type, never the value, except for out-of-range floats.
    return "NaN and infinities are refused" if "Out of range" in str(exc) else str(exc)
