"""What zeros are worth: how much quicker a backend is for them, as measured on this machine, and prices with it.

A price changes only where a kernel was measured to be quicker for zeros. Pure, but for the cache.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from parallax._json_records import read_record, write_record
from parallax._record import dataclass
from parallax.backends import Backend
from parallax.errors import PlanError
from parallax.graph import CostModel, OpGraph
from parallax.profile import Cache, machine_fingerprint
from parallax.schedule.placement import weight_zeros

WORTHWHILE: Final = 0.97
"""Of the time without zeros: what takes less is quicker for its zeros, what takes more differs by noise."""


class ZeroForm(enum.Enum):
    """How the zeros of an operand lie. Rows are output channels, columns input channels."""

    SCATTERED_50 = "50% scattered"
    SCATTERED_90 = "90% scattered"
    ROWS = "half of the rows"
    COLUMNS = "half of the columns"
    BLOCKS = "half of the 16 x 16 blocks"
    INPUT_90 = "90% of the input, scattered"


ZEROS_PERMILLE: Final = {
    ZeroForm.SCATTERED_50: 500,
    ZeroForm.SCATTERED_90: 900,
    ZeroForm.ROWS: 500,
    ZeroForm.COLUMNS: 500,
    ZeroForm.BLOCKS: 500,
    ZeroForm.INPUT_90: 900,
}
"""Zeros among the elements of the operand, in thousandths."""

CONVOLUTION, PRODUCT, ELEMENTWISE = "convolution", "product", "elementwise"
"""Classes of operators that are measured, each by one of them."""

_CLASS_OF: Final = {
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv"), CONVOLUTION),
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm"), PRODUCT),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"), ELEMENTWISE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroTiming:
    """The time that one class of operators takes with zeros of one form, by its time without, in thousandths."""

    operator: str
    form: str
    """The value of a `ZeroForm`."""
    zeros_permille: int
    ratio_permille: int
    """The median over rounds, in each of which both were timed."""
    low_permille: int
    """The first quartile."""
    high_permille: int
    """The third quartile."""

    @property
    def factor(self) -> float:
        """What a price is multiplied by for such zeros; 1 too where a quarter of the rounds show no gain."""
        return price_factor(self.ratio_permille / 1000) if self.high_permille < 1000 else 1.0


def price_factor(ratio: float) -> float:
    """What a price is multiplied by, given time with zeros by time without: that, if it is below `WORTHWHILE`."""
    return ratio if ratio < WORTHWHILE else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroWorth:
    """What one backend was measured to make of zeros, on one machine."""

    backend: str
    version: str
    """Of the library that computes."""
    timings: tuple[ZeroTiming, ...]

    @property
    def is_nothing(self) -> bool:
        """Whether no price changes, whatever a model holds."""
        return all(timing.factor == 1 for timing in self.timings)

    def factor(self, op_type: str, zeros: float) -> float:
        """What the price of an operator is multiplied by.

        By what scattered zeros were measured to be worth: nothing is known here of how a model's zeros lie, and other
        forms are scattered to a kernel that does not know of them. Linear between what was measured; beyond the most
        zeros as there.

        Args:
            zeros: the share of them in its weights, 0 to 1.
        """
        scattered = (ZeroForm.SCATTERED_50.value, ZeroForm.SCATTERED_90.value)
        kind = _CLASS_OF.get(op_type)
        points = [(0.0, 1.0)]
        points += sorted(
            (timing.zeros_permille / 1000, timing.factor)
            for timing in self.timings
            if timing.operator == kind and timing.form in scattered
        )
        for (start, before), (end, after) in itertools.pairwise(points):
            if zeros <= end:
                return before + (after - before) * (zeros - start) / (end - start)
        return points[-1][1]

    def node_factors(self, graph: OpGraph, zeros: Mapping[str, float]) -> tuple[float, ...] | None:
        """What the price of each node is multiplied by; None where all stay as they are.

        Args:
            zeros: share of exact zeros per weight; asked for nothing where none is worth anything.
        """
        if self.is_nothing:
            return None
        factors = tuple(self.factor(node.op_type, weight_zeros(graph, [node.index], zeros)) for node in graph.nodes)
        return None if all(factor == 1 for factor in factors) else factors

    def saved_shares(self, op_types: Iterable[str]) -> dict[str, float]:
        """Return per operator the share of its time that weights of zeros alone would save; those that would save
        nothing are left out."""
        saved = {op_type: 1 - self.factor(op_type, 1.0) for op_type in dict.fromkeys(op_types)}
        return {op_type: share for op_type, share in saved.items() if share > 0}


def priced_costs(costs: CostModel, factors: Sequence[float] | None) -> CostModel:
    """Costs with each node's multiplied by its factor; the same object where ``factors`` is None."""
    if factors is None:
        return costs
    rows = tuple(tuple(round(ns * f) for ns, f in zip(row, factors, strict=True)) for row in costs.durations_ns)
    return replace(costs, durations_ns=rows)


def keep_worth(cache: Cache, worth: ZeroWorth) -> bool:
    """Keep what was measured for later processes on this machine. Returns whether the disk took it."""
    return cache.store(_key(worth.backend, worth.version), write_record(worth))


def kept_worths(cache: Cache, backends: Mapping[str, Backend]) -> dict[str, ZeroWorth]:
    """What was kept of these backends, by the names given; those that were not measured here are left out."""
    found = {}
    for name, backend in backends.items():
        value = cache.load(_key(backend.info.name, backend.info.version))
        if value is None:
            continue
        try:
            found[name] = read_record(ZeroWorth, value, "zeros")
        except PlanError:  # of another version: it is replaced when it is measured again
            continue
    return found


def _key(backend: str, version: str) -> str:
    return f"worth of zeros|{machine_fingerprint()}|{backend}|{version}"
