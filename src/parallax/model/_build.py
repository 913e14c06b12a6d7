"""From GraphProto to ``OpGraph``: names, edges, order, bodies; and the checks that need them.

Each pass is linear in nodes plus edges. Only descent into bodies recurses, and protobuf bounds that:
it parses at most 100 nested messages, three for each level of If, Loop or Scan.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from parallax.errors import ModelError, ModelFileError
from parallax.model._attributes import Attributes, constant_node_value, tensor_value
from parallax.model._graph import CONSTANT_BYTES, Node, OpGraph, TensorInfo
from parallax.model._lazy import LazyMapping
from parallax.model._types import tensor_info

_BODY_OPS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""Operators of the ONNX domain with graph attributes; other domains are searched."""

_ONNX_DOMAINS = ("", "ai.onnx")
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A graph with what the loader needs beside it."""

    graph: OpGraph
    protos: tuple[onnx.NodeProto, ...]
    """The message of each node of ``graph``, in its order."""
    order: tuple[int, ...]
    """Position in the file of each node of ``graph``."""
    free: tuple[str, ...]
    """Names read but defined nowhere in this graph: outer-scope tensors, in order of first use."""


def build_graph(proto: onnx.GraphProto, *, overridable: bool, where: str = "") -> Built:
    """Build the graph of a GraphProto and of all bodies in it.

    Args:
        proto: the graph.
        overridable: whether initializers that are graph inputs too may be fed (IR version 4 on).
        where: names the enclosing node in messages, for a body.

    Raises:
        ModelError: an edge cycle, a tensor defined twice, an output that nothing defines.
    """
    initializers = _initializers(proto)
    declared = [tensor_info(value) for value in proto.input]
    output_infos = tuple(tensor_info(value) for value in proto.output)
    check_text((proto.name, *initializers, *(info.name for info in declared), *(info.name for info in output_infos)))
    input_names = {info.name for info in declared}
    if len(input_names) != len(declared):
        raise ModelError(
            f"graph input {_first_duplicate([info.name for info in declared])!r} is declared twice",
            where=where or None,
            fix="give each input its own name",
        )
    defined = input_names | initializers.keys()

    protos: Sequence[onnx.NodeProto] = proto.node
    inputs, outputs, bodies, captures = [], [], {}, {}
    producers: dict[str, int] = {}
    for index, node in enumerate(protos):
        inputs.append(tuple(node.input))
        produced = tuple(node.output)
        outputs.append(produced)
        for name in produced:
            if name:
                if name in producers:
                    raise _defined_twice(name, protos[producers[name]], producers[name], node, index, where)
                producers[name] = index
        if node.op_type in _BODY_OPS or node.domain not in _ONNX_DOMAINS:
            found = build_bodies(node, index, where)
            if found:
                bodies[index] = tuple((name, built.graph) for name, built in found)
                captures[index] = tuple(dict.fromkeys(name for _, built in found for name in built.free))
    check_text(producers)
    clash = producers.keys() & defined
    if clash:
        name = next(name for name in producers if name in clash)
        what = "a graph input" if name in input_names else "an initializer"
        raise ModelError(
            f"tensor {name!r} is both {what} and an output of {_label(protos[producers[name]], producers[name])}",
            where=where or None,
            fix="rename one of them: every tensor has one definition",
        )

    # One look at every edge: what is free, and whether the file's order already is topological.
    free: dict[str, int] = {}
    is_sorted = True
    reads = [(*names, *captures[index]) if index in captures else names for index, names in enumerate(inputs)]
    for index, names in enumerate(reads):
        for name in names:
            producer = producers.get(name)
            if producer is None:
                if name and name not in defined and name not in free:
                    free[name] = index
            elif producer >= index:
                is_sorted = False
    order: Sequence[int] = range(len(inputs))
    if not is_sorted:
        order = _topological(reads, producers, protos, where)
        rank = [0] * len(order)
        for position, index in enumerate(order):
            rank[index] = position
        producers = {name: rank[index] for name, index in producers.items()}

    for info in output_infos:
        if info.name not in producers and info.name not in defined:
            if not where:
                raise ModelError(
                    f"nothing in the graph produces its output {info.name!r}",
                    fix="name an existing tensor as output, or export the model again",
                )
            free.setdefault(info.name, -1)

    check_text(free)
    if free and not where:
        name, index = next(iter(free.items()))
        raise ModelError(
            f"tensor {name!r} is neither a graph input, an initializer nor the output of a node",
            where=_label(protos[index], index),
            fix="feed it as a graph input or mend the exporter",
        )

    ordered = [protos[index] for index in order]
    node_names = _unique_names(ordered)
    consumers: dict[str, list[int]] = {}
    nodes: list[Node] = []
    for position, index in enumerate(order):
        node = ordered[position]
        for name in reads[index]:
            if name:
                readers = consumers.setdefault(name, [])
                if not readers or readers[-1] != position:
                    readers.append(position)
        nodes.append(
            Node(
                index=position,
                name=node_names[position],
                op_type=node.op_type,
                domain=node.domain,
                inputs=inputs[index],
                outputs=outputs[index],
                attributes=Attributes(node),
                bodies=bodies.get(index, ()),
                captures=captures.get(index, ()),
            )
        )

    check_text({node.op_type for node in nodes} | {node.domain for node in nodes})
    fed_optionally = [info for info in declared if info.name in initializers]
    graph = OpGraph(
        name=proto.name,
        nodes=tuple(nodes),
        inputs=tuple(info for info in declared if info.name not in initializers),
        overridable=tuple(fed_optionally) if overridable else (),
        outputs=output_infos,
        tensors=declared_tensors(proto, declared, initializers, output_infos),
        initializers=initializers,
        producers=producers,
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        constants=_constants(proto, ordered, {info.name for info in fed_optionally} if overridable else set()),
    )
    return Built(graph=graph, protos=tuple(ordered), order=tuple(order), free=tuple(free))


def declared_tensors(
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


def build_bodies(node: onnx.NodeProto, index: int, where: str) -> list[tuple[str, Built]]:
    """The graphs of a node's bodies, each under the name of its attribute."""
    found: list[tuple[str, Built]] = []
    for attribute in node.attribute:
        place = f"{where}{_label(node, index)}, {attribute.name}: "
        if attribute.type == _GRAPH:
            found.append((attribute.name, build_graph(attribute.g, overridable=False, where=place)))
        elif attribute.type == _GRAPHS:
            found.extend(
                (f"{attribute.name}[{number}]", build_graph(body, overridable=False, where=place))
                for number, body in enumerate(attribute.graphs)
            )
    return found


