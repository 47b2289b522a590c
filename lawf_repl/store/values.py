"""Records as plain JSON values and back, field by field, with a clear line where a field is missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lawf_repl.errors import SessionError
from lawf_repl.records import Anchor, Completion, Correction, Token

T = TypeVar("T")
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}  # strict JSON has no word for these


def to_json(record: Any) -> Any:
    """A record of records.py as plain JSON values: a dict of its fields, a completion's text beside its tokens."""
    if is_dataclass(record):
        values = {one.name: to_json(getattr(record, one.name)) for one in fields(record)}
        return values | {"text": record.text} if isinstance(record, Completion) else values
    if isinstance(record, frozenset):
        return sorted(record)
    return [to_json(item) for item in record] if isinstance(record, tuple) else finite(record)


def from_json(kind: type[T], value: Any) -> T:
    """The record that `to_json` was given. Raises SessionError that names the field which is missing or wrong."""
    record: T = _read(kind, value, kind.__name__)
    if isinstance(record, Completion) and _units(value.get("text", record.text)) != _units(record.text):
        raise SessionError("Completion: the text differs from the tokens' text; the session is damaged")
    return record


def token_to_json(token: Token) -> dict[str, Any]:
    return dict(to_json(token))


def token_from_json(value: Any) -> Token:
    return from_json(Token, value)


def completion_to_json(completion: Completion) -> dict[str, Any]:
    return dict(to_json(completion))


def completion_from_json(value: Any) -> Completion:
    return from_json(Completion, value)


def correction_to_json(correction: Correction) -> dict[str, Any]:
    return dict(to_json(correction))


def correction_from_json(value: Any) -> Correction:
    return from_json(Correction, value)


def anchor_to_json(anchor: Anchor) -> dict[str, Any]:
    return dict(to_json(anchor))


def anchor_from_json(value: Any) -> Anchor:
    return from_json(Anchor, value)


def _units(text: Any) -> bytes:
    """UTF-16, as JSON escapes write it: two surrogates that meet are one character there."""
    return text.encode("utf-16-le", "surrogatepass") if isinstance(text, str) else b"?"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that an annotation of records.py names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        inner = next(one for one in arguments if one is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (tuple, frozenset) and isinstance(value, list):
        if origin is frozenset or arguments[-1] is Ellipsis:
            return origin(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_read(one, item, where) for one, item in zip(arguments, value, strict=True))
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        # A field that is absent gets its default, so that a record may grow.
        given = {name: _read(one, value[name], f"{where}.{name}") for name, one in _hints(hint).items() if name in value}
        try:
            return hint(**given)
        except TypeError:
            raise SessionError(f"{where}: a field is missing, found {', '.join(given) or 'none'}; the session is damaged") from None
    if hint is float and isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise SessionError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {type(value).__name__}; the session is damaged")


def finite(value: Any) -> Any:
    """`value` with every number that JSON cannot write turned into its name."""
    if isinstance(value, float):
        return value if value - value == 0 else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
