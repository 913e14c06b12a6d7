"""``padding="trim"``: asked of a model, and read from a bundle that was compiled with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallax._json_records import parse_json, read_record, write_record
from parallax.errors import BundleError, ConfigError, ParallaxError, PlanError
from parallax.options import why_content_matters
from parallax.partition.padding import LEAST_WEIGHT_BYTES, NotTrimmable, Trimming, prove_trimming

if TYPE_CHECKING:
    from parallax.bundle import Bundle
    from parallax.graph import OpGraph
    from parallax.model import Model

_ONNX = ("", "ai.onnx")
_MOST_AXES = 64
_PROBED = 8
"""Length of the sequences with which rows are proven to be independent."""


def trimming_of(model: Model, session_options: Any) -> Trimming:
    """How runs of a model may leave out padding.

    Args:
        model: as it came, without shapes that a session plans for.
        session_options: the caller's, or None. Constants and sizes that they give are others than those of the model,
            on which the proof rests.

    Raises: ConfigError if it is not proven that answers stay the same; names the node that stands in the way.
    """
    held = None if session_options is None else why_content_matters(session_options, model)
    if held is not None:
        raise not_trimmed(held)
    opset = max(model.opset_imports.get(domain, 0) for domain in _ONNX)
    graph = model.inferred()
    try:
        found = prove_trimming(graph, opset=opset, fillings=model.filled_values())
    except NotTrimmable as error:
        raise not_trimmed(str(error)) from error
    return replace(found, rows=_row_axes(model, graph, found))


def _row_axes(model: Model, graph: OpGraph, trimming: Trimming) -> tuple[int, ...] | None:
    """Where rows lie in each output, if they may run apart and that can pay; see `Trimming.rows`."""
    mask = next(info.shape for info in graph.inputs if info.name == trimming.mask)
    if model.weight_bytes < LEAST_WEIGHT_BYTES or mask is None or len(mask) != 2:
        return None
    batch, sequence = mask
    sizes: dict[Any, int] = {batch: 1, sequence: max(_PROBED, trimming.shortest)}
    shapes = {info.name: [sizes.get(size, size) for size in info.shape or ()] for info in graph.inputs}
    if any(not info.shape or info.shape[0] != batch for info in graph.inputs):
        return None
    if not isinstance(batch, str) or any(not isinstance(size, int) for shape in shapes.values() for size in shape):
        return None
    from parallax.model import NoBatchAxis, find_batch_axis

    try:
        found = find_batch_axis(model, shapes)  # type: ignore[arg-type]  # all are numbers
    except (NoBatchAxis, ParallaxError):
        return None
    axes = []
    for info, axis in zip(graph.outputs, found.outputs, strict=True):
        if axis is not None and (info.shape is None or info.shape[axis] != batch):
            return None
        axes.append(-1 if axis is None else axis)
    return tuple(axes)


def not_trimmed(why: str) -> ConfigError:
    """The refusal of ``padding="trim"``."""
    return ConfigError(
        f'padding="trim" is not for this model: {why}',
        fix="leave padding= out, or export the model so that padding is proven to be without effect "
        "(see docs/sparsity.md)",
    )


def store_trimming(trimming: Trimming | None) -> str | None:
    """As a bundle keeps it: a text in JSON."""
    if trimming is None:
        return None
    import json

    return json.dumps(write_record(trimming))


def stored_trimming(bundle: Bundle) -> Trimming | None:
    """What a bundle keeps of it. Raises: BundleError if it does not fit the bundle's model."""
    text = bundle.manifest.trimming
    if text is None:
        return None
    try:
        found = read_record(Trimming, parse_json(text), "trimming")
    except PlanError as error:
        raise _impossible(error.what, bundle) from error
    complaint = _complaint(found, bundle.manifest.interface)
    if complaint:
        raise _impossible(complaint, bundle)
    return found


def _impossible(complaint: str, bundle: Bundle) -> BundleError:
    return BundleError(
        f"what it says of padding cannot be: {complaint}",
        where=bundle.folder,
        fix="do not use this bundle: compile the model again",
    )


def _complaint(trimming: Trimming, interface: Any) -> str:
    cut = {entry.name for entry in trimming.inputs}
    if not cut <= set(interface.inputs) or trimming.mask not in cut:
        return "an input that is cut is none of the model's, or the mask is not among them"
    if not {entry.name for entry in trimming.outputs} <= set(interface.outputs):
        return "an output that is filled up is none of the model's"
    axes = [axis for entry in trimming.inputs for axis in entry.axes]
    axes += [axis for entry in trimming.outputs for axis in entry.axes]
    if any(not 0 <= axis < _MOST_AXES for axis in axes):
        return "an axis is not possible"
    rows = trimming.rows
    if rows is not None and (len(rows) != len(interface.outputs) or any(not -1 <= axis < _MOST_AXES for axis in rows)):
        return "an axis of rows is not possible"
    if trimming.shortest < 1 or (trimming.longest is not None and trimming.longest < 0):
        return "a length is not possible"
    try:
        for entry in trimming.outputs:
            float(entry.value)
    except ValueError:
        return "what outputs are filled up with is no number"
    return ""
