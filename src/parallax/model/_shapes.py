"""Fix input shapes that the file leaves open, as the caller asks by ``shapes=``."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import onnx

from parallax.errors import ConfigError

_LARGEST = 2**63 - 1
"""ONNX sizes are int64, and so is the element count they multiply to."""

Shapes = Mapping[str, Sequence[int]]


def apply_shapes(model: onnx.ModelProto, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Write concrete shapes into the model's inputs, in place; returns them checked.

    A symbolic size that is thereby bound is bound everywhere else in the declared inputs and
    outputs, unless two inputs bind it to different sizes (exporters reuse names carelessly).

    Raises:
        ConfigError: an unknown input, another rank, a size that is no size, or one that
            contradicts the model.
    """
    if not isinstance(shapes, Mapping):
        raise ConfigError(
            f"shapes must map input names to sizes, not be a {type(shapes).__name__}",
            fix='shapes={"x": (1, 3, 224, 224)}',
        )
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in initializers}
    checked = {name: _checked(name, sizes, inputs) for name, sizes in shapes.items()}
    bound: dict[str, set[int]] = {}
    for name, sizes in checked.items():
        tensor = inputs[name].type.tensor_type
        if tensor.HasField("shape"):
            for dim, size in zip(tensor.shape.dim, sizes, strict=True):
                if dim.dim_param:
                    bound.setdefault(dim.dim_param, set()).add(size)
                dim.dim_value = size
        else:
            tensor.shape.SetInParent()
            for size in sizes:
                tensor.shape.dim.add(dim_value=size)
    unique = {symbol: sizes.pop() for symbol, sizes in bound.items() if len(sizes) == 1}
    if unique:
        for value in (*model.graph.input, *model.graph.output):
            if value.type.WhichOneof("value") == "tensor_type":
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param in unique:
                        dim.dim_value = unique[dim.dim_param]
    return checked


def _checked(name: str, sizes: Sequence[int], inputs: Mapping[str, onnx.ValueInfoProto]) -> tuple[int, ...]:
    where = f"shapes[{name!r}]"
    value = inputs.get(name)
    if value is None:
        known = ", ".join(map(repr, list(inputs)[:20])) or "none"
        raise ConfigError(f"the model has no input {name!r}", where="shapes", fix=f"its inputs are: {known}")
    if value.type.WhichOneof("value") != "tensor_type":
        raise ConfigError(f"input {name!r} is not a tensor and has no shape", where=where, fix="leave it out of shapes")
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise ConfigError(
            f"{sizes!r} is not a shape", where=where, fix="give a tuple of sizes, such as (1, 3, 224, 224)"
        )
    out: list[int] = []
    total = 1
    for size in sizes:
        try:
            count = operator.index(size)
        except TypeError:
            count = -1
        total *= max(count, 1)
        if isinstance(size, bool) or not 0 <= count <= _LARGEST or total > _LARGEST:
            raise ConfigError(
                f"{size!r} is not a size (in {tuple(sizes)!r})",
                where=where,
                fix="sizes are integers from 0 to 2**63 - 1",
            )
        out.append(count)
    tensor = value.type.tensor_type
    if tensor.HasField("shape"):
        if len(tensor.shape.dim) != len(out):
            raise ConfigError(
                f"input {name!r} has {len(tensor.shape.dim)} dimensions, but {tuple(out)} has {len(out)}",
                where=where,
                fix=f"give {len(tensor.shape.dim)} sizes",
            )
        for axis, (dim, count) in enumerate(zip(tensor.shape.dim, out, strict=True)):
            if dim.HasField("dim_value") and 0 <= dim.dim_value != count:
                raise ConfigError(
                    f"dimension {axis} of input {name!r} is {dim.dim_value} in the model, not {count}",
                    where=where,
                    fix=f"give {dim.dim_value} there, or export the model with that dimension dynamic",
                )
    return tuple(out)


def open_leading_axes(graph: onnx.GraphProto, symbol: str) -> None:
    """Name the leading size of every input, in place; shapes of outputs are forgotten.

    Inputs that are initializers as well, which need not be fed, stay as they are.
    """
    defaults = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in defaults:
            value.type.tensor_type.shape.dim[0].dim_param = symbol
    for value in graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
