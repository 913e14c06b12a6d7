"""Names of a model's tensors."""

from __future__ import annotations

from parallax.model._model import Model


def tensor_names(model: Model) -> frozenset[str]:
    """Return all names by which an initializer could be given: the runtime makes some of constants and of what it
    folds."""
    names = {*model.graph.initializers}
    for graph, node in model.graph.walk():
        names.update(graph.initializers)
        names.update(node.outputs)
        for _, body in node.bodies:
            names.update(body.initializers)
    return frozenset(names - {""})
