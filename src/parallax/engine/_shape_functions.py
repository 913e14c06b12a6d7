"""How the shape of a tensor depends on the dimensions of the inputs, where inference does not tell: guessed from runs.

Exporters compute shapes with operators (Shape, Gather, Concat, Reshape), and inference loses track of them. What they
compute is mostly simple: a constant, a multiple of one dimension or of a product of two, a dimension and a
constant. All such terms that explain the first shape seen are kept, and those that a later one contradicts dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from math import prod
from typing import Final

from parallax._record import dataclass

ENOUGH_SHAPES: Final = 3
"""So many different shapes of the inputs a term must explain to be believed."""


@dataclass(frozen=True, slots=True)
class Term:
    """``coefficient × Π symbols + offset``."""

    coefficient: int
    symbols: tuple[str, ...]
    offset: int

    def value(self, dims: Mapping[str, int]) -> int:
        return self.coefficient * prod([dims[symbol] for symbol in self.symbols]) + self.offset

    def __str__(self) -> str:
        """As `parallax.graph.size_expression` reads dimensions, for symbols that are identifiers."""
        if not self.symbols:
            return str(self.offset)
        sign = "-" if self.offset < 0 else "+"
        return "*".join([str(self.coefficient), *self.symbols]) + f" {sign} {abs(self.offset)}"


class ShapeFunction:
    """What is believed of one tensor's shape."""

    __slots__ = ("_axes", "_seen")

    def __init__(self) -> None:
        self._axes: tuple[tuple[Term, ...], ...] | None = None
        self._seen: set[tuple[int, ...]] = set()

    def observe(self, dims: Mapping[str, int], shape: tuple[int, ...]) -> None:
        """Take note of the shape that a run with these dimensions of the inputs gave.

        ``dims`` has the same symbols each time, in the same order.
        """
        if self._axes is None:
            if 0 in dims.values():
                return  # 0 is a multiple of everything
            self._axes = tuple([_terms(dims, size) for size in shape])
        elif len(shape) != len(self._axes):
            self._axes = ((),)  # no rank explains both
        else:
            self._axes = tuple(
                [
                    tuple([term for term in terms if term.value(dims) == size])
                    for terms, size in zip(self._axes, shape, strict=True)
                ]
            )
        if len(self._seen) < ENOUGH_SHAPES:
            self._seen.add(tuple(dims.values()))

    @property
    def terms(self) -> tuple[Term, ...] | None:
        """The simplest term for each axis that explains all that was seen; None if there is none, or not enough was."""
        if self._axes is None or len(self._seen) < ENOUGH_SHAPES or not all(self._axes):
            return None
        return tuple([terms[0] for terms in self._axes])


def _terms(dims: Mapping[str, int], size: int) -> tuple[Term, ...]:
    """All that give this size, the simplest first."""
    found = [Term(0, (), size)]
    found += [Term(size // value, (symbol,), 0) for symbol, value in dims.items() if size % value == 0]
    found += [Term(1, (symbol,), size - value) for symbol, value in dims.items() if size != value]
    for pair in combinations_with_replacement(dims, 2):
        both = dims[pair[0]] * dims[pair[1]]
        if size % both == 0:
            found.append(Term(size // both, pair, 0))
    return tuple(found)
