"""Figures with their origin, and the strict reading of the files they stand in.

A figure nobody can check is worth little: each carries where it is from and how far it can be trusted.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from parallax.errors import ConfigError

_MAX_FILE_BYTES = 1 << 20
"""A larger file is no description of a device."""


class Basis(enum.Enum):
    """How far a figure can be trusted."""

    CITED = "cited"
    """Read in the source."""
    RECALLED = "recalled"
    """Common knowledge that nobody checked again."""
    DERIVED = "derived"
    """Computed from other figures, as the source tells."""
    ASSUMED = "assumed"
    """Chosen within what is plausible; to be calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its origin. The unit is that of the field it stands in."""

    value: float
    basis: Basis
    source: str


class Fields:
    """The fields of one object of a file, each to be asked for once; what nobody asked for is an error.

    Raises: ConfigError naming file and field, for whatever is missing, ill-typed or too much.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"expected an object, found {_shown(value)}", where=where, fix="see the files of Parallax"
            )
        self._value = value
        self._where = where
        self._asked: set[str] = set()

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Fields:
        """From the text of a JSON file. Raises: ConfigError where it is none."""
        try:
            return cls(json.loads(text, object_pairs_hook=_without_repetition), where)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}", where=where, fix="fix the file") from error

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def names(self) -> tuple[str, ...]:
        """The fields there are."""
        return tuple(self._value)

    def error(self, key: str, what: str, expected: str) -> ConfigError:
        """The error for a field whose value will not do."""
        return ConfigError(what, where=f"{self._where}: {key}", fix=f"expected: {expected}")

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._take(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"found {_shown(value)}", "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self._take(key)
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.error(key, f"found {_shown(value)}", "a list of texts")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.error(key, f"found {_shown(value)}", "true or false")
        return value

    def whole(self, key: str, *, least: int = 0) -> int:
        """A whole number of at least ``least``."""
        value = self._take(key)
        if type(value) is not int or value < least:
            raise self.error(key, f"found {_shown(value)}", f"a whole number of at least {least}")
        return value

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 0."""
        value = self._take(key)
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise self.error(key, f"found {_shown(value)}", "a list of whole numbers of at least 0")
        return tuple(value)

    def figure(self, key: str, *, most: float = math.inf, positive: bool = True) -> Figure:
        """A number with basis and source; above 0 if ``positive``, else at least 0, and at most ``most``."""
        inner = self.inner(key)
        value = inner.number("value", most=most, positive=positive)
        basis, source = inner.origin()
        inner.finish()
        return Figure(value=value, basis=basis, source=source)

    def origin(self) -> tuple[Basis, str]:
        """Basis and source of what stands in this object."""
        basis = self.text("basis")
        if basis not in {member.value for member in Basis}:
            raise self.error("basis", f"found {basis!r}", ", ".join(member.value for member in Basis))
        return Basis(basis), self.text("source")

    def number(self, key: str, *, most: float = math.inf, positive: bool = True) -> float:
        """A number above 0 if ``positive``, else at least 0, and at most ``most``."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= min(most, 1e30):
            raise self.error(key, f"found {_shown(value)}", f"a number of 0 to {most:g}")
        if positive and not value:
            raise self.error(key, "found 0", "a number above 0")
        return float(value)

    def inner(self, key: str) -> Fields:
        """An object within."""
        return Fields(self._take(key), f"{self._where}: {key}")

    def is_object(self, key: str) -> bool:
        """Whether a field is there and an object."""
        return isinstance(self._value.get(key), Mapping)

    def each(self, key: str) -> Iterator[tuple[str, Fields]]:
        """The objects within an object, by name."""
        inner = self.inner(key)
        for name in inner.names():
            yield name, inner.inner(name)

    def items(self, key: str) -> Iterator[Fields]:
        """The objects of a list, of which there must be one at least."""
        value = self._take(key)
        if not isinstance(value, list) or not value:
            raise self.error(key, f"found {_shown(value)}", "a list of objects")
        for index, item in enumerate(value):
            yield Fields(item, f"{self._where}: {key}[{index}]")

    def require_format(self, version: int) -> None:
        """Refuse a file of another format version."""
        found = self.whole("format")
        if found != version:
            raise self.error("format", f"found {found}", f"{version}, which is what this version of Parallax reads")

    def finish(self) -> None:
        """Refuse fields that nobody asked for: a misspelt one would be silently without effect."""
        unknown = [key for key in self._value if key not in self._asked]
        if unknown:
            raise ConfigError(
                f"unknown field {unknown[0]!r}",
                where=self._where,
                fix=f"remove it, or use one of: {_listed(self._asked)}",
            )

    def _take(self, key: str) -> object:
        self._asked.add(key)
        if key not in self._value:
            raise ConfigError(f"the field {key!r} is missing", where=self._where, fix="add it")
        return self._value[key]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the field {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def read_fields(file: Traversable | Path, what: str = "device profile") -> Fields:
    """The fields of a JSON file. ``what``: it should be, for messages.

    Raises: ConfigError naming the file, if it cannot be read, is too large, or no JSON object.
    """
    where = str(file) if isinstance(file, Path) else file.name
    fix = f"give the path of a {what}"
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a path with a null character
        raise ConfigError(
            f"cannot read it: {getattr(error, 'strerror', None) or error}", where=where, fix=fix
        ) from error
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(f"more than {_MAX_FILE_BYTES} bytes", where=where, fix=fix)
    return Fields.parse(text, where)
