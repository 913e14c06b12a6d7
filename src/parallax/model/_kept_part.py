"""Parts of a model on disk as they were cut, for backends that compile them when they are opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from parallax.graph import NUMPY_TYPES
from parallax.model._arrange import save_arranged
from parallax.model._nested import restore
from parallax.model._save import save_segment
from parallax.model._segment_model import SegmentModel
from parallax.model._stored_parts import StoredWeight
from parallax.model._weights import mark_lent


def keep_part(segment: SegmentModel, scratch: Path, target: Path) -> tuple[StoredWeight, ...]:
    """Write a part to ``target`` as it is, its weights beside it, laid out as `save_arranged` lays them out.

    Weights of types that numpy does not have lie in the graph itself.

    Args:
        scratch: a folder for what is needed meanwhile.

    Returns: where the weights lie.

    Raises: OSError if the disk refuses.
    """
    staged = scratch / "part.onnx"
    save_segment(_with_odd_types_inside(segment), staged)
    weights = save_arranged(staged, target)
    for left in scratch.glob("part.*"):
        left.unlink()
    return weights


def _with_odd_types_inside(segment: SegmentModel) -> SegmentModel:
    odd = {name for name, weight in segment.sources.items() if weight.dtype not in NUMPY_TYPES}
    if not odd:
        return segment
    model = onnx.ModelProto()
    model.ParseFromString(segment.proto)
    for tensor in model.graph.initializer:
        if tensor.name in odd:
            restore(tensor, segment.sources[tensor.name])
    return replace(
        segment,
        proto=model.SerializeToString(),
        sources={name: weight for name, weight in segment.sources.items() if name not in odd},
    )


def read_part(name: str, graph: bytes, weights: Mapping[str, npt.NDArray[np.generic]]) -> SegmentModel:
    """The part that `keep_part` wrote.

    Args:
        name: of the part, for messages.
        graph: the content of its file.
        weights: those that lie beside it, mapped; they must stay so as long as what is made of the part.
    """
    model = onnx.ModelProto()
    model.ParseFromString(graph)
    types = {}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            mark_lent(tensor)
            types[tensor.name] = tensor.data_type
    return SegmentModel(name=name, proto=model.SerializeToString(), weights=weights, weight_types=types)
