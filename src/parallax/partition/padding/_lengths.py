"""Whole numbers in terms of the sizes that a model leaves open: polynomials with whole coefficients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from parallax._record import dataclass

_MOST_TERMS = 16


@dataclass(frozen=True, slots=True)
class Length:
    """Σ coefficient × Π symbols. Every symbol stands for a size, which is 0 at least."""

    terms: tuple[tuple[tuple[str, ...], int], ...]
    """(symbols, coefficient) per summand, sorted; a power repeats its symbol, no coefficient is 0."""

    @classmethod
    def of(cls, value: int | str) -> Length:
        """A number, or an open size by its name."""
        return _made({(value,): 1} if isinstance(value, str) else {(): int(value)})

    def __add__(self, other: Length) -> Length:
        total = Counter(dict(self.terms))
        for symbols, count in other.terms:
            total[symbols] += count
        return _made(total)

    def __neg__(self) -> Length:
        return _made({symbols: -count for symbols, count in self.terms})

    def __sub__(self, other: Length) -> Length:
        return self + -other

    def __mul__(self, other: Length) -> Length:
        total: Counter[tuple[str, ...]] = Counter()
        for left, left_count in self.terms:
            for right, right_count in other.terms:
                total[tuple(sorted(left + right))] += left_count * right_count
        return _made(total)

    @property
    def number(self) -> int | None:
        """The number that it is, whatever the sizes; None where it depends on them."""
        if not self.terms:
            return 0
        (symbols, count), *rest = self.terms
        return count if not symbols and not rest else None

    @property
    def symbols(self) -> frozenset[str]:
        """The open sizes that it depends on."""
        return frozenset(name for symbols, _ in self.terms for name in symbols)

    @property
    def is_never_negative(self) -> bool:
        """Whether it is 0 at least for all sizes, as far as its coefficients tell."""
        return all(count > 0 for _, count in self.terms)

    def divided_by(self, other: Length) -> Length | None:
        """The quotient, where ``other`` is one product that goes into every summand; else None."""
        if len(other.terms) != 1:
            return None
        ((symbols, count),) = other.terms
        quotient: dict[tuple[str, ...], int] = {}
        for own, own_count in self.terms:
            left = Counter(own)
            left.subtract(symbols)
            if own_count % count or min(left.values(), default=0) < 0:
                return None
            quotient[tuple(sorted(left.elements()))] = own_count // count
        return _made(quotient)


def _made(terms: Mapping[tuple[str, ...], int]) -> Length:
    kept = tuple(sorted((symbols, count) for symbols, count in terms.items() if count))
    if len(kept) > _MOST_TERMS:
        raise OverflowError("a size with too many terms to follow")
    return Length(kept)


ZERO = Length.of(0)
ONE = Length.of(1)


def product(lengths: Iterable[Length]) -> Length:
    """Of all of them; 1 for none."""
    total = ONE
    for length in lengths:
        total = total * length
    return total
