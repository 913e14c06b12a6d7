"""From GraphProto to ``OpGraph``: names, edges, order, bodies; and the checks that need them.

Each pass is linear in nodes plus edges. Only descent into bodies recurses, and protobuf bounds that:
it parses at most 100 nested messages, three for each level of If, Loop or Scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from parallax.errors import ModelError, ModelFileError
from parallax.graph import CONSTANT_BYTES, Node, OpGraph, TensorInfo, topological_order
from parallax.model._attributes import Attributes, constant_node_value, tensor_value
from parallax.model._body_operators import may_have_bodies
from parallax.model._lazy import LazyMapping
from parallax.model._types import tensor_info

_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A graph with what the loader needs beside it."""

    graph: OpGraph
    protos: tuple[onnx.NodeProto, ...]
    """The message of each node of ``graph``, in its order."""
    in_file_order: bool
    """Whether that order is the file's."""
    free: tuple[str, ...]
    """Names read but defined nowhere in this graph: outer-scope tensors, in order of first use."""
    ambiguous: str | None = None
    """What is defined more than once, here or in a body, where the runtime does not refuse that but picks one."""


def build_graph(proto: onnx.GraphProto, *, overridable: bool, where: str = "") -> Built:
    """Build the graph of a GraphProto and of all bodies in it.

    Args:
        proto: the graph.
        overridable: whether initializers that are graph inputs too may be fed (IR version 4 on).
        where: names the enclosing node in messages, for a body.

    Raises:
        ModelError: an edge cycle, a tensor defined twice, an output that nothing defines.
        ModelFileError: a name that is not text.
    """
    initializers = _initializers(proto)
    ambiguous = _duplicate(proto, initializers, where)
    declared = [tensor_info(value) for value in proto.input]
    outputs = tuple(tensor_info(value) for value in proto.output)
    check_text((proto.name, *initializers, *(info.name for info in declared), *(info.name for info in outputs)))
    nodes = _Nodes(proto.node, where)
    input_names = _check_definitions(declared, initializers, nodes)
    ambiguous = ambiguous or nodes.ambiguous or _shared_name(nodes, where)
    free, in_file_order = _edges(nodes, input_names | initializers.keys(), outputs)
    order: Sequence[int] = range(len(nodes.protos)) if in_file_order else _topological(nodes)
    protos = nodes.protos if in_file_order else [nodes.protos[index] for index in order]

    names = _unique_names(nodes, order)
    producers: dict[str, int] = {}
    consumers: dict[str, list[int]] = {}
    built: list[Node] = []
    for position, index in enumerate(order):
        for name in nodes.reads[index]:
            if name:
                readers = consumers.get(name)
                if readers is None:
                    consumers[name] = [position]
                elif readers[-1] != position:
                    readers.append(position)
        for name in nodes.outputs[index]:
            if name:
                producers[name] = position
        built.append(
            Node(
                index=position,
                name=names[position],
                op_type=nodes.op_types[index],
                domain=nodes.domains[index],
                inputs=nodes.inputs[index],
                outputs=nodes.outputs[index],
                attributes=Attributes(nodes.protos[index]),
                bodies=nodes.bodies.get(index, ()),
                captures=nodes.captures.get(index, ()),
            )
        )

    fed_optionally = [info for info in declared if info.name in initializers] if overridable else []
    graph = OpGraph(
        name=proto.name,
        nodes=tuple(built),
        inputs=tuple(info for info in declared if info.name not in initializers),
        overridable=tuple(fed_optionally),
        outputs=outputs,
        tensors=_declared_tensors(proto, declared, initializers, outputs),
        initializers=initializers,
        producers=producers,
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        constants=_constants(proto, nodes, {info.name for info in fed_optionally}),
    )
    return Built(graph=graph, protos=tuple(protos), in_file_order=in_file_order, free=free, ambiguous=ambiguous)


