"""Compares values, and JSON schemas, with the types of dicts."""
from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

#: Types in JSON by those of Python.
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", list: "array",
              tuple: "array", dict: "object"}


def choices_of(hint):
    """Return the types of which one is meant."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def keys_of(typed):
    """Return the hints of the keys of a typed dict."""
    return get_type_hints(typed)


def mistakes(value, hint, path="") -> list[str]:
    """Return where a value is not what its type says; a key that a typed dict does not have is none."""
    found = [_mistakes(value, one, path) for one in choices_of(hint)]
    return min(found, key=len)


def _mistakes(value, hint, path):
    if hint is Any:
        return []
    if is_typeddict(hint):
        return _of_typed_dict(value, hint, path) if isinstance(value, dict) else [f"{path} is {value!r}"]
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if not isinstance(value, (int, float) if kind is float else kind) or kind is not bool and isinstance(value, bool):
        return [f"{path} is {value!r}, and not {kind.__name__}"]
    if kind in (list, tuple):
        return [one for at, item in enumerate(value) for one in mistakes(item, inner[0], f"{path}[{at}]")]
    if kind is dict:
        return [one for name, item in value.items() for one in mistakes(item, inner[1], f"{path}.{name}")]
    return []


def _of_typed_dict(value, hint, path):
    hints = keys_of(hint)
    missing = [f"{path}.{name} is missing" for name in hint.__required_keys__ - value.keys()]
    return missing + [
        one for name, item in value.items() if name in hints for one in mistakes(item, hints[name], f"{path}.{name}")]


def schema_mistakes(schema, hint, path="") -> list[str]:
    """Return where a JSON schema, whose references are resolved, says something else than a type."""
    kinds = choices_of(hint)
    named = {JSON_TYPES[dict if is_typeddict(one) else get_origin(one) or one] for one in kinds if one is not Any}
    parts = schema.get("oneOf", [schema])
    types_of_parts = [part.get("type", []) for part in parts]
    said = {name for one in types_of_parts for name in ([one] if isinstance(one, str) else one)}
    found = [] if not named or said == named else [f"{path} is {sorted(said)}, and not {sorted(named)}"]
    for one in filter(is_typeddict, kinds):
        found += [mistake for part in parts if "properties" in part for mistake in _schema_of_dict(part, one, path)]
    return found


def _schema_of_dict(schema, typed, path):
    hints, properties = keys_of(typed), schema["properties"]
    found = [f"{path}.{name} is in one only" for name in hints.keys() ^ properties.keys()]
    found += [f"{path}.{name} is required by one only" for name in typed.__required_keys__ ^ set(schema.get("required", ()))]
    return found + [one for name in hints.keys() & properties.keys()
                    for one in schema_mistakes(properties[name], hints[name], f"{path}.{name}")]
