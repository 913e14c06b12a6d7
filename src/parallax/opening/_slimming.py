"""``slim=True``: a session plans and runs what is left of its model without the zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallax.options import why_content_matters

if TYPE_CHECKING:
    from parallax.model import Model


def slimmed(model: Model, session_options: Any) -> Model:
    """The model that a session with ``slim=True`` runs; its ``slimming`` says what went, or what stood in the way.

    Args:
        model: as it was read, or slimmed already.
        session_options: the caller's, or None. Weights that they give are others than those of the model, whose zeros
            then mean nothing.

    Raises: ModelError if the graph makes no sense.
    """
    if model.slimming is not None:
        return model
    from parallax.graph.slimming import Refusal, Slimming
    from parallax.model import slim_model

    held = None if session_options is None else why_content_matters(session_options, model)
    if held is not None:
        return model.noting(Slimming(refusals=(Refusal(node="", op_type="", count=None, why=held),)))
    return slim_model(model)


def slimming_note(model: Model | None) -> str:
    """What a plan says of it: what was removed, or why nothing was.

    Args:
        model: what a session with ``slim=True`` loaded, if it did.
    """
    if model is None or model.slimming is None:
        return "slim=True is of no effect: the model was not analysed"
    return model.slimming.summary
