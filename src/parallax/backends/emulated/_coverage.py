"""Which operators a delegate takes, as data: so that a device that is not at hand can be asked.

A delegate's list is a file: its operators as their ONNX counterparts, with the element types, ranks and constant
operands it asks for. It says what the delegate's own documentation or source says; that may be more than a driver
really does well, and is never less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from parallax.backends.emulated._figures import Fields
from parallax.graph import ELEMENT_TYPES, Node, OpGraph, Rejection, TensorInfo, Verdict

TYPE_NAMES: Final[Mapping[int, str]] = MappingProxyType({code: ELEMENT_TYPES[code].name for code in range(1, 17)})
"""Names used in lists of operators, by ``onnx.TensorProto.DataType``."""

_STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRule:
    """What a delegate asks of one operator."""

    element_types: frozenset[str] | None = None
    """Of every operand that is not constant, and every result; None stands for the list's own."""
    input_ranks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Position of an input -> fewest and most dimensions."""
    constant_inputs: tuple[int, ...] = ()
    """Inputs that must be known when the model is loaded, where they are given at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The operators of one delegate."""

    name: str
    title: str
    source: str
    """Where the list comes from."""
    dynamic_shapes: bool
    """Whether shapes may be known only at run time."""
    element_types: frozenset[str]
    max_rank: int
    operators: Mapping[str, OperatorRule]
    """By operator; those of another domain than ONNX's as ``domain:operator``."""

    def uncovered(
        self, graph: OpGraph, node: Node, *, constants: Collection[str] = (), unknown_types_pass: bool = False
    ) -> Rejection | None:
        """Why the delegate does not take a node, or None where it does.

        Args:
            constants: tensors that are constant beside initializers and small constants, because the runtime
                computes them when it loads the model.
            unknown_types_pass: take tensors of which nothing is known for ones that will do.
        """
        name = node.op_type if node.domain in _STANDARD_DOMAINS else f"{node.domain}:{node.op_type}"
        rule = self.operators.get(name)
        if rule is None:
            verdict = Verdict.CONTROL_FLOW if node.bodies else Verdict.UNSUPPORTED_OPERATOR
            return Rejection(verdict=verdict, detail=f"{self.name} has no {name}")

        overridable = {info.name for info in graph.overridable}

        def is_constant(tensor: str) -> bool:
            if tensor in overridable:
                return False
            return tensor in graph.initializers or tensor in graph.constants or tensor in constants

        for position in rule.constant_inputs:
            if position < len(node.inputs) and node.inputs[position] and not is_constant(node.inputs[position]):
                return Rejection(
                    verdict=Verdict.UNSUPPORTED_FORM,
                    detail=f"{self.name} takes {name} only where '{node.inputs[position]}' is constant",
                )
        flowing = [tensor for tensor in node.inputs if tensor and not is_constant(tensor)]
        for tensor in (*flowing, *(tensor for tensor in node.outputs if tensor)):
            if unknown_types_pass and tensor not in graph.tensors:
                continue
            found = self._uncovered_tensor(name, rule, tensor, graph.tensors.get(tensor))
            if found is not None:
                return found
        for position, (fewest, most) in rule.input_ranks.items():
            if position >= len(node.inputs) or not node.inputs[position]:
                continue
            info = graph.tensors.get(node.inputs[position]) or graph.initializers.get(node.inputs[position])
            if info is not None and info.shape is not None and not fewest <= len(info.shape) <= most:
                bounds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                return Rejection(
                    verdict=Verdict.UNSUPPORTED_FORM,
                    detail=f"{self.name} takes {name} with {bounds} dimensions, '{info.name}' has {len(info.shape)}",
                )
        return None

    def _uncovered_tensor(
        self, name: str, rule: OperatorRule, tensor: str, info: TensorInfo | None
    ) -> Rejection | None:
        if info is not None and info.kind != "tensor":
            return Rejection(
                verdict=Verdict.UNSUPPORTED_TYPE, detail=f"'{tensor}' is no tensor but of kind {info.kind}"
            )
        if info is not None and info.dtype:
            allowed = self.element_types if rule.element_types is None else rule.element_types
            written = TYPE_NAMES.get(info.dtype, f"type {info.dtype}")
            if written not in allowed:
                return Rejection(
                    verdict=Verdict.UNSUPPORTED_TYPE,
                    detail=f"{self.name} has no {name} for {written}, the type of '{tensor}'",
                )
        if info is None or info.shape is None or not info.is_static:
            if self.dynamic_shapes:
                return None
            shape = "unknown" if info is None or info.shape is None else f"({', '.join(map(str, info.shape))})"
            return Rejection(verdict=Verdict.DYNAMIC_SHAPE, detail=f"the shape of '{tensor}' is {shape}")
        if len(info.shape) > self.max_rank:
            return Rejection(
                verdict=Verdict.UNSUPPORTED_FORM,
                detail=f"{self.name} has tensors of up to {self.max_rank} dimensions, '{tensor}' has {len(info.shape)}",
            )
        return None


FORMAT_VERSION: Final = 1


def read_coverage(fields: Fields) -> Coverage:
    """A list of operators from its file. Raises: ConfigError naming the field at fault."""
    fields.require_format(FORMAT_VERSION)
    coverage = Coverage(
        name=fields.text("name"),
        title=fields.text("title"),
        source=fields.text("source"),
        dynamic_shapes=fields.flag("dynamic_shapes"),
        element_types=_types(fields),
        max_rank=fields.whole("max_rank", least=1),
        operators={name: _read_rule(rule) for name, rule in fields.each("operators")},
    )
    fields.finish()
    return coverage


def _read_rule(fields: Fields) -> OperatorRule:
    rule = OperatorRule(
        element_types=_types(fields) if "element_types" in fields else None,
        input_ranks=_read_ranks(fields),
        constant_inputs=fields.wholes("constant_inputs") if "constant_inputs" in fields else (),
    )
    # For readers of the file: the delegate's own name of the operator, and what the rule cannot say.
    for remark in ("as", "note"):
        if remark in fields:
            fields.text(remark)
    fields.finish()
    return rule


def _types(fields: Fields) -> frozenset[str]:
    found = fields.texts("element_types")
    for name in found:
        if name not in TYPE_NAMES.values():
            raise fields.error("element_types", f"there is no element type {name!r}", ", ".join(TYPE_NAMES.values()))
    return frozenset(found)


def _read_ranks(fields: Fields) -> dict[int, tuple[int, int]]:
    if "input_ranks" not in fields:
        return {}
    inner = fields.inner("input_ranks")
    ranks: dict[int, tuple[int, int]] = {}
    for key in inner.names():
        bounds = inner.wholes(key)
        if not key.isdecimal() or len(bounds) != 2 or bounds[0] > bounds[1]:
            raise inner.error(key, f"{bounds} for input {key!r}", "position: [fewest, most] dimensions")
        ranks[int(key)] = (bounds[0], bounds[1])
    inner.finish()
    return ranks
