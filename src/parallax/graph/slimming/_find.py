"""What of a graph can go: one pass over its operators, then what the whole of it allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from parallax.graph._op_graph import Node, OpGraph
from parallax.graph._union_find import UnionFind
from parallax.graph.slimming import _contractions, _elementwise, _layout, _passing
from parallax.graph.slimming._channels import STANDARD, Array, Channels, Source
from parallax.graph.slimming._records import BIAS, ChannelCuts, ConstantCut, Indices, Refusal, Removal, Values

_SHARED_BYTES: Final = 1 << 16
"""A constant up to this size that several operators read is cut for each of them; a larger one for all, or not."""

_LAST: Final = "no operator can do without its last channel"

_QUANTISED: Final = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm"}
    | {"QLinearConv", "QLinearMatMul"}
)
_POOLS: Final = (*("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),)
_REDUCTIONS: Final = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)

RULES: Final[Mapping[str, Callable[[Channels, Node], None]]] = {
    **dict.fromkeys(_elementwise.UNARY, _elementwise.map_each),
    **dict.fromkeys(_elementwise.JOINS, _elementwise.join_each),
    **dict.fromkeys(_POOLS, _passing.pool),
    **dict.fromkeys(_REDUCTIONS, _passing.reduce_axes),
    **dict.fromkeys(("Hardmax", "LayerNormalization", "LogSoftmax", "Softmax"), _elementwise.soften),
    "BatchNormalization": _elementwise.normalise_batch,
    "Clip": _elementwise.clip,
    "Concat": _layout.concat,
    "Conv": _contractions.convolve,
    "ConvTranspose": _contractions.convolve_transposed,
    "Dropout": _elementwise.drop_out,
    "Flatten": _layout.flatten,
    "Gather": _layout.gather,
    "Gemm": _contractions.multiply_add,
    "InstanceNormalization": _elementwise.normalise_instances,
    "MatMul": _contractions.multiply,
    "Pad": _passing.pad,
    "Reshape": _layout.reshape,
    "Resize": _passing.resize,
    "Shape": _layout.shape_of,
    "Slice": _layout.slice_each,
    "Split": _layout.split,
    "Squeeze": _layout.squeeze,
    "Transpose": _layout.transpose,
    "Unsqueeze": _layout.unsqueeze,
    "Upsample": _passing.resize,
}
"""Operator of the standard -> its rule. Whatever reads channels and has none keeps them."""

_LEAST_OPSET: Final = 7
"""Before, operators broadcast by attributes."""


def find_cuts(graph: OpGraph, *, opset: int, constant: Callable[[str], Array | None]) -> ChannelCuts:
    """What can be removed so that the graph computes the same, up to rounding.

    Removed is what is constant for every input (because weights are 0) or what no reader needs, where all who read it
    are known, and what it adds to them can be put into their constants. Activations and weights are taken to be
    finite; behind operators that give infinite values for usual inputs nothing is removed. Bodies stay as they are.
    Linear in the graph, and one look at each weight.

    Args:
        graph: with inferred types.
        opset: of the standard operators.
        constant: the values of an initializer or of a Constant node's output, None where they cannot be read.
    """
    if opset < _LEAST_OPSET:
        return ChannelCuts()
    channels = Channels(graph, opset, constant)
    for node in graph.nodes:
        rule = RULES.get(node.op_type) if node.domain in STANDARD else None
        if node.op_type in _QUANTISED:
            channels.refuse(node, "its weights are quantised")
        channels.visit(node, rule)
    channels.end()
    return _Settled(channels).cuts()


class _Settled:
    """Which channels go, once everything is known."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._unite_shared_constants()
        groups = UnionFind(channels.count)
        for one, other in channels.links:
            for left, right in zip(one.tolist(), other.tolist(), strict=True):
                groups.union(left, right)
        self._leaders: Indices = np.array([groups.find(number) for number in range(channels.count)], np.int64)
        reasons: Indices = np.full(channels.count, -1, np.int64)
        self._whys = [why for _, why in channels.pins]
        for number, (ids, _) in reversed(list(enumerate(channels.pins))):
            reasons[self._leaders[ids]] = number
        self._reasons = reasons
        self._gone: npt.NDArray[np.bool_] = reasons[self._leaders] < 0
        self._keep_the_last()

    def _unite_shared_constants(self) -> None:
        """Readers of one large constant cut the same of it, or nothing."""
        channels = self._channels
        for root, uses in channels.uses.items():
            array = channels.array_of(root)
            if len(uses) < 2 or array is None or array.nbytes <= _SHARED_BYTES:
                continue
            for axis in sorted({axis for use in uses for axis in use.axes}):
                claimed = [use.axes[axis] for use in uses if axis in use.axes]
                for ids in claimed[1:]:
                    channels.link(claimed[0], ids)
                if len(claimed) < len(uses):
                    channels.pin(claimed[0], f"an operator that needs all of {root!r} reads it as well")

    def _keep_the_last(self) -> None:
        channels = self._channels
        tracked = [track.ids for axes in channels.tracks.values() for track in axes.values()]
        whys = len(self._whys)
        self._whys.append(_LAST)
        distinct = {id(ids): ids for ids in tracked if ids.size}
        changed = True
        while changed:
            changed = False
            for ids in distinct.values():
                if self._gone[ids].all():
                    leader = self._leaders[ids[0]]
                    self._gone[self._leaders == leader] = False
                    self._reasons[leader] = whys
                    changed = True

    def cuts(self) -> ChannelCuts:
        """The records."""
        channels, gone = self._channels, self._gone
        removals: list[Removal] = []
        refusals = list(channels.refusals)
        for source in channels.sources:
            removals += self._removals(source)
            refusals += self._refusals(source)
        if not removals:
            return ChannelCuts(refusals=tuple(refusals))
        biases = self._biases()
        cuts = []
        for root, uses in channels.uses.items():
            for use in uses:
                axes = {axis: np.flatnonzero(~gone[ids]) for axis, ids in use.axes.items() if gone[ids].any()}
                if use.node is not None and (axes or (use.node.index in biases and use.position == BIAS)):
                    cuts.append(ConstantCut(node=use.node.index, position=use.position, constant=root, axes=axes))
        targets: dict[int, dict[int, int]] = {}
        for node, axis, ids in channels.targets:
            if gone[ids].any():
                targets.setdefault(node.index, {})[axis] = int((~gone[ids]).sum())
        return ChannelCuts(
            removals=tuple(removals),
            refusals=tuple(refusals),
            cuts=tuple(cuts),
            readers={root: len(uses) for root, uses in channels.uses.items()},
            biases=biases,
            groups={
                node.index: int((~gone[ids]).sum()) // size for node, ids, size in channels.groups if gone[ids].any()
            },
            targets=targets,
            splits={
                node.index: tuple(int((~gone[ids]).sum()) for ids in parts)
                for node, parts in channels.splits
                if any(gone[ids].any() for ids in parts)
            },
            sizes={
                name: {axis: int((~gone[track.ids]).sum()) for axis, track in axes.items() if gone[track.ids].any()}
                for name, axes in channels.tracks.items()
                if any(gone[track.ids].any() for track in axes.values())
            },
        )

    def _biases(self) -> dict[int, Values]:
        gone = self._gone
        biases: dict[int, Values] = {}
        for fold in self._channels.folds:
            delta = fold.delta(gone[fold.incoming])[~gone[fold.outgoing]]
            if (delta != 0).any():
                biases[fold.node.index] = delta
        return biases

    def _removals(self, source: Source) -> list[Removal]:
        gone = self._gone[source.ids]
        parts = {
            "all weights of them are 0": gone & source.zero,
            "all that they read is constant": gone & source.fixed & ~source.zero,
            "nothing needs them: whatever reads them multiplies them by 0, or goes with them": gone & ~source.fixed,
        }
        return [
            Removal(
                node=source.node.name,
                op_type=source.node.op_type,
                axis=source.axis,
                count=int(part.sum()),
                of=len(source.ids),
                why=why,
            )
            for why, part in parts.items()
            if part.any()
        ]

    def _refusals(self, source: Source) -> list[Refusal]:
        stay = source.fixed & ~self._gone[source.ids]
        numbers = Counter(self._reasons[self._leaders[source.ids[stay]]].tolist())
        return [
            Refusal(
                node=source.node.name,
                op_type=source.node.op_type,
                count=count,
                why=self._whys[number] if number >= 0 else _LAST,
            )
            for number, count in sorted(numbers.items())
        ]
