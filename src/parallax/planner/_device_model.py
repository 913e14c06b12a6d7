"""Plans for devices are made for the model with its constants computed, as a converter for a device would leave it.

The whole model on the CPU stays as it is: the runtime computes constants itself, and fuses operators by patterns that
the shape arithmetic of exporters is a part of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from parallax.errors import BackendError
from parallax.model import Model
from parallax.planner._constants import with_constants
from parallax.planner._request import PlanRequest
from parallax.planner._rows import can_share_rows, in_rows_shapes, open_inputs, open_shapes
from parallax.profile import fusion_safe_tensors
from parallax.schedule import CPU_BACKEND, Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceModel:
    """The model that a plan with devices is made for."""

    model: Model
    original: Model
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of inputs that the original leaves open, those in which constants were computed."""

    def plan(self, plan: Plan) -> Plan:
        """A plan of this model as one of the original."""
        return replace(plan, structure_digest=self.original.structure_digest, constants_shapes=self.shapes)


def model_for_devices(request: PlanRequest, shapes: Mapping[str, tuple[int, ...]] | None = None) -> DeviceModel | None:
    """The request's model with its constants computed, for devices; None where it is planned as it is.

    That is so where there are no constants to compute or not all shapes of inputs are known, where constants that
    follow from no shape would tie a model of open shapes to one of them, and where the runtime refuses what comes out.

    Args:
        shapes: of inputs that the model leaves open.
    """
    model, given = request.model, shapes or {}
    if not request.computes_constants or request.split == "never" or not can_share_rows(model, given):
        return None
    computed = with_constants(in_rows_shapes(model, given))
    if computed is None or (not computed.by_shapes and (model.shapes or open_inputs(model))):
        return None
    if _is_refused(computed.model):
        return None
    return DeviceModel(model=computed.model, original=model, shapes=tuple(open_shapes(model, given).items()))


def _is_refused(model: Model) -> bool:
    """Whether the runtime, which then knows more shapes, finds that a body contradicts what it declares."""
    if not any(node.bodies for node in model.graph.nodes):
        return False
    try:
        fusion_safe_tensors(model)
    except BackendError as error:
        logger.info("constants are left in the graph: %s", error)
        return True
    return False


def uses_devices(plan: Plan) -> bool:
    """Whether a device runs some of it."""
    return any(
        segment.backend != CPU_BACKEND or any(uses_devices(body.plan) for body in segment.bodies)
        for segment in plan.segments
    )