def _topological(
    reads: Sequence[tuple[str, ...]],
    producers: dict[str, int],
    protos: Sequence[onnx.NodeProto],
    where: str,
) -> list[int]:
    """Kahn's algorithm (1962); of the nodes that are ready, the one that comes first in the file is next."""
    waiting = [0] * len(reads)
    successors: list[list[int]] = [[] for _ in reads]
    for index, names in enumerate(reads):
        for producer in {producers[name] for name in names if name in producers}:
            successors[producer].append(index)
            waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for successor in successors[index]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                heapq.heappush(ready, successor)
    if len(order) < len(reads):
        raise _cycle_error(reads, producers, waiting, protos, where)
    return order


_CYCLE_SHOWN = 8


def _cycle_error(
    reads: Sequence[tuple[str, ...]],
    producers: dict[str, int],
    waiting: Sequence[int],
    protos: Sequence[onnx.NodeProto],
    where: str,
) -> ModelError:
    # Every node still waiting has a predecessor still waiting, so walking back must close a cycle.
    index = next(i for i, count in enumerate(waiting) if count)
    position: dict[int, int] = {}
    path: list[int] = []
    while index not in position:
        position[index] = len(path)
        path.append(index)
        index = next(producers[name] for name in reads[index] if name in producers and waiting[producers[name]])
    cycle = path[position[index] :][::-1]
    shown = " -> ".join(_label(protos[i], i) for i in cycle[:_CYCLE_SHOWN])
    more = "" if len(cycle) <= _CYCLE_SHOWN else f" -> ... ({len(cycle)} nodes)"
    return ModelError(
        f"the graph has a cycle: {shown}{more} -> {_label(protos[cycle[0]], cycle[0])}",
        where=where or None,
        fix="a model must be acyclic: express loops by Loop or Scan",
    )


def _unique_names(protos: Sequence[onnx.NodeProto]) -> list[str]:
    """The file's name where it has one that is new, else one made of operator and position."""
    given = [proto.name for proto in protos]
    check_text(given)
    taken = set(given)
    if len(taken) == len(given) and "" not in taken:
        return given
    seen: set[str] = set()
    for index, name in enumerate(given):
        if not name or name in seen:
            name = f"{protos[index].op_type}_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
            given[index] = name
        seen.add(name)
    return given


def _constants(
    proto: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], changeable: set[str]
) -> LazyMapping[npt.NDArray[np.generic]]:
    raw: dict[str, object] = {t.name: t for t in proto.initializer if t.name not in changeable}
    for node in nodes:
        if node.op_type == "Constant" and node.domain in _ONNX_DOMAINS and node.output:
            raw[node.output[0]] = node
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


def _label(node: onnx.NodeProto, index: int) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node #{index} ({node.op_type})"


def _defined_twice(
    name: str, first: onnx.NodeProto, first_index: int, second: onnx.NodeProto, second_index: int, where: str
) -> ModelError:
    return ModelError(
        f"tensor {name!r} is produced by both {_label(first, first_index)} and {_label(second, second_index)}",
        where=where or None,
        fix="rename one of the outputs: every tensor has one producer",
    )


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
