"""From a whole model to its stored structure: large random-looking float weights become recipes."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.zoo._recipe import Recipe
from parallax.zoo._structure import RECIPE_KEY

_SMALLEST_DRAWN = 128
_DISTINCT_SHARE = 0.5


def condense(model: onnx.ModelProto, name: str, draw: int = 0) -> tuple[bytes, int]:
    """Compress a model to structure and recipes; `draw` chooses among sets of seeds.

    Returns: the stored form, and how many initializers became recipes.
    """
    structure = onnx.ModelProto()
    structure.CopyFrom(model)
    drawn = 0
    for tensor in structure.graph.initializer:
        recipe = _recipe_for(tensor, f"{name}/{draw}")
        if recipe is None:
            continue
        drawn += 1
        stub = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.metadata_props.add(key=RECIPE_KEY, value=recipe.to_json())
        tensor.CopyFrom(stub)
    structure.metadata_props.add(key="parallax.zoo", value=f"{name}; weights are random")
    return gzip.compress(structure.SerializeToString(deterministic=True), 9, mtime=0), drawn


def _recipe_for(tensor: onnx.TensorProto, prefix: str) -> Recipe | None:
    """A recipe, or None for what must stay as it is: integers, small tensors, and tables of few distinct values.

    The last are masks, grids, strides and constant fills. They mean something, and compress well.
    """
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor).ravel()
    if values.size < _SMALLEST_DRAWN or np.unique(values).size < _DISTINCT_SHARE * min(values.size, 4096):
        return None
    seed = int.from_bytes(hashlib.sha256(f"{prefix}/{tensor.name}".encode()).digest()[:6], "little")
    return Recipe(
        mean=_rounded(values.mean(dtype=np.float64)),
        deviation=_rounded(values.std(dtype=np.float64)),
        low=_rounded(values.min()),
        high=_rounded(values.max()),
        seed=seed,
    )


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")