class _Nodes:
    """The nodes of a GraphProto, column by column and in the file's order: each field is read once."""

    def __init__(self, protos: Iterable[onnx.NodeProto], where: str) -> None:
        self.where = where
        self.protos: list[onnx.NodeProto] = list(protos)
        self.names: list[str] = [node.name for node in self.protos]
        self.op_types: list[str] = [node.op_type for node in self.protos]
        self.domains: list[str] = ["" if (d := node.domain) == "ai.onnx" else d for node in self.protos]
        self.inputs: list[tuple[str, ...]] = [tuple(node.input) for node in self.protos]
        self.outputs: list[tuple[str, ...]] = [tuple(node.output) for node in self.protos]
        check_text(self.names)
        check_text({*self.op_types, *self.domains})
        self.bodies: dict[int, tuple[tuple[str, OpGraph], ...]] = {}
        self.captures: dict[int, tuple[str, ...]] = {}
        self.ambiguous: str | None = None
        for index, op_type in enumerate(self.op_types):
            if may_have_bodies(op_type, self.domains[index]) and (
                found := build_bodies(self.protos[index], self.label(index))
            ):
                self.bodies[index] = tuple((name, built.graph) for name, built in found)
                self.captures[index] = tuple(dict.fromkeys(name for _, built in found for name in built.free))
                self.ambiguous = self.ambiguous or next((b.ambiguous for _, b in found if b.ambiguous), None)
        self.reads: list[tuple[str, ...]] = self.inputs
        """Inputs and captures."""
        if self.captures:
            self.reads = [(*names, *self.captures.get(index, ())) for index, names in enumerate(self.inputs)]
        self.producers: dict[str, int] = {}
        for index, names in enumerate(self.outputs):
            for name in names:
                if name:
                    if name in self.producers:
                        if self.is_constant(index) and self.is_constant(self.producers[name]):
                            self.ambiguous = f"tensor {name!r} is defined by several Constant nodes"
                            continue
                        first = self.label(self.producers[name])
                        raise ModelError(
                            f"tensor {name!r} is produced by both {first} and {self.label(index)}",
                            where=where or None,
                            fix="rename one of the outputs: every tensor has one producer",
                        )
                    self.producers[name] = index
        check_text(self.producers)

    def is_constant(self, index: int) -> bool:
        """Whether a node is one that the runtime turns into an initializer before it looks at names."""
        return self.op_types[index] == "Constant" and not self.domains[index]

    def label(self, index: int) -> str:
        name = self.names[index]
        return f"node {name!r} ({self.op_types[index]})" if name else f"node #{index} ({self.op_types[index]})"


def _check_definitions(declared: Sequence[TensorInfo], initializers: dict[str, TensorInfo], nodes: _Nodes) -> set[str]:
    """Refuse names defined twice; returns the names of the inputs."""
    names = [info.name for info in declared]
    unique = set(names)
    if len(unique) != len(names):
        raise ModelError(
            f"graph input {next(n for i, n in enumerate(names) if n in names[:i])!r} is declared twice",
            where=nodes.where or None,
            fix="give each input its own name",
        )
    clash = nodes.producers.keys() & (unique | initializers.keys())
    doubled = {name for name in clash if name not in unique and nodes.is_constant(nodes.producers[name])}
    if doubled:
        nodes.ambiguous = f"tensor {min(doubled)!r} is both an initializer and the output of a Constant node"
        clash = clash - doubled
    if clash:
        name = next(name for name in nodes.producers if name in clash)
        what = "a graph input" if name in unique else "an initializer"
        raise ModelError(
            f"tensor {name!r} is both {what} and an output of {nodes.label(nodes.producers[name])}",
            where=nodes.where or None,
            fix="rename one of them: every tensor has one definition",
        )
    return unique


def _edges(nodes: _Nodes, defined: set[str], outputs: Sequence[TensorInfo]) -> tuple[tuple[str, ...], bool]:
    """One look at every edge: the names that are free, and whether the file's order is topological.

    Raises:
        ModelError: a free name in a graph that has no outer scope.
    """
    producers = nodes.producers
    free: dict[str, int] = {}
    in_file_order = True
    for index, names in enumerate(nodes.reads):
        for name in names:
            producer = producers.get(name)
            if producer is None:
                if name and name not in defined:
                    free.setdefault(name, index)
            elif producer >= index:
                in_file_order = False
    check_text(free)
    if not nodes.where:
        for name, index in free.items():
            raise ModelError(
                f"tensor {name!r} is neither a graph input, an initializer nor the output of a node",
                where=nodes.label(index),
                fix="feed it as a graph input or fix the exporter",
            )
    for info in outputs:
        if info.name not in producers and info.name not in defined:
            if not nodes.where:
                raise ModelError(
                    f"nothing in the graph produces its output {info.name!r}",
                    fix="name an existing tensor as output, or export the model again",
                )
            free.setdefault(info.name, -1)
    return tuple(free), in_file_order


def _declared_tensors(
    proto: onnx.GraphProto,
    inputs: Sequence[TensorInfo],
    initializers: dict[str, TensorInfo],
    outputs: Sequence[TensorInfo],
) -> LazyMapping[TensorInfo]:
    """Every type the file states; where it states several, the most binding one wins."""
    raw: dict[str, object] = {value.name: value for value in proto.value_info}
    check_text(raw)
    raw.update((info.name, info) for info in outputs if info.kind != "unknown")
    raw.update((info.name, info) for info in inputs)
    raw.update(initializers)
    return LazyMapping(raw, _as_info)


def _as_info(name: str, raw: object) -> TensorInfo | None:
    return tensor_info(raw) if isinstance(raw, onnx.ValueInfoProto) else raw if isinstance(raw, TensorInfo) else None


def _initializers(proto: onnx.GraphProto) -> dict[str, TensorInfo]:
    out = {
        tensor.name: TensorInfo(name=tensor.name, dtype=tensor.data_type, shape=tuple(tensor.dims))
        for tensor in proto.initializer
    }
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        out[name] = TensorInfo(name=name, dtype=sparse.values.data_type, shape=tuple(sparse.dims))
    out.pop("", None)  # An unnamed initializer cannot be read by anything.
    return out


