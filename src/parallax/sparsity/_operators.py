"""What is known of the zeros of each operator of a model, and what follows for the model as a whole. Pure."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Sequence

from parallax._record import dataclass
from parallax.sparsity._weights import CHANNELLED, WeightCount


class Quadrant(enum.Enum):
    """Where an operator lies by its share of zeros and by its work, as SparOA (arXiv 2511.19457) divides operators.

    Its formulas are not public: what counts as a zero and as work here is ours.
    """

    DENSE_HEAVY = "dense, heavy"
    SPARSE_HEAVY = "sparse, heavy"
    SPARSE_LIGHT = "sparse, light"
    DENSE_LIGHT = "dense, light"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShare:
    """Shares of exact zeros of one tensor, one per example."""

    mean: float
    """0 to 1."""
    deviation: float
    """The standard deviation over the examples; 0 for one of them."""

    @classmethod
    def of(cls, shares: Sequence[float]) -> ZeroShare:
        """Make the share of at least one example."""
        return cls(mean=statistics.fmean(shares), deviation=statistics.stdev(shares) if len(shares) > 1 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorZeros:
    """Says what zeros one operator reads."""

    name: str
    """Unique in its graph; of one inside a body, after the operator around it: "loop/body/add"."""
    op_type: str
    inside: str | None
    """The operator whose body it is in; None in the main graph."""
    activation: str | None
    """Its main input: the first that is no constant; None where all are."""
    seen: ZeroShare | None
    """Zeros of that input; None where it was not observed."""
    why_unseen: str
    """Why it was not; "" where it was."""
    weights: WeightCount | None
    """Of its weights: those with channels, or all constant operands together; None where it has none."""
    flops: int
    """Of one run, two per multiply-accumulate; what is not known of it counts as 0."""
    moved_bytes: int
    """Read and written by one run; likewise."""
    is_work_known: bool

    @property
    def multiplications(self) -> int:
        """Count products of weights or of two activations, in convolutions and MatMuls; 0 for other operators."""
        return self.flops // 2 if self.op_type in CHANNELLED else 0

    @property
    def zeros(self) -> float:
        """The share of its multiplications with a zero in them, 0 to 1: ``1 - (1 - rho_act) (1 - rho_w)``.

        That holds where the zeros of both operands lie independently of each other. What was not seen counts as none.
        """
        activation = 0.0 if self.seen is None else self.seen.mean
        weights = 0.0 if self.weights is None else self.weights.share
        return 1 - (1 - activation) * (1 - weights)

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved; None where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityReport:
    """What was seen of a model."""

    operators: tuple[OperatorZeros, ...]
    """In the order of the model, those inside bodies after the operator around them."""
    examples: int
    runs: int
    """That were made to look at all tensors, per example."""
    min_flops: float
    """Work from which on an operator counts as heavy (tau_I), in FLOPs."""
    max_zeros: float
    """Share of zeros above which it counts as sparse (tau_rho)."""

    def quadrant(self, operator: OperatorZeros) -> Quadrant:
        """Where an operator lies, by these thresholds."""
        is_heavy, is_sparse = operator.flops >= self.min_flops, operator.zeros > self.max_zeros
        if is_heavy:
            return Quadrant.SPARSE_HEAVY if is_sparse else Quadrant.DENSE_HEAVY
        return Quadrant.SPARSE_LIGHT if is_sparse else Quadrant.DENSE_LIGHT

    @property
    def zero_multiplications(self) -> float:
        """The share of all multiplications with a zero in them, 0 to 1; 0 where there are none."""
        total = sum(operator.multiplications for operator in self.operators)
        zero = math.fsum(operator.multiplications * operator.zeros for operator in self.operators)
        return zero / total if total else 0.0

    def channels(self) -> tuple[int, int, int, int]:
        """Zero output channels, output channels, zero input channels and input channels, of all weights together."""
        counted = [operator.weights for operator in self.operators if operator.weights is not None]
        return (
            sum(weights.zero_rows for weights in counted),
            sum(weights.rows for weights in counted),
            sum(weights.zero_columns for weights in counted),
            sum(weights.columns for weights in counted),
        )
