"""Small graphs by hand, so that cost tests need no file and no shape inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from parallax.graph import Node, OpGraph, TensorInfo

FLOAT = 1
INT8 = 3
INT64 = 7

Shape = tuple[int | str | None, ...] | None


def make_graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, object]]],
    shapes: Mapping[str, Shape | tuple[int, Shape]],
    *,
    bodies: Mapping[int, Sequence[tuple[str, OpGraph]]] | None = None,
    domains: Mapping[int, str] | None = None,
    constants: Mapping[str, object] | None = None,
) -> OpGraph:
    """``shapes`` maps a tensor to its shape (float32) or to (dtype, shape)."""
    tensors = {name: _info(name, value) for name, value in shapes.items()}
    made = tuple(
        Node(
            index=index,
            name=f"n{index}",
            op_type=op_type,
            domain=(domains or {}).get(index, ""),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            attributes=attributes,
            bodies=tuple((bodies or {}).get(index, ())),
        )
        for index, (op_type, inputs, outputs, attributes) in enumerate(nodes)
    )
    producers = {name: node.index for node in made for name in node.outputs if name}
    consumers: dict[str, list[int]] = {}
    for node in made:
        for name in dict.fromkeys(node.inputs):
            if name:
                consumers.setdefault(name, []).append(node.index)
    return OpGraph(
        name="g",
        nodes=made,
        inputs=tuple(info for name, info in tensors.items() if name in consumers and name not in producers),
        overridable=(),
        outputs=tuple(info for name, info in tensors.items() if name in producers and name not in consumers),
        tensors=tensors,
        initializers={},
        producers=producers,
        constants={name: np.asarray(value) for name, value in (constants or {}).items()},
        consumers={name: tuple(readers) for name, readers in consumers.items()},
    )


def one_node(
    op_type: str,
    inputs: Sequence[Shape | tuple[int, Shape]],
    outputs: Sequence[Shape | tuple[int, Shape]],
    *,
    domain: str = "",
    **attributes: object,
) -> tuple[OpGraph, Node]:
    """A graph of one node. ``()`` is a scalar; an input given as ``...`` is omitted."""
    shapes: dict[str, Shape | tuple[int, Shape]] = {}
    names: list[str] = []
    for position, value in enumerate(inputs):
        if value is ...:
            names.append("")
            continue
        names.append(f"x{position}")
        shapes[f"x{position}"] = value
    made = [f"y{position}" for position in range(len(outputs))]
    shapes |= dict(zip(made, outputs, strict=True))
    graph = make_graph([(op_type, names, made, attributes)], shapes, domains={0: domain})
    return graph, graph.nodes[0]


def _info(name: str, value: Shape | tuple[int, Shape]) -> TensorInfo:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], tuple):
        return TensorInfo(name=name, dtype=value[0], shape=value[1])  # type: ignore[arg-type]
    return TensorInfo(name=name, dtype=FLOAT, shape=value)  # type: ignore[arg-type]
