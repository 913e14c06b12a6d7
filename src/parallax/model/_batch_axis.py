"""The batch axis of a model: along which independent requests can be joined, proven operator by operator.

A model with an open leading axis need not treat what lies along it apart: it may normalise over it, or compare its
rows. So the axis is followed through the graph in the shapes of batches of two and of three: where it lies in each
tensor shows in the sizes that differ, and that each operator keeps requests apart follows from a rule for it. Where
there is no rule, there is no batch axis. Sizes that are computed are compared with those of a third, large batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from parallax.errors import ConfigError
from parallax.graph import Node, OpGraph, constant_value

if TYPE_CHECKING:
    from parallax.model._model import Model

_ONNX: Final = ("", "ai.onnx")
_CONTRIB: Final = "com.microsoft"
_RANDOM: Final = ("Random", "Bernoulli", "Multinomial")
_FAR: Final = 1_000_003
"""Requests of a batch in which no tensor is computed but sizes: what they make must be as batches of two and three say.
Else it differs from batch to batch in a way that those do not show, such as a least or a quotient of their number."""
_FROM_SIZES: Final = frozenset({"Expand", "ConstantOfShape", "Tile"})
"""Operators that repeat a value as often as a shape says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAxis:
    """Along which axis of each input requests are joined, and of each output they are divided."""

    inputs: Mapping[str, int]
    outputs: tuple[int | None, ...]
    """In the model's order; None for an output that does not depend on the requests."""


class NoBatchAxis(Exception):
    """Requests cannot be joined; the text says why. It is caught by whoever asks, and never goes further."""


def find_batch_axis(model: Model, shapes: Mapping[str, Sequence[int]]) -> BatchAxis:
    """The batch axis of a model whose inputs all have an open leading axis.

    Cost: two rounds of shape inference, and a look at each node.

    Args:
        shapes: of all inputs, for one request.

    Raises: NoBatchAxis if there is none, or none can be proven; names the node that stands in the way.
    """
    graph = model.graph
    for info in graph.inputs:
        if info.kind != "tensor" or not info.shape or isinstance(info.shape[0], int):
            raise NoBatchAxis(f"the leading axis of input {info.name!r} is not open")
        if not shapes.get(info.name):
            raise NoBatchAxis(f"no shape of input {info.name!r} is known to try it with")
    graphs = []
    for size in (2, 3):
        joined = {name: (size * shape[0], *shape[1:]) for name, shape in shapes.items()}
        try:
            graphs.append(model.with_shapes(joined).inferred())
        except ConfigError as error:
            raise NoBatchAxis(f"its inputs cannot be joined: {error.what}") from error
    sweep = _Sweep(model, graphs[0], graphs[1])
    for node in graphs[0].nodes:
        sweep.visit(node)
    return BatchAxis(
        inputs={info.name: 0 for info in graph.inputs},
        outputs=tuple(sweep.output_axis(info.name) for info in graph.outputs),
    )


