"""The proof that padding is without effect, for one model.

Every tensor is followed through the graph for a sequence of any length, with the mask's padded places 0 and its first
place 1: where the sequence lies among its axes, and what its elements are at the first and at padded places. Each
operator has a rule that says what that makes of its outputs, or refuses (an abstract interpretation after Cousot and
Cousot, 1977). What is proven: an element that both the full run and the trimmed one have is the same in both. So it is
enough that nothing is summed, weighed or picked over padded places unless they are 0, or hidden by the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from parallax.graph import NUMPY_TYPES, Node, OpGraph, TensorInfo, constant_value
from parallax.partition.padding._entries import Entry, Kind, entry_of
from parallax.partition.padding._lengths import Length
from parallax.partition.padding._rules import rule_of
from parallax.partition.padding._seen import MOST_ITEMS, Edge, NotProven, Seen, axis_of, marks_of
from parallax.partition.padding._trimming import CutInput, NotTrimmable, PaddedOutput, Trimming

_MASK_KINDS = "biuf"


def prove_trimming(graph: OpGraph, *, opset: int, fillings: Mapping[int, np.generic]) -> Trimming:
    """How a model may be run without its padding.

    It looks for a mask among the inputs whose last axis is open: each in turn, those with "mask" in their name first.
    Cost: some ten microseconds per node and candidate.

    Args:
        graph: of the model, with the types that inference found.
        opset: version of ONNX's own operators.
        fillings: what each ConstantOfShape repeats, by the index of its node; others are not known.

    Raises: NotTrimmable if that cannot be proven for any of them; the text is about the likeliest, and names the node
        or output that stands in the way.
    """
    refusal: NotTrimmable | None = None
    for info, symbol in _candidates(graph):
        try:
            return _Proof(graph, info, symbol, opset, fillings).trimming()
        except NotTrimmable as error:
            refusal = refusal or error
    raise refusal or NotTrimmable(
        "it has no input that could be a mask: a tensor of numbers or flags whose last axis is open, and has the name "
        "of an open axis of another input"
    )


def _candidates(graph: OpGraph) -> list[tuple[TensorInfo, str]]:
    """Inputs that could be masks, each with the name of its last axis."""
    found = []
    for info in graph.inputs:
        dtype = NUMPY_TYPES.get(info.dtype)
        if info.kind != "tensor" or not info.shape or dtype is None or dtype.kind not in _MASK_KINDS:
            continue
        symbol = info.shape[-1]
        if not isinstance(symbol, str) or not symbol or info.shape.count(symbol) > 1:
            continue
        if any(symbol in (other.shape or ()) for other in graph.inputs if other is not info):
            found.append((info, symbol))
    return sorted(found, key=lambda entry: "mask" not in entry[0].name.lower())


class _Proof:
    """Follows tensors for one mask. What rules see of it is `parallax.partition.padding._view.View`."""

    def __init__(
        self, graph: OpGraph, mask: TensorInfo, symbol: str, opset: int, fillings: Mapping[int, np.generic]
    ) -> None:
        self.opset = opset
        self.symbol = symbol
        self.sequence = Length.of(symbol)
        self._graph = graph
        self._mask = mask
        self._fillings = fillings
        self._sizes = {size for info in graph.inputs for size in info.shape or () if isinstance(size, str)}
        """Names of open sizes. Those that inference makes up are none of them."""
        self._shortest = 1
        self._longest: int | None = None
        self._seen: dict[str, Seen] = {}
        self._faults: dict[str, str] = {}
        """Why nothing is known of a tensor."""

    # -- what rules ask ------------------------------------------------------------------------------------------------

    def seen(self, name: str) -> Seen:
        found = self._seen.get(name)
        if found is None:
            found = self._seen[name] = self._constant(name)
        return found

    def filling(self, node: Node) -> np.generic | None:
        return self._fillings.get(node.index)

    def keep_at_least(self, places: int) -> None:
        self._shortest = max(self._shortest, places)

    def allow_at_most(self, places: int) -> None:
        self._longest = places if self._longest is None else min(places, self._longest)

    # -- the proof -----------------------------------------------------------------------------------------------------

    def trimming(self) -> Trimming:
        """What is proven. Raises: NotTrimmable."""
        cut = [self._begin(info) for info in self._graph.inputs]
        for node in self._graph.nodes:
            self._visit(node)
        padded, is_masked = [], False
        for info in self._graph.outputs:
            seen = self._output(info.name)
            is_masked |= seen.is_cut and seen.is_masked
            if marks_of(seen.axes, self.sequence):
                padded.append(self._padded(info.name, seen))
        if self._faults:
            # What no output needs is run all the same, and may fail.
            raise NotTrimmable(next(iter(self._faults.values())))
        if not is_masked:
            raise NotTrimmable(
                f"no output is computed from what input {self._mask.name!r} leaves of an input along {self.symbol!r}"
            )
        return Trimming(
            mask=self._mask.name,
            inputs=tuple(entry for entry in cut if entry.axes),
            outputs=tuple(padded),
            shortest=self._shortest,
            longest=self._longest,
        )

    def _begin(self, info: TensorInfo) -> CutInput:
        """What is known of an input, and along which axes it is cut."""
        if info.kind != "tensor" or info.shape is None:
            self._faults[info.name] = f"the rank of input {info.name!r} is not known"
            return CutInput(name=info.name, axes=())
        axes = tuple(self._open_axis(info, axis) for axis in range(len(info.shape)))
        marks = marks_of(axes, self.sequence)
        seen = Seen(axes=axes, is_cut=bool(marks))
        if info is self._mask:
            kind = NUMPY_TYPES[info.dtype].type
            seen = replace(seen, edges={marks[-1]: Edge(first=kind(1), padded=kind(0))})
        self._seen[info.name] = seen
        return CutInput(name=info.name, axes=tuple(axis for axis, _ in marks))

    def _open_axis(self, info: TensorInfo, axis: int) -> tuple[Length, ...]:
        assert info.shape is not None
        size = info.shape[axis]
        return axis_of(Length.of(size if size is not None and size != "" else f"?{info.name}:{axis}"))

    def _visit(self, node: Node) -> None:
        reads = [name for name in (*node.inputs, *node.captures) if name]
        fault = next((self._faults[name] for name in reads if name in self._faults), None)
        if fault is None:
            try:
                self._keep(node, self._followed(node), reads)
                return
            except (NotProven, ArithmeticError) as error:
                fault = f"node {node.name!r} ({node.op_type}): {error}"
        self._faults.update((name, fault) for name in node.outputs if name)

    def _followed(self, node: Node) -> Sequence[Seen]:
        """Raises: NotProven."""
        rule = rule_of(node)
        try:
            if rule is not None and not node.bodies:
                return rule(self, node)
            raise NotProven("nothing is known of what it makes of padded places")
        except (NotProven, ArithmeticError, LookupError, ValueError, TypeError) as error:
            # What the sequence does not go into is the same in both runs, whatever it is.
            seen = [self.seen(name) for name in (*node.inputs, *node.captures) if name]
            if not any(entry.is_cut for entry in seen) and not node.op_type.startswith("Random"):
                return [self._constant(name) if name else Seen(axes=()) for name in node.outputs]
            if isinstance(error, NotProven | ArithmeticError):
                raise
            raise NotProven(f"it is not formed as its operator asks ({error})") from error

    def _keep(self, node: Node, made: Sequence[Seen], reads: Iterable[str]) -> None:
        known = [self.seen(name) for name in reads]
        is_cut, is_masked = any(seen.is_cut for seen in known), any(seen.is_masked for seen in known)
        for place, name in enumerate(node.outputs):
            if not name:
                continue
            if place >= len(made):
                self._faults[name] = f"node {node.name!r} ({node.op_type}): nothing is known of output {name!r}"
                continue
            seen = made[place]
            self._check_axes(seen)
            self._seen[name] = replace(seen, is_cut=is_cut or seen.is_cut, is_masked=is_masked or seen.is_masked)

    def _check_axes(self, seen: Seen) -> None:
        """Raises: NotProven if a size is made of the sequence's length otherwise than as an axis of its own."""
        for atoms in seen.axes:
            for atom in atoms:
                if self.symbol in atom.symbols and atom != self.sequence:
                    raise NotProven(f"what it makes has a size that is computed from {self.symbol!r}")

    def _constant(self, name: str) -> Seen:
        """What is known of a tensor that the sequence does not go into. Raises: NotProven if its shape is not known."""
        value = constant_value(self._graph, name)
        if value is not None:
            items = None
            if value.dtype.kind in "iub" and value.ndim < 2 and value.size <= MOST_ITEMS:
                items = tuple(Length.of(int(item)) for item in value.reshape(-1))
            axes = tuple(axis_of(Length.of(size)) for size in value.shape)
            return Seen(axes=axes, entry=entry_of(value) if value.size else Kind.ORDINARY, items=items)
        info = self._graph.tensors.get(name) or self._graph.initializers.get(name)
        sizes = None if info is None else info.shape
        known = [size for size in sizes or () if isinstance(size, int) or size in self._sizes]
        if info is None or sizes is None or len(known) < len(sizes):
            raise NotProven(f"the shape of {name!r} is not known")
        dtype = NUMPY_TYPES.get(info.dtype)
        entry: Entry = Kind.ORDINARY if dtype is not None and dtype.kind in "iub" else Kind.STORED
        return Seen(axes=tuple(axis_of(Length.of(size)) for size in known if size is not None), entry=entry)

    def _output(self, name: str) -> Seen:
        if name in self._faults:
            raise NotTrimmable(self._faults[name])
        try:
            seen = self.seen(name)
        except NotProven as error:
            raise NotTrimmable(f"output {name!r}: {error}") from error
        if seen.depends_on(self.symbol):
            raise NotTrimmable(f"output {name!r} says how long the sequence is")
        return seen

    def _padded(self, name: str, seen: Seen) -> PaddedOutput:
        """An output with the sequence axis. Raises: NotTrimmable unless its padded places are known."""
        marks = marks_of(seen.axes, self.sequence)
        values = [seen.edge(mark).padded for mark in marks]
        first = values[0]
        if (
            any(seen.axes[axis] != (self.sequence,) for axis, _ in marks)
            or isinstance(first, Kind)
            or any(isinstance(value, Kind) or value != first for value in values)
        ):
            raise NotTrimmable(
                f"output {name!r} keeps the axis {self.symbol!r}, and what a full run gives at its padded places is "
                "known only by running it"
            )
        number = float(first)
        if math.isnan(number) or (first.dtype.kind in "iu" and int(number) != int(first)):
            raise NotTrimmable(
                f"output {name!r} keeps the axis {self.symbol!r}, and is {first} at padded places, which cannot be "
                "filled in"
            )
        return PaddedOutput(name=name, axes=tuple(axis for axis, _ in marks), value=repr(number))
