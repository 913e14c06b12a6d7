"""Bodies of If, Loop and Scan as models of their own, so that all that works on a model works on them.

What a body captures becomes an input, except for constants: initializers and ``Constant`` nodes of the outer graph are
taken along, so that the runtime can fold and pack them. The types of inputs come from the outer graph, as far as they
hold in every iteration. Bodies that hand anything but tensors in or out stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import onnx

from parallax.errors import InternalError
from parallax.graph import ELEMENT_TYPES, STRING_TYPE, Node, OpGraph
from parallax.model._nested import nested_index
from parallax.model._weights import Weight

_LEADING: Final = {"If": 0, "Loop": 2, "Scan": 0}
"""Formal inputs of a body that the operator makes itself: the iteration number and the condition of a Loop."""

_SCAN_VERSION: Final = 9
"""Before, a Scan had a batch dimension and lengths per sequence; nobody exports it any more."""

_RETURNED: Final = "_returned"


class Typed(Protocol):
    """The part of a `Model` that says what is proven of a tensor."""

    def proven_type(self, tensor_name: str) -> onnx.TypeProto | None:
        """The type of a tensor as far as it is sure to hold; None where nothing is known."""
        ...


M = TypeVar("M", bound=Typed)
"""`Model`, which knows this module and is not known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body(Generic[M]):
    """A body as a model of its own."""

    attribute: str
    """Of the operator: "then_branch", "else_branch" or "body"."""
    model: M
    """Its inputs are ``inputs``, then ``captures``; it has no overridable initializers."""
    inputs: tuple[str, ...]
    """Formal inputs, in the operator's order."""
    captures: tuple[str, ...]
    """Tensors of the outer graph that it reads."""
    outputs: tuple[str, ...]
    """Formal outputs, in the operator's order: outputs of ``model``, which may repeat, or names in ``inputs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyParts:
    """What `make_bodies` needs of the outer model."""

    skeleton: onnx.ModelProto
    graph: OpGraph
    protos: Sequence[onnx.NodeProto]
    weights: Mapping[str, Weight]
    nested: Mapping[int, Weight]
    can_split_at: Callable[[str], bool]
    declare: Callable[[str], onnx.ValueInfoProto]
    """The proven type of a tensor that may be cut."""
    shell: Callable[[], onnx.ModelProto]


@dataclass(slots=True)
class Extracted:
    """A body's model in parts."""

    skeleton: onnx.ModelProto
    weights: dict[str, Weight] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """Of structure and small constants."""
        return hashlib.blake2b(self.skeleton.SerializeToString(deterministic=True), digest_size=20).digest()


Assemble = Callable[[Extracted], M]
"""Makes a model of its parts."""


