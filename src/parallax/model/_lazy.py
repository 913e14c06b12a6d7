"""Mappings that decode protobuf messages when first asked.

Opening a model must cost little per node, and most nodes' attributes and most tensors' types are
never looked at. Decoding is idempotent, so a race between threads costs time, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class LazyMapping(Mapping[str, V], Generic[V]):
    """Values decoded from raw entries on first access; ``decode`` returns None where there is no value."""

    __slots__ = ("_decode", "_decoded", "_raw")

    def __init__(self, raw: Mapping[str, object], decode: Callable[[str, object], V | None]) -> None:
        self._raw: dict[str, object] = dict(raw)
        self._decode = decode
        self._decoded: dict[str, V] = {}

    def __getitem__(self, name: str) -> V:
        value = self._decoded.get(name)
        if value is None:
            value = self._decode(name, self._raw[name])
            if value is None:
                raise KeyError(name)
            self._decoded[name] = value
        return value

    def _all(self) -> dict[str, V]:
        return {name: value for name in self._raw if (value := self.get(name)) is not None}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._raw and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[object, ...]:
        # Copies and pickles carry plain values: messages and closures stay behind.
        return dict, (self._all(),)
