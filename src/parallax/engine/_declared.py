"""What the runtime declares of a model's outputs, which its parts do not know.

The runtime infers shapes with all of the model before it, and again after it folded constants. A segment starts from
what is known of the tensors it is fed. So the whole model is asked; but not before somebody wants to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnxruntime

from parallax import _lazy
from parallax._record import dataclass
from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, load_session, make_session, open_source
from parallax.errors import BackendError
from parallax.graph import RUNTIME_TYPES
from parallax.model import Model, declaring_model

logger = _lazy.logger(__name__)

_LEVELS: Any = onnxruntime.GraphOptimizationLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The runtime's descriptions of tensors. ``session`` is their memory."""

    arguments: Sequence[Any]
    """As ``onnxruntime.InferenceSession.get_outputs`` gives them."""
    session: Any


def declared_outputs(model: Model, options: RuntimeOptions, *, optimises: bool = True) -> Declaration:
    """What a session of the whole model declares of its outputs.

    Where sizes are open, the model is optimised for the answer, which takes about as long as opening it. Weights are
    neither packed nor laid out anew.

    Args:
        optimises: False leaves sizes open that the runtime finds by folding constants, and reads no weight.

    Raises: BackendError if the runtime refuses the model.
    """
    try:
        if model.is_inlined:
            # The runtime learns less of a function's outputs, or more, from the function than from its nodes.
            session = open_source(model.whole(), _without_layout(options), runnable=optimises)
            return Declaration(arguments=session.outputs_meta, session=session)
        whole = model.extract_whole()
        session = load_session(whole.proto)
        if optimises and not all(isinstance(size, int) for argument in session.outputs_meta for size in argument.shape):
            session = make_session(whole, width=1, options=_without_layout(options))
    except FOREIGN_EXCEPTIONS as error:
        raise BackendError(f"the runtime refuses the whole model: {error}") from error
    return Declaration(arguments=session.outputs_meta, session=session)


def _without_layout(options: RuntimeOptions) -> RuntimeOptions:
    level = options.graph_optimization_level
    if level in (None, _LEVELS.ORT_ENABLE_LAYOUT, _LEVELS.ORT_ENABLE_ALL):
        level = _LEVELS.ORT_ENABLE_EXTENDED
    config = (*options.config, ("session.disable_prepacking", "1"))
    return replace(options, graph_optimization_level=level, config=config)


def store_declaration(arguments: Sequence[Any]) -> bytes:
    """The runtime's descriptions of tensors as bytes; what is no tensor is left out."""
    tensors = [(one.name, RUNTIME_TYPES[one.type].code, one.shape) for one in arguments if one.type in RUNTIME_TYPES]
    return declaring_model(tensors)


def restore_declaration(stored: bytes) -> Declaration:
    """What `store_declaration` stored.

    Raises: BackendError if it did not.
    """
    try:
        session = load_session(stored)
    except FOREIGN_EXCEPTIONS as error:
        raise BackendError(f"the runtime refuses the description of the outputs: {error}") from error
    return Declaration(arguments=session.inputs_meta, session=session)


def declare_outputs(
    stored: bytes | None, model: Model | None, *, parts: Declaration, names: Sequence[str], options: RuntimeOptions
) -> Declaration:
    """Return the outputs as ONNX Runtime declares them of the whole model, for those who do not run it as it came.

    Takes milliseconds.

    Args:
        stored: what `store_declaration` made of them, if it did.
        model: what was loaded, if it was; it is asked where nothing was stored.
        parts: what is declared of them by the graphs that run.
        names: of the outputs, in their order.
        options: that the runtime is asked with.
    """
    try:
        if stored is not None:
            found = restore_declaration(stored)
        elif model is not None:
            model.files.check_intact()
            found = declared_outputs(model, options)
        else:
            return parts
    except BackendError as error:
        logger.warning("only parts of the model can say what its outputs are: %s", error)
        return parts
    # What is no tensor has no shape, so that parts of the model describe it as well.
    known = {argument.name: argument for argument in (*parts.arguments, *found.arguments)}
    return Declaration(arguments=[known[name] for name in names], session=(parts.session, found.session))