def why_no_bodies(parts: BodyParts, node: Node) -> str | None:
    """Why a node's bodies cannot be models of their own, or None."""
    if not node.bodies:
        return "it has no bodies"
    if node.domain or node.op_type not in _LEADING:
        return f"{node.op_type} is none of If, Loop and Scan"
    opset = max((entry.version for entry in parts.skeleton.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if node.op_type == "Scan" and opset < _SCAN_VERSION:
        return f"Scan of operator set {opset} works on batches"
    for name in filter(None, (*node.inputs, *node.outputs, *node.captures)):
        if not parts.can_split_at(name):
            return f"{name!r} is not a tensor of numbers whose type is known"
        element = ELEMENT_TYPES.get(parts.declare(name).type.tensor_type.elem_type)
        if element is None or element.code == STRING_TYPE or element.is_packed:
            return f"the elements of {name!r} are no whole bytes"
    if node.op_type == "Scan" and (fault := _scan_fault(parts, node)) is not None:
        return fault
    proto = parts.protos[node.index]
    for name, body in node.bodies:
        if not body.nodes:
            return f"body {name!r} computes nothing"
        graph = _body_proto(proto, name)
        declared = [value for value in graph.input if value.name not in body.initializers]
        fed = len(node.inputs) if node.op_type == "Scan" else max(len(node.inputs), 2) if node.op_type == "Loop" else 0
        if len(declared) != fed or "" in node.inputs[_LEADING[node.op_type] :]:
            return f"body {name!r} has {len(declared)} inputs where {fed} are fed"
        for value in declared[: _LEADING[node.op_type]]:
            shape = value.type.tensor_type.shape
            if not value.type.tensor_type.HasField("shape") or len(shape.dim) > 1:
                return f"body {name!r} does not say whether {value.name!r} is a scalar"
        returned = len(node.outputs) + (1 if node.op_type == "Loop" else 0)
        if len(body.outputs) != returned:
            return f"body {name!r} has {len(body.outputs)} outputs where {returned} are expected"
        known = {*body.producers, *body.initializers, *(value.name for value in declared)}
        if any(info.name not in known for info in body.outputs):
            return f"body {name!r} returns a tensor of the outer graph"
        if all(info.name not in body.producers for info in body.outputs):
            return f"body {name!r} returns nothing that it computes"
    return None


def _scan_fault(parts: BodyParts, node: Node) -> str | None:
    """What is wrong with the attributes of a Scan, which the runtime is to say in its own words."""
    count = node.attributes.get("num_scan_inputs")
    if not isinstance(count, int) or not 0 < count <= len(node.inputs):
        return f"it scans {count} of {len(node.inputs)} inputs"
    states = len(node.inputs) - count
    for name, expected in (
        ("scan_input_axes", count),
        ("scan_input_directions", count),
        ("scan_output_axes", len(node.outputs) - states),
        ("scan_output_directions", len(node.outputs) - states),
    ):
        given = node.attributes.get(name)
        if given is not None and (not isinstance(given, tuple) or len(given) != expected):
            return f"{name} does not have {expected} entries"
        if given is not None and name.endswith("directions") and not set(given) <= {0, 1}:
            return f"{name} has entries other than 0 and 1"
    for name, axis in zip(node.inputs[states:], scan_axes(node), strict=True):
        tensor = parts.declare(name).type.tensor_type
        if tensor.HasField("shape") and not -len(tensor.shape.dim) <= axis < len(tensor.shape.dim):
            return f"{name!r} has no axis {axis}"
    return None


def make_bodies(parts: BodyParts, node: Node, assemble: Assemble[M]) -> tuple[Body[M], ...]:
    """The bodies of a node for which `why_no_bodies` gives None, in the order of ``Node.bodies``."""
    return tuple(_make_body(parts, node, name, body, assemble) for name, body in node.bodies)


def _make_body(parts: BodyParts, node: Node, attribute: str, body: OpGraph, assemble: Assemble[M]) -> Body[M]:
    proto = _body_proto(parts.protos[node.index], attribute)
    formal = tuple(value.name for value in proto.input if value.name not in body.initializers)
    types = _formal_types(parts, node, proto, formal)
    carried = _carried(node, formal, [info.name for info in body.outputs])
    while True:
        model, captures, outputs = _body_model(parts, node, attribute, body, types, assemble)
        loose = _loosen(model, types, carried)
        if loose is None:
            return Body(attribute=attribute, model=model, inputs=formal, captures=captures, outputs=outputs)
        types = loose


def _formal_types(
    parts: BodyParts, node: Node, proto: onnx.GraphProto, formal: Sequence[str]
) -> dict[str, onnx.TypeProto]:
    """Types of the first iteration's inputs."""
    types: dict[str, onnx.TypeProto] = {}
    leading = _LEADING[node.op_type]
    declared = {value.name: value.type for value in proto.input}
    for position, name in enumerate(formal):
        kind = types[name] = onnx.TypeProto()
        if position < leading:
            kind.tensor_type.elem_type = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)[position]
            kind.tensor_type.shape.SetInParent()
            for _ in declared[name].tensor_type.shape.dim:
                kind.tensor_type.shape.dim.add(dim_value=1)
        else:
            kind.CopyFrom(parts.declare(node.inputs[position]).type)
    if node.op_type == "Scan":
        scanned = scan_axes(node)
        for name, axis in zip(formal[len(formal) - len(scanned) :], scanned, strict=True):
            tensor = types[name].tensor_type
            if tensor.HasField("shape"):
                del tensor.shape.dim[axis]
    return types


def scan_axes(node: Node) -> tuple[int, ...]:
    """The axis along which each scanned input of a Scan is cut into slices, as the model states it."""
    count = node.attributes["num_scan_inputs"]
    assert isinstance(count, int)
    axes = node.attributes.get("scan_input_axes")
    return tuple(axes) if isinstance(axes, tuple) else (0,) * count


def _carried(node: Node, formal: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Formal inputs whose value after the first iteration is an output of the body, and which one."""
    if node.op_type == "If":
        return {}
    if node.op_type == "Loop":
        return dict(zip(formal[2:], outputs[1:], strict=False))
    states = len(formal) - len(scan_axes(node))
    return dict(zip(formal[:states], outputs, strict=False))


def _loosen(
    model: Typed, types: Mapping[str, onnx.TypeProto], carried: Mapping[str, str]
) -> dict[str, onnx.TypeProto] | None:
    """Types with those sizes left open that an iteration may change; None where there are none."""
    changed: dict[str, onnx.TypeProto] = {}
    for name, output in carried.items():
        tensor = types[name].tensor_type
        if output == name or not tensor.HasField("shape"):
            continue
        after = model.proven_type(output)
        loose = onnx.TypeProto()
        loose.tensor_type.elem_type = tensor.elem_type
        if after is not None and after.tensor_type.HasField("shape"):
            shape = after.tensor_type.shape.dim
            if len(shape) == len(tensor.shape.dim):
                loose.tensor_type.shape.SetInParent()
                for one, other in zip(tensor.shape.dim, shape, strict=True):
                    # Unnamed ones are as open as can be already.
                    kept = loose.tensor_type.shape.dim.add()
                    if one == other:
                        kept.CopyFrom(one)
        if loose != types[name]:
            changed[name] = loose
    return {**types, **changed} if changed else None


def _body_model(
    parts: BodyParts,
    node: Node,
    attribute: str,
    body: OpGraph,
    types: Mapping[str, onnx.TypeProto],
    assemble: Assemble[M],
) -> tuple[M, tuple[str, ...], tuple[str, ...]]:
    proto = _body_proto(parts.protos[node.index], attribute)
    made = Extracted(parts.shell())
    graph = made.skeleton.graph
    graph.name = f"{node.name}, {attribute}"
    graph.node.extend(proto.node)
    graph.initializer.extend(proto.initializer)
    graph.sparse_initializer.extend(proto.sparse_initializer)
    graph.value_info.extend(proto.value_info)
    for tensor in graph.initializer:
        index = nested_index(tensor)
        if index is not None:
            made.weights[tensor.name] = parts.nested[index]
    graph.input.extend([onnx.ValueInfoProto(name=name, type=kind) for name, kind in types.items()])
    captures = _take_captures(parts, _free_names(body), made)
    outputs = _take_outputs(proto, body, graph)
    return assemble(made), captures, outputs


def _free_names(body: OpGraph) -> list[str]:
    """What a body reads and does not define, bodies within it included."""
    own = {*body.producers, *body.initializers, *(info.name for info in body.inputs), ""}
    reads = dict.fromkeys(name for node in body.nodes for name in (*node.inputs, *node.captures))
    return [name for name in reads if name not in own]


def _take_captures(parts: BodyParts, names: Sequence[str], made: Extracted) -> tuple[str, ...]:
    """Declare what is captured: constants come along, anything else is an input."""
    graph = made.skeleton.graph
    outer = parts.graph
    overridable = {info.name for info in outer.overridable}
    initializers = {tensor.name: tensor for tensor in parts.skeleton.graph.initializer}
    captures: list[str] = []
    for name in names:
        producer = outer.producers.get(name)
        if name in initializers and name not in overridable:
            weight = parts.weights.get(name)
            if weight is None:
                graph.initializer.append(initializers[name])
            else:
                graph.initializer.add(name=name, data_type=weight.dtype, dims=weight.dims)
                made.weights[name] = weight
        elif producer is not None and _is_constant(outer.nodes[producer]):
            constant = onnx.NodeProto()
            constant.CopyFrom(parts.protos[producer])
            graph.node.insert(0, constant)
        else:
            captures.append(name)
            graph.input.append(parts.declare(name))
    return tuple(captures)


def _is_constant(node: Node) -> bool:
    return node.op_type == "Constant" and not node.domain


def _take_outputs(proto: onnx.GraphProto, body: OpGraph, graph: onnx.GraphProto) -> tuple[str, ...]:
    """Declare each tensor that is computed once; constants are handed out by an Identity, inputs not at all."""
    names: list[str] = []
    taken = {*body.producers, *body.initializers, *(info.name for info in body.inputs)}
    for value in proto.output:
        name = value.name
        if name in body.initializers:
            renamed = name + _RETURNED
            while renamed in taken:
                renamed += "_"
            taken.add(renamed)
            graph.node.add(op_type="Identity", input=[name], output=[renamed])
            value = onnx.ValueInfoProto(name=renamed, type=value.type)
            name = renamed
        if name not in names and name not in {info.name for info in body.inputs}:
            graph.output.append(value)
        names.append(name)
    return tuple(names)


def _body_proto(node: onnx.NodeProto, attribute: str) -> onnx.GraphProto:
    for entry in node.attribute:
        if entry.name == attribute:
            body: onnx.GraphProto = entry.g
            return body
    raise InternalError(f"node {node.name!r} has no body {attribute!r}")
