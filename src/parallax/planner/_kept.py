"""Plans that tuning found and kept: under which key, and whether one is of use now."""

from __future__ import annotations

import logging
from typing import Any

import onnxruntime

from parallax.errors import PlanError
from parallax.planner._backends import backend_tables, backend_versions, wanted_backends
from parallax.planner._remembered import may_be_remembered, note_remembered
from parallax.planner._request import PlanRequest
from parallax.planner._rows import planned_model
from parallax.profile import Cache, machine_fingerprint
from parallax.schedule import PLAN_FORMAT_VERSION, Plan, verify_plan

logger = logging.getLogger(__name__)

_LEVEL: Any = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
"""The runtime's default: a request that says nothing is the one that names it."""


def plan_key(request: PlanRequest) -> str:
    """Under which a tuned plan is kept: everything that measured figures depend on."""
    runtime = request.runtime
    backends = wanted_backends(request.backends)
    # What cannot run plans of bodies must not be given one, nor take the place of one.
    without_bodies = not request.plans_bodies and any(node.bodies for node in request.model.graph.nodes)
    placed = () if request.placer is None else (f"placer {request.policy}",)
    return "|".join(
        (
            *placed,
            *((f"objective {request.objective}",) if request.objective in Plan.ENERGY_OBJECTIVES else ()),
            *(("bodies as they are",) if without_bodies else ()),
            *(() if request.shares_rows or not request.devices else ("rows as they are",)),
            *(() if request.computes_constants or not request.devices else ("constants as they are",)),
            f"plan-{PLAN_FORMAT_VERSION}",
            request.model.structure_digest,
            machine_fingerprint(),
            f"{request.cores} threads",
            f"optimiser {_LEVEL if runtime.graph_optimization_level is None else runtime.graph_optimization_level}",
            f"config {runtime.config}",
            f"backends {backend_versions(backends)}",
            f"devices {'; '.join(device.key for device in request.devices.values())}",
            f"tables {backend_tables([*backends, *request.devices])}",
        )
    )


def remember_plan(request: PlanRequest, plan: Plan) -> None:
    """Keep the plan that tuning found, for `remembered_plan` on this machine."""
    Cache(request.cache_dir).store(plan_key(request), plan.to_json())
    note_remembered(request.model.structure_digest, request.cache_dir)


def remembered_plan(request: PlanRequest) -> Plan | None:
    """The plan that tuning found earlier for this model on this machine, if it is still readable."""
    model = request.model
    if not may_be_remembered(model.structure_digest, request.cache_dir):
        return None
    stored = Cache(request.cache_dir).load(plan_key(request))
    if stored is None:
        return None
    try:
        plan = Plan.from_json(stored)
        if plan.rows_permille is not None and not request.shares_rows:
            return None
        if plan.constants_shapes is not None and not request.computes_constants:
            return None
        verify_plan(plan, len(planned_model(model, plan).graph.nodes))
    except PlanError as error:
        logger.warning("ignoring a kept plan that cannot be read: %s", error)
        return None
    # Earlier versions kept what a busy machine had spoiled: it says nothing of the model.
    is_of_use = plan.structure_digest == model.structure_digest and plan.provenance.is_conclusive
    return plan if is_of_use else None
