"""What the runtime says of a model's outputs, which neither parts nor an optimised graph need know as well."""

from __future__ import annotations

from parallax.backends.ort import RuntimeOptions
from parallax.engine import declared_outputs, store_declaration
from parallax.model import Model
from parallax.schedule import Plan


def describe_outputs(model: Model, plan: Plan) -> bytes:
    """What the runtime says of a model's outputs, to be kept.

    Raises: BackendError if the runtime refuses the model.
    """
    # A plan for little memory must be compiled in little, too.
    return store_declaration(declared_outputs(model, RuntimeOptions(), optimises=not plan.is_streamed).arguments)