def _duplicate(proto: onnx.GraphProto, initializers: Mapping[str, TensorInfo], where: str) -> str | None:
    """Which initializer is defined more than once, if one is."""
    if len(initializers) == len(proto.initializer) + len(proto.sparse_initializer):
        return None
    names = [tensor.name for tensor in proto.initializer] + [s.values.name for s in proto.sparse_initializer]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return f"initializer {name!r} is defined more than once" + (f" in {where}" if where else "")
        if name:
            seen.add(name)
    return None


def _shared_name(nodes: _Nodes, where: str) -> str | None:
    """Which name two nodes have, if two have one: the runtime refuses that, though names mean nothing here."""
    named = [name for name in nodes.names if name]
    if len(set(named)) == len(named):
        return None
    seen: set[str] = set()
    for name in named:
        if name in seen:
            return f"more than one node is called {name!r}" + (f" in {where}" if where else "")
        seen.add(name)
    return None


def build_bodies(node: onnx.NodeProto, label: str) -> list[tuple[str, Built]]:
    """The graphs of a node's bodies, each under the name of its attribute; ``label`` names the node in messages."""
    found: list[tuple[str, Built]] = []
    for attribute in node.attribute:
        place = f"{label}, body {attribute.name!r}"
        if attribute.type == _GRAPH:
            found.append((attribute.name, build_graph(attribute.g, overridable=False, where=place)))
        elif attribute.type == _GRAPHS:
            found.extend(
                (f"{attribute.name}[{number}]", build_graph(body, overridable=False, where=place))
                for number, body in enumerate(attribute.graphs)
            )
    check_text(name for name, _ in found)
    return found


def _topological(nodes: _Nodes) -> list[int]:
    """The nodes in topological order; of those that are ready, the one that comes first in the file is next."""
    reads, producers = nodes.reads, nodes.producers
    order = topological_order([{producers[name] for name in names if name in producers} for names in reads])
    if len(order) < len(reads):
        raise _cycle_error(nodes, order)
    return order


_CYCLE_SHOWN = 8


def _cycle_error(nodes: _Nodes, order: Sequence[int]) -> ModelError:
    # Every node without a place in the order has a predecessor without one, so walking back must close a cycle.
    producers = nodes.producers
    waiting = {*range(len(nodes.reads))}.difference(order)
    index = min(waiting)
    position: dict[int, int] = {}
    path: list[int] = []
    while index not in position:
        position[index] = len(path)
        path.append(index)
        index = next(producers[name] for name in nodes.reads[index] if producers.get(name) in waiting)
    cycle = path[position[index] :][::-1]
    shown = " -> ".join(map(nodes.label, cycle[:_CYCLE_SHOWN]))
    more = "" if len(cycle) <= _CYCLE_SHOWN else f" -> ... ({len(cycle)} nodes)"
    return ModelError(
        f"the graph has a cycle: {shown}{more} -> {nodes.label(cycle[0])}",
        where=nodes.where or None,
        fix="a model must be acyclic: express loops by Loop or Scan",
    )


def _unique_names(nodes: _Nodes, order: Sequence[int]) -> list[str]:
    """Names in ``order``: the file's where it has one that is new, else one made of operator and position."""
    names = [nodes.names[index] for index in order]
    taken = set(names)
    if len(taken) == len(names) and "" not in taken:
        return names
    seen: set[str] = set()
    for position, name in enumerate(names):
        if not name or name in seen:
            name = f"{nodes.op_types[order[position]]}_{position}"
            while name in taken:
                name += "_"
            taken.add(name)
            names[position] = name
        seen.add(name)
    return names


def _constants(proto: onnx.GraphProto, nodes: _Nodes, changeable: set[str]) -> LazyMapping[npt.NDArray[np.generic]]:
    raw: dict[str, object] = {t.name: t for t in proto.initializer if t.name not in changeable}
    for index, op_type in enumerate(nodes.op_types):
        if op_type == "Constant" and not nodes.domains[index] and nodes.outputs[index]:
            raw[nodes.outputs[index][0]] = nodes.protos[index]
    return LazyMapping(raw, _constant)


def _constant(name: str, raw: object) -> npt.NDArray[np.generic] | None:
    if isinstance(raw, onnx.NodeProto):
        return constant_node_value(raw) if raw.ByteSize() <= 16 * CONSTANT_BYTES else None
    if isinstance(raw, onnx.TensorProto) and raw.ByteSize() <= 16 * CONSTANT_BYTES:
        return tensor_value(raw)
    return None


def check_text(names: Iterable[str]) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes where it promises str.

    Raises:
        ModelFileError: one of them is not text.
    """
    try:
        "".join(names)
    except TypeError:
        raise ModelFileError(
            "a name in the model is not UTF-8 text", fix="the file is damaged: fetch or export it again"
        ) from None