class _Sweep:
    """Follows the axis. Each tensor is one of: *rows*, with a batch axis; *free*, the same whatever the batch; or a
    *size*, which depends on how many requests there are, but not on what they hold."""

    def __init__(self, model: Model, two: OpGraph, three: OpGraph) -> None:
        self.opset = max(model.opset_imports.get(domain, 0) for domain in _ONNX)
        self._protos = model.protos
        self._two = two
        self._three = three
        self._rows: dict[str, int] = {info.name: 0 for info in two.inputs}
        self._free: set[str] = {"", *two.initializers}
        self._sizes: set[str] = set()
        self._values: dict[str, tuple[Any, Any]] = {}
        """Small arrays in a batch of two and of three."""
        self._uncertain: set[str] = set()
        """Those of `_values` of which it is not known what they are in a batch of `_FAR`."""
        for info in two.overridable:
            if self._batch_axis(info.name) is not None:
                raise NoBatchAxis(f"the default of input {info.name!r} has an open axis")

    # -- what rules see -----------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        found = _static(self._two, name)
        if found is None:
            raise KeyError(name)
        return found

    def rows(self, name: str) -> int | None:
        return self._rows.get(name)

    def is_free(self, name: str) -> bool:
        return name in self._free

    def value(self, name: str) -> Any:
        known = self._known(name)
        return None if known is None or not np.array_equal(*known) else known[0]

    def values(self, name: str) -> tuple[Any, Any] | None:
        return self._known(name)

    def batch_axis_of(self, name: str) -> int | None:
        return self._batch_axis(name)

    def output_axis(self, name: str) -> int | None:
        """Of an output of the model. Raises: NoBatchAxis if it depends on how many requests there are."""
        axis = self._rows.get(name)
        if axis is None and name not in self._free:
            raise NoBatchAxis(f"output {name!r} depends on how many requests there are")
        return axis

    # -- one node after the other -------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        """Say of each output what it is. Raises: NoBatchAxis if the node mixes requests, or may."""
        inputs = [name for name in (*node.inputs, *node.captures) if name]
        if node.op_type.startswith(_RANDOM):
            raise _no(node, "its numbers are drawn for all requests together")
        if node.domain in _ONNX and self._evaluate(node):
            return
        if all(name in self._free for name in inputs):
            self._free.update(node.outputs)
            return
        if node.bodies:
            raise _no(node, "which way it takes would be decided for all requests together")
        if not any(name in self._rows for name in inputs):
            self._repeat(node)
            return
        self._follow(node)

    def _evaluate(self, node: Node) -> bool:
        """Compute the outputs of what depends on sizes and constants alone, in both batches; whether that worked."""
        if node.op_type in ("Shape", "Size"):
            return self._measure(node)
        known = [self._known(name) if name else (None, None) for name in node.inputs]
        if node.bodies or not known or any(entry is None for entry in known):
            return False
        from parallax.model._arithmetic import evaluate

        proto = self._protos[node.index]
        twos = evaluate(proto, [entry[0] for entry in known if entry is not None])
        threes = evaluate(proto, [entry[1] for entry in known if entry is not None])
        if twos is None or threes is None:
            return False
        fars = self._far_away(node, twos, threes)
        for place, (name, two, three) in enumerate(zip(node.outputs, twos, threes, strict=True)):
            self._keep(name, two, three)
            expected = None if fars is None else _extended(two, three)
            if fars is None or expected is None:
                self._uncertain.add(name)
            elif not _is_near(fars[place], expected):
                raise _no(node, "what it computes from the number of requests does not grow steadily with it")
        return True

    def _far_away(self, node: Node, twos: Sequence[Any], threes: Sequence[Any]) -> Sequence[Any] | None:
        """What a node makes in a batch of `_FAR`; None where that is not known, as where it grows with the batch."""
        if any(two.shape != three.shape for two, three in zip(twos, threes, strict=True)):
            return None
        fed = []
        for name in node.inputs:
            known = self._known(name) if name else None
            far = None if known is None or name in self._uncertain else _extended(*known)
            if name and far is None:
                return None
            fed.append(far)
        from parallax.model._arithmetic import evaluate

        return evaluate(self._protos[node.index], fed)

    def _measure(self, node: Node) -> bool:
        shapes = [_static(graph, node.inputs[0]) for graph in (self._two, self._three)]
        if shapes[0] is None or shapes[1] is None:
            return False
        made = []
        for shape in shapes:
            assert shape is not None
            if node.op_type == "Size":
                made.append(np.array(int(np.prod(shape, dtype=np.int64)), np.int64))
                continue
            start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
            assert isinstance(start, int)
            assert isinstance(end, int)
            made.append(np.array(shape[start:end], np.int64))
        self._keep(node.outputs[0], made[0], made[1])
        return True

    def _keep(self, name: str, two: Any, three: Any) -> None:
        self._values[name] = (two, three)
        if np.array_equal(two, three):
            self._free.add(name)
            return
        self._sizes.add(name)
        axis = self._batch_axis(name)
        if axis is not None and _is_repeated(two, axis, 2) and _is_repeated(three, axis, 3):
            # What was made for each request is the same for all of them.
            self._rows[name] = axis

    def _known(self, name: str) -> tuple[Any, Any] | None:
        found = self._values.get(name)
        if found is None and name in self._free and name:
            value = constant_value(self._two, name)
            found = None if value is None else (value, value)
        return found

    def _repeat(self, node: Node) -> None:
        """A node that reads sizes, and of requests nothing: every request's part of what it makes is the same."""
        if node.op_type not in _FROM_SIZES or not all(name in self._free for name in node.inputs[: -1 or None]):
            raise _no(node, "it computes with the number of requests")
        name = node.outputs[0]
        shapes = _static(self._two, name), _static(self._three, name)
        if None in shapes:
            raise _no(node, "the shape of what it makes is not known")
        if shapes[0] == shapes[1]:
            self._free.add(name)
            return
        axis = self._batch_axis(name)
        if axis is None:
            raise _no(node, "what it makes grows with the requests along more than one axis")
        self._rows[name] = axis

    def _follow(self, node: Node) -> None:
        from parallax.model._batch_rules import CONTRIB_RULES, RULES

        rules = RULES if node.domain in _ONNX else CONTRIB_RULES if node.domain == _CONTRIB else {}
        rule = rules.get(node.op_type)
        if rule is None:
            raise _no(node, "nothing is known of whether it keeps requests apart")
        try:
            axes = rule(self, node)
        except KeyError as error:
            raise _no(node, f"the shape of {error} is not known") from error
        if axes is None:
            raise _no(node, "it mixes requests, or may")
        for name, axis in zip(node.outputs, axes, strict=True):
            if not name:
                continue
            if axis is None or self._batch_axis(name) != axis:
                raise _no(node, f"the shape of {name!r} does not tell requests apart")
            self._rows[name] = axis

    def _batch_axis(self, name: str) -> int | None:
        """The axis whose size is in proportion to the number of requests, if no other one changes."""
        two, three = _static(self._two, name), _static(self._three, name)
        if two is None or three is None or len(two) != len(three):
            return None
        changed = [axis for axis, (one, other) in enumerate(zip(two, three, strict=True)) if one != other]
        if len(changed) != 1:
            return None
        axis = changed[0]
        return axis if two[axis] % 2 == 0 and two[axis] * 3 == three[axis] * 2 else None


