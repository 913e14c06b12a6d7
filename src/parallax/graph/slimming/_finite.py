"""Tensors that finite inputs can easily make infinite, or NaN.

0 times such a value is NaN, and removing a channel whose weights are 0 would turn the NaN into 0. Overflow of sums and
products is not looked for: activations are assumed to be finite where the operators that make them are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parallax.graph._op_graph import Node, OpGraph, constant_value

_ANY, _NOT_NEGATIVE, _POSITIVE = 0, 1, 2

_NEEDED_SIGN: Final[Mapping[str, int]] = {"Sqrt": _NOT_NEGATIVE, "Log": _POSITIVE, "Reciprocal": _POSITIVE}
"""Sign of the input with which these are finite."""

_NEVER: Final = frozenset(
    {"Acos", "Acosh", "Asin", "Atanh", "Cosh", "Exp", "LpNormalization", "ReduceLogSum", "ReduceLogSumExp"}
    | {"Sinh", "Tan"}
)
"""Not finite for inputs that are easily met: beyond their domain, or beyond the largest number."""

_NOT_NEGATIVE_OUT: Final = frozenset(
    {"Abs", "HardSigmoid", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Softplus"}
)
_KEEP_SIGN: Final = frozenset(
    {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Gather", "Slice", "Sqrt"}
    | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "GlobalAveragePool", "AveragePool", "Reciprocal", "Dropout"}
)

_WHOLE: Final = frozenset({2, 3, 4, 5, 6, 7, 9, 12, 13})
"""ONNX element types of integers and truth values, which are finite."""

MASK: Final = "holds an infinite value"


def find_unbounded(graph: OpGraph, constant: Callable[[str], npt.NDArray[Any] | None]) -> dict[str, str]:
    """Tensor -> what can make it infinite or NaN, for those where something can.

    Args:
        constant: the values of a tensor that is constant, else None. Only small ones are looked through.
    """
    found = _Finder(graph, constant)
    for node in graph.nodes:
        found.visit(node)
    return found.causes


class _Finder:
    def __init__(self, graph: OpGraph, constant: Callable[[str], npt.NDArray[Any] | None]) -> None:
        self.causes: dict[str, str] = {}
        self._graph = graph
        self._signs: dict[str, int] = {}
        self._constant = constant
        for name in graph.constants:
            self._note_constant(name, constant_value(graph, name))

    def _note_constant(self, name: str, value: npt.NDArray[Any] | None) -> None:
        if value is None or not value.size or value.dtype.kind not in "fiu":
            return
        if not np.isfinite(value).all():
            self.causes[name] = f"{name!r} {MASK}"
        else:
            least = value.min()
            self._signs[name] = _POSITIVE if least > 0 else _NOT_NEGATIVE if least == 0 else _ANY

    def visit(self, node: Node) -> None:
        causes = [self.causes[name] for name in node.inputs if name in self.causes]
        cause = next((one for one in causes if not one.endswith(MASK)), causes[0] if causes else None)
        if cause is not None and cause.endswith(MASK) and node.op_type == "Softmax":
            cause = None  # a mask; where it leaves nothing, the model's own answer is NaN
        if cause is None and not self._is_finite(node):
            cause = f"{node.op_type} {node.name!r} may give infinite values or NaN"
        sign = self._sign(node)
        for name in node.outputs:
            if name:
                if cause is not None and not self._is_whole(name):
                    self.causes[name] = cause
                self._signs.setdefault(name, sign)

    def _is_whole(self, name: str) -> bool:
        """Whether a tensor holds integers or truth values."""
        info = self._graph.tensors.get(name)
        return info is not None and info.dtype in _WHOLE

    def _sign_of(self, node: Node, position: int) -> int:
        return self._signs.get(node.inputs[position], _ANY) if position < len(node.inputs) else _ANY

    def _is_finite(self, node: Node) -> bool:
        if node.op_type in _NEEDED_SIGN:
            return self._sign_of(node, 0) >= _NEEDED_SIGN[node.op_type]
        if node.op_type == "Div" and len(node.inputs) == 2:
            divisor = self._constant(node.inputs[1])
            if divisor is not None:
                return bool((divisor != 0).all())
            return self._sign_of(node, 1) == _POSITIVE
        if node.op_type == "Pow" and len(node.inputs) == 2:
            exponent = self._constant(node.inputs[1])
            if exponent is None:
                return False
            is_whole = bool((exponent == np.floor(exponent)).all())
            if bool((exponent >= 0).all()):
                return is_whole or self._sign_of(node, 0) >= _NOT_NEGATIVE
            return self._sign_of(node, 0) == _POSITIVE
        return node.op_type not in _NEVER

    def _sign(self, node: Node) -> int:
        kind = node.op_type
        if kind in ("Shape", "Size"):
            return _POSITIVE
        if kind in _NOT_NEGATIVE_OUT:
            return _NOT_NEGATIVE
        if kind in _KEEP_SIGN:
            return self._sign_of(node, 0)
        if kind == "Concat":
            return min((self._sign_of(node, position) for position in range(len(node.inputs))), default=_ANY)
        if kind == "Pow" and len(node.inputs) == 2:
            exponent = self._constant(node.inputs[1])
            if exponent is not None and bool((exponent % 2 == 0).all()):
                return _NOT_NEGATIVE
        if len(node.inputs) == 2:
            one, other = self._sign_of(node, 0), self._sign_of(node, 1)
            if kind == "Add":
                return max(one, other) if min(one, other) >= _NOT_NEGATIVE else _ANY
            if kind == "Mul":
                if node.inputs[0] == node.inputs[1]:
                    return _NOT_NEGATIVE
                return _NOT_NEGATIVE if min(one, other) >= _NOT_NEGATIVE else _ANY
            if kind == "Div":
                return _NOT_NEGATIVE if min(one, other) >= _NOT_NEGATIVE else _ANY
            if kind == "Max":
                return max(one, other)
        if kind == "Clip":
            least: Any = node.attributes.get("min")
            if len(node.inputs) > 1 and node.inputs[1]:
                array = self._constant(node.inputs[1])
                least = None if array is None or array.size != 1 else float(array.reshape(-1)[0])
            if isinstance(least, (int, float)):
                return _POSITIVE if least > 0 else _NOT_NEGATIVE if least == 0 else _ANY
        return _ANY
