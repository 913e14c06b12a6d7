"""What a learned placer sees of a placement problem: one row of numbers per branch, and one row of the machine.

Branches are the pieces that searches move as wholes (`Pieces`). Costs are those of the state that the problem is in
(`parallax.adapt.in_state`), so that a slow device shows in every row; nothing else of a state is seen. Columns have
names, and a network is made for a list of them: see `FEATURES_VERSION`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from parallax.schedule.placement._flows import CALLER
from parallax.schedule.placement._pieces import CPU_SIDE, Pieces
from parallax.schedule.placement._problem import Placement, PlacementProblem

Rows = npt.NDArray[np.float32]

FEATURES_VERSION: Final = 1
"""Rises whenever a column is added, dropped or computed otherwise: a network of another version is refused."""

MAX_BRANCHES: Final = 128
"""Most branches that are described: those of most work. The others follow the branch that makes most of what they
read."""

_CLASSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "convolution": ("Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv"),
        "product": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Einsum", "MatMulInteger", "QLinearMatMul"),
        "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
        "normalisation": (
            *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
            *("RMSNormalization", "SkipLayerNormalization", "LRN"),
        ),
        "softmax": ("Softmax", "LogSoftmax", "Hardmax"),
        "pooling": ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"),
        "reduction": ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "CumSum", "TopK"),
        "elementwise": (
            *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Erf", "Neg", "Abs", "Min", "Max", "Where"),
            *("Relu", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Clip", "Elu"),
            *("Equal", "Less", "Greater", "Not", "And", "Or", "Cast", "Reciprocal", "Silu", "Mish", "Softplus"),
        ),
        "movement": (
            *("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Pad"),
            *("Tile", "DepthToSpace", "SpaceToDepth", "Identity", "Shape"),
        ),
        "lookup": ("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "OneHot"),
        "resize": ("Resize", "Upsample", "GridSample", "RoiAlign"),
        "recurrent": ("LSTM", "GRU", "RNN"),
        "quantisation": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        "control flow": ("If", "Loop", "Scan"),
    }
)
_CLASS_OF: Final = {op_type: number for number, ops in enumerate(_CLASSES.values()) for op_type in ops}
_OTHER: Final = len(_CLASSES)

BRANCH_COLUMNS: Final = (
    *(f"share of {name}" for name in (*_CLASSES, "others")),
    "is taken",
    "cpu ns, all cores",
    "cpu ns, one core",
    "device ns",
    "cpu over device",
    "cpu share",
    "device share",
    "flops",
    "read bytes",
    "written bytes",
    "moving there ns",
    "moving back ns",
    "zeros",
    "worth of zeros",
    "depth",
    "height",
    "predecessors",
    "successors",
)
"""Of each branch. Times, work and bytes are logarithms to the base 10 of one more; shares are of the whole model; depth
and height are the CPU's time on the longest path to its end and from its beginning, by that of the whole model."""

MACHINE_COLUMNS: Final = (
    "cores",
    "launch ns",
    "transfer ns",
    "transfer ns per megabyte",
    "handover ns",
    "segment overhead ns",
    "wide start ns",
    "cpu ns",
    "device ns",
    "taken share",
    "branches",
)
"""Of the machine, and of the model as a whole; logarithms likewise, but for the share."""

