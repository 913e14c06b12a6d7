"""``padding="trim"``: asked of a model, and read from a bundle that was compiled with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallax._json_records import parse_json, read_record, write_record
from parallax.errors import BundleError, ConfigError, PlanError
from parallax.partition.padding import NotTrimmable, Trimming, prove_trimming

if TYPE_CHECKING:
    from parallax.bundle import Bundle
    from parallax.model import Model

_ONNX = ("", "ai.onnx")
_MOST_AXES = 64


def trimming_of(model: Model) -> Trimming:
    """How runs of a model may leave out padding.

    Args:
        model: as it came, without shapes that a session plans for.

    Raises: ConfigError if it is not proven that answers stay the same; names the node that stands in the way.
    """
    opset = max(model.opset_imports.get(domain, 0) for domain in _ONNX)
    try:
        return prove_trimming(model.inferred(), opset=opset, fillings=model.filled_values())
    except NotTrimmable as error:
        raise not_trimmed(str(error)) from error


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
        complaint = _complaint(found, bundle.manifest.interface)
    except PlanError as error:
        complaint = error.what
    if complaint:
        raise BundleError(
            f"what it says of padding cannot be: {complaint}",
            where=bundle.folder,
            fix="do not use this bundle: compile the model again",
        )
    return found


def _complaint(trimming: Trimming, interface: Any) -> str:
    cut = {entry.name for entry in trimming.inputs}
    if not cut <= set(interface.inputs) or trimming.mask not in cut:
        return "an input that is cut is none of the model's, or the mask is not among them"
    if not {entry.name for entry in trimming.outputs} <= set(interface.outputs):
        return "an output that is filled up is none of the model's"
    if any(not 0 <= axis < _MOST_AXES for entry in (*trimming.inputs, *trimming.outputs) for axis in entry.axes):
        return "an axis is not possible"
    if trimming.shortest < 1 or (trimming.longest is not None and trimming.longest < 0):
        return "a length is not possible"
    try:
        for entry in trimming.outputs:
            float(entry.value)
    except ValueError:
        return "what outputs are filled up with is no number"
    return ""
