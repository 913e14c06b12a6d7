"""What the runtime declares of a model's outputs, for sessions that do not run the model as it came."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from parallax.engine import Declaration, declared_outputs, restore_declaration
from parallax.errors import BackendError
from parallax.model import Model
from parallax.session._runtime_options import runtime_options
from parallax.session._state import Opened

logger = logging.getLogger(__name__)


def declare_outputs(
    opened: Opened, model: Model | None, *, parts: Declaration, names: Sequence[str], session_options: Any
) -> Declaration:
    """The outputs as ONNX Runtime declares them of the whole model. Takes milliseconds.

    Args:
        model: what the session loaded, if it did.
        parts: what is declared of them by the graphs that the session runs.
        names: of the outputs, in their order.
        session_options: the caller's, or None.
    """
    try:
        if opened.stored_declaration is not None:
            found = restore_declaration(opened.stored_declaration)
        elif model is not None:
            model.files.check_intact()
            found = declared_outputs(model, runtime_options(session_options))
        else:
            return parts
    except BackendError as error:
        logger.warning("only parts of the model can say what its outputs are: %s", error)
        return parts
    # What is no tensor has no shape, so that parts of the model describe it as well.
    known = {argument.name: argument for argument in (*parts.arguments, *found.arguments)}
    return Declaration(arguments=[known[name] for name in names], session=(parts.session, found.session))
