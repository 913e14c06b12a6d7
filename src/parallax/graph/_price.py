"""How much work a part of a model is, and what a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWork:
    """One operator's share of a part of a model."""

    op_type: str
    flops: int
    touched_bytes: int
    """Bytes it reads and writes, weights included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What running a part once amounts to."""

    operators: tuple[OperatorWork, ...]
    moved_bytes: tuple[int, ...] = ()
    """Bytes of each tensor that it needs from other domains, or that they need from it."""

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)

    @property
    def touched_bytes(self) -> int:
        return sum(operator.touched_bytes for operator in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """An estimate of one run, in ns, by its parts."""

    launch_ns: int
    compute_ns: int
    transfer_ns: int

    @property
    def total_ns(self) -> int:
        return self.launch_ns + self.compute_ns + self.transfer_ns
