"""What the runtime writes wrong in the models that it saves, put right."""

from __future__ import annotations

import onnx

from parallax.model._nested import graphs_inside, walk_nodes


def drop_doubled_constants(model: onnx.ModelProto) -> None:
    """Remove the ``Constant`` nodes of bodies whose value is an initializer of that body too.

    ONNX Runtime makes initializers of such nodes when it loads a model. In bodies inside of bodies it writes both
    (observed with 1.31.1), and refuses to read that, since a name is then defined twice.
    """
    for node in walk_nodes(model.graph.node):
        for graph in graphs_inside(node):
            held = {tensor.name for tensor in graph.initializer}
            doubled = [
                position
                for position, inner in enumerate(graph.node)
                if inner.op_type == "Constant" and inner.domain in ("", "ai.onnx") and inner.output[0] in held
            ]
            for position in reversed(doubled):
                del graph.node[position]