def _extended(two: Any, three: Any) -> Any | None:
    """What is in a batch of `_FAR`, if numbers grow with each request by as much as from a batch of two to one of
    three, and flags stay as they are in the latter. None where shapes differ, or the type does not hold it."""
    if np.array_equal(two, three):
        return two
    if two.shape != three.shape or two.dtype.kind not in "biuf":
        return None
    if two.dtype.kind == "b":
        return three
    wide = np.float64 if two.dtype.kind == "f" else np.int64
    first = two.astype(wide)
    far = first + (three.astype(wide) - first) * (_FAR - 2)
    made = far.astype(two.dtype)
    return made if two.dtype.kind == "f" or np.array_equal(made.astype(wide), far) else None


def _is_near(found: Any, expected: Any) -> bool:
    if found.dtype.kind == "f":
        return bool(np.allclose(found, expected, rtol=1e-5, atol=0, equal_nan=True))
    return np.array_equal(found, expected)


def _is_repeated(value: Any, axis: int, times: int) -> bool:
    """Whether an array is one block, so many times along the axis."""
    blocks = np.split(value, times, axis)
    return all(np.array_equal(block, blocks[0]) for block in blocks)


def _static(graph: OpGraph, name: str) -> tuple[int, ...] | None:
    info = graph.tensors.get(name) or graph.initializers.get(name)
    if info is None or info.kind != "tensor" or not info.is_static:
        return None
    return tuple(size for size in info.shape or () if isinstance(size, int))


def _no(node: Node, reason: str) -> NoBatchAxis:
    return NoBatchAxis(f"node {node.name!r} ({node.op_type}): {reason}")