_LOG_SCALE: Final = 10.0
"""What logarithms are divided by, so that they lie near 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class BranchFeatures:
    """The rows of one problem and one of its devices. Pure: the same problem has the same rows."""

    problem: PlacementProblem
    pieces: Pieces
    device: int
    """An index into `PlacementProblem.devices`: the one that the CPU is compared with."""
    shown: tuple[int, ...]
    """The pieces that have a row, ascending, and so in a topological order; at most `MAX_BRANCHES`."""

    @classmethod
    def of(cls, problem: PlacementProblem, device: int = 0, pieces: Pieces | None = None) -> BranchFeatures:
        """Describe a problem. ``pieces``: those of the problem, where they are known."""
        found = Pieces.of(problem) if pieces is None else pieces
        by_work = sorted(range(len(found)), key=lambda piece: (-found.wide_ns[piece], piece))
        return cls(problem=problem, pieces=found, device=device, shown=tuple(sorted(by_work[:MAX_BRANCHES])))

    @cached_property
    def movable(self) -> tuple[bool, ...]:
        """Per row, whether the device takes the branch."""
        return tuple(self.device in self.pieces.options[piece] for piece in self.shown)

    @cached_property
    def flops(self) -> tuple[int, ...]:
        """Per row, its work."""
        features, groups = self.problem.features, self.pieces.groups
        return tuple(sum(features[group].flops for group in groups[piece]) for piece in self.shown)

    @cached_property
    def zeros(self) -> tuple[float, ...]:
        """Per row the share of zeros in its weights, its fusion groups weighed by their time on the CPU."""
        return tuple(self._weighed(piece, self.problem.sparsity) for piece in self.shown)

    @cached_property
    def branches(self) -> Rows:
        """Of shape (rows, columns), see `BRANCH_COLUMNS`."""
        pieces, problem, device = self.pieces, self.problem, self.device
        there = pieces.device_ns[device]
        cpu_total, device_total = max(1, sum(pieces.wide_ns)), max(1, sum(there))
        longest = max([1, *pieces.below_ns])
        arriving, leaving = self._moved_ns
        made = np.zeros((len(self.shown), len(BRANCH_COLUMNS)), np.float32)
        worth = problem.zero_worth
        for row, piece in enumerate(self.shown):
            features = [problem.features[group] for group in pieces.groups[piece]]
            shares = [0.0] * (_OTHER + 1)
            operators = [op_type for group in features for op_type in group.operators]
            for op_type in operators:
                shares[_CLASS_OF.get(op_type, _OTHER)] += 1 / len(operators)
            taken = self.movable[row]
            wide, narrow, on_device = pieces.wide_ns[piece], pieces.narrow_ns[piece], there[piece] if taken else 0
            saved = sum(worth.get(op_type, 0.0) for op_type in operators) / max(1, len(operators))
            made[row] = (
                *shares,
                taken,
                _log(wide),
                _log(narrow),
                _log(on_device),
                math.log2((wide + 1) / (on_device + 1)) / _LOG_SCALE if taken else 0.0,
                wide / cpu_total,
                on_device / device_total,
                scaled_work(self.flops[row]),
                _log(sum(group.read_bytes for group in features)),
                _log(sum(group.written_bytes for group in features)),
                _log(arriving[piece]),
                _log(leaving[piece]),
                self.zeros[row],
                self.zeros[row] * saved,
                pieces.above_ns[piece] / longest,
                pieces.below_ns[piece] / longest,
                math.log2(1 + len(pieces.predecessors[piece])) / _LOG_SCALE,
                math.log2(1 + len(pieces.successors[piece])) / _LOG_SCALE,
            )
        return made

    @cached_property
    def machine(self) -> Rows:
        """Of shape (columns,), see `MACHINE_COLUMNS`."""
        pieces, machine = self.pieces, self.problem.machine
        device_costs = self.problem.devices[self.device]
        taken = [piece for piece in range(len(pieces)) if self.device in pieces.options[piece]]
        cpu_total = sum(pieces.wide_ns)
        return np.array(
            (
                math.log2(machine.cores) / _LOG_SCALE,
                _log(device_costs.launch_ns),
                _log(device_costs.transfer.fixed_ns),
                _log(device_costs.transfer.ns_per_byte * 1e6),
                _log(machine.handover_ns),
                _log(machine.segment_overhead_ns),
                _log(machine.wide_start_ns),
                _log(cpu_total),
                _log(sum(pieces.device_ns[self.device][piece] for piece in taken)),
                sum(pieces.wide_ns[piece] for piece in taken) / max(1, cpu_total),
                math.log2(1 + len(pieces)) / _LOG_SCALE,
            ),
            np.float32,
        )

    def sides(self, on_device: Sequence[bool]) -> list[int]:
        """One side per piece, of one choice per row; pieces without a row follow what makes most of what they read."""
        chosen = dict(zip(self.shown, on_device, strict=True))
        sides: list[int] = []
        for piece, options in enumerate(self.pieces.options):
            if piece not in chosen:
                sides.append(self.followed(piece, sides))
            else:
                sides.append(self.device if chosen[piece] and self.device in options else CPU_SIDE)
        return sides

    def followed(self, piece: int, sides: Sequence[int]) -> int:
        """The side of a piece that has no row: that of what makes most of what it reads. ``sides``: of all before."""
        main = self._main_producers[piece]
        side = CPU_SIDE if main == CALLER else sides[main]
        return side if side in self.pieces.options[piece] else CPU_SIDE

    def placement(self, on_device: Sequence[bool], label: str, *, ends_early: bool = False) -> Placement:
        """The placement of these choices, one per row."""
        return self.pieces.placement(self.sides(on_device), label, ends_early=ends_early)

    @cached_property
    def _moved_ns(self) -> tuple[list[int], list[int]]:
        """Per piece what it would take to move all that it reads there, and all that others read of it back."""
        arriving, leaving = [0] * len(self.pieces), [0] * len(self.pieces)
        for flow in self.pieces.flows:
            took = flow.moving_ns[self.device]
            for reader in flow.readers:
                arriving[reader] += took
            if flow.producer != CALLER:
                leaving[flow.producer] += took
        return arriving, leaving

    @cached_property
    def _main_producers(self) -> list[int]:
        """Per piece the one that makes the most of what it reads, or `CALLER`; always an earlier one."""
        most = [(-1, CALLER)] * len(self.pieces)
        for flow in self.pieces.flows:
            for reader in flow.readers:
                if flow.producer < reader:
                    most[reader] = max(most[reader], (flow.moving_ns[self.device], flow.producer))
        return [producer for _, producer in most]

    def _weighed(self, piece: int, shares: Sequence[float]) -> float:
        weights = [self.problem.cpu_ns[group] + 1 for group in self.pieces.groups[piece]]
        groups = self.pieces.groups[piece]
        return sum(shares[group] * weight for group, weight in zip(groups, weights, strict=True)) / sum(weights)


def scaled_work(flops: float) -> float:
    """Work as rows and thresholds have it."""
    return math.log10(1 + flops) / _LOG_SCALE


def unscaled_work(value: float) -> float:
    """FLOPs of a threshold: the inverse of `scaled_work`, 0 at the least."""
    return max(0.0, 10 ** (min(value, 3.0) * _LOG_SCALE) - 1)


def _log(value: float) -> float:
    return math.log10(1 + value) / _LOG_SCALE
