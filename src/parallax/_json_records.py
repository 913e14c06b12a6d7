"""Frozen records to and from values of JSON types, checked against their annotations.

For records made of int, str, bool, ``T | None``, ``tuple[T, ...]``, ``tuple[A, B]`` and other such records. What
was written anywhere else is not trusted: a field that is missing, unknown or of another type is refused. Only those
that a record names in ``LATER_FIELDS`` may be missing: they have their defaults then. ``STORED_NAMES`` of a record
gives, field by field, the names under which those stand in JSON that are called otherwise in the code.
"""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

from parallax.errors import InternalError, PlanError

T = TypeVar("T")

_INT_BOUND = 1 << 63
"""Integers must fit 64 bits: beyond that they come from no machine."""

_FIX = "it was not written by this version, or was changed since: make the plan again"


def write_record(record: Any) -> dict[str, object]:
    """The record as a value of JSON types (dicts, lists, ints, strings, booleans, None)."""
    stored = _stored_names(type(record))
    names = [field.name for field in fields(record)]
    return {stored.get(name, name): _written(getattr(record, name)) for name in names}


def _stored_names(kind: type) -> Mapping[str, str]:
    """The names of fields in JSON where they differ, by field."""
    found: Mapping[str, str] = getattr(kind, "STORED_NAMES", {})
    return found


def _written(value: object) -> object:
    if is_dataclass(value):
        return write_record(value)
    if isinstance(value, list | tuple):
        return [_written(entry) for entry in value]
    return value


def parse_json(text: str | bytes) -> object:
    """A JSON text as a value. Raises: PlanError if it is not JSON, nests too deep, or names a field twice."""
    try:
        value: object = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise PlanError(f"this is not a plan in JSON: {error}", fix=_FIX) from error
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice in one object")
    return found


def read_record(kind: type[T], value: object, where: str) -> T:
    """Inverse of `write_record`. Raises: PlanError saying which field, counted from ``where``, is at fault."""
    hint: Any = kind
    try:
        record = _reader(hint)(value)
    except _Misfit as misfit:
        raise PlanError(misfit.what, where=where + "".join(reversed(misfit.steps)), fix=_FIX) from None
    except RecursionError as error:
        raise PlanError("it nests too deep", where=where, fix=_FIX) from error
    assert isinstance(record, kind)
    return record


class _Misfit(Exception):
    """A value that is not what its hint says.

    Attributes:
        what: is wrong.
        steps: from the record that is read to that value, the last first; each reader on the way out adds its own. So
            that no reader has to know where it is, which of most values nobody asks.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.steps: list[str] = []


_Reader = Callable[[object], Any]
"""Raises: _Misfit."""


@cache
def _reader(hint: Hashable) -> _Reader:
    """The function that checks a value against a type hint, built once per hint."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _record_reader(hint)
    if hint in _SCALARS:
        return _scalar_reader(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        some = _reader(arguments[0])
        return lambda value: None if value is None else some(value)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence_reader(arguments[0])
    if origin is tuple:
        return _product_reader(tuple(map(_reader, arguments)))
    raise InternalError(f"no rule to read {hint!r} from JSON")


_SCALARS: dict[Any, str] = {int: "an integer of 64 bits", str: "a string", bool: "true or false"}

# Most annotations are these. Evaluating all of them takes longer than reading a small plan.
_COMMON_HINTS: dict[Any, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "int | None": int | None,
    "str | None": str | None,
    "tuple[int, ...]": tuple[int, ...],
    "tuple[str, ...]": tuple[str, ...],
}


def _record_reader(kind: type) -> _Reader:
    # Made when first used: a record may hold others of its own kind.
    readers: dict[str, _Reader] = {}
    stored = _stored_names(kind)
    later: frozenset[str] = getattr(kind, "LATER_FIELDS", frozenset())

    def read(value: object) -> Any:
        if not readers:
            readers.update(_field_readers(kind))
        if not isinstance(value, Mapping):
            raise _misfit(value, "an object")
        if value.keys() != readers.keys() and not readers.keys() - later <= value.keys() <= readers.keys():
            names = ", ".join(sorted(repr(name) for name in value.keys() ^ readers.keys()))
            raise _Misfit(f"fields missing or unknown: {names[:200]}")
        made = {}
        name = ""
        try:
            for name in value:
                made[name] = readers[name](value[name])
        except _Misfit as misfit:
            misfit.steps.append(f".{name}")
            raise
        for field, key in stored.items():
            if key in made:
                made[field] = made.pop(key)
        return kind(**made)

    return read


def _field_readers(kind: Any) -> dict[str, _Reader]:
    # Annotations are texts of our own modules; `typing.get_type_hints` takes several times as long over them.
    names = vars(sys.modules[kind.__module__])
    stored = _stored_names(kind)
    return {
        stored.get(field.name, field.name): _reader(
            _COMMON_HINTS[field.type] if field.type in _COMMON_HINTS else eval(str(field.type), names)
        )
        for field in fields(kind)
    }


def _scalar_reader(kind: Any) -> _Reader:
    wanted = _SCALARS[kind]

    def read(value: object) -> Any:
        # Exactly that type: True is an int to isinstance.
        if type(value) is not kind or (type(value) is int and not -_INT_BOUND <= value < _INT_BOUND):
            raise _misfit(value, wanted)
        return value

    return read


def _sequence_reader(hint: Any) -> _Reader:
    read_entry = _reader(hint)

    def read(value: object) -> Any:
        if not isinstance(value, list):
            raise _misfit(value, "a list")
        # Shapes, and the nodes of a plan: looked at one by one only to say which is at fault.
        if hint in _SCALARS and _are_all(hint, value):
            return tuple(value)
        return _entries(value, itertools.repeat(read_entry))

    return read


def _are_all(kind: type, values: list[Any]) -> bool:
    """Whether all of them are what the reader of a scalar of that kind takes."""
    if not values:
        return True
    if set(map(type, values)) != {kind}:
        return False
    return kind is not int or (min(values) >= -_INT_BOUND and max(values) < _INT_BOUND)


def _product_reader(readers: tuple[_Reader, ...]) -> _Reader:
    def read(value: object) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _misfit(value, f"a list of {len(readers)}")
        return _entries(value, readers)

    return read


def _entries(values: list[object], readers: Iterable[_Reader]) -> tuple[Any, ...]:
    made: list[Any] = []
    try:
        for value, read in zip(values, readers, strict=False):
            made.append(read(value))
    except _Misfit as misfit:
        misfit.steps.append(f"[{len(made)}]")
        raise
    return tuple(made)


def _misfit(value: object, wanted: str) -> _Misfit:
    # A hostile value may be huge, and an integer of that size may refuse to be printed: name its type only.
    shown = (
        repr(value)[:40] if isinstance(value, str | bool | float | None) else f"a value of type {type(value).__name__}"
    )
    return _Misfit(f"expected {wanted}, found {shown}")
