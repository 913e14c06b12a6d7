"""Models that stay whole: the plan that leaves one to the runtime's own session."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnxruntime

from parallax.machine import available_cores
from parallax.profile import machine_fingerprint
from parallax.schedule import PLAN_FORMAT_VERSION, Candidate, Plan, Provenance, Segment

if TYPE_CHECKING:
    from parallax.model import Model, ModelSummary


def whole_plan(
    model: Model | ModelSummary | None,
    reason: str,
    *,
    cores: int | None = None,
    width: int | None = None,
    provenance: Provenance | None = None,
) -> Plan:
    """The plan that leaves the model to the wrapped runtime's own session.

    Args:
        model: None where there is no graph to look at (ORT format).
        width: threads; default the cores allowed.
    """
    cores = cores or available_cores()
    if provenance is None:
        provenance = make_provenance("default", reason)
    segment = Segment(
        index=0,
        name="whole_model",
        nodes=() if model is None else tuple(range(model.survey.node_count)),
        inputs=() if model is None else model.survey.inputs,
        outputs=() if model is None else model.survey.outputs,
        predecessors=(),
        width=min(width or cores, cores),
        priority=0,
        lane=None,
        cost_ns=0,
        reason=reason,
    )
    return Plan(
        format_version=PLAN_FORMAT_VERSION,
        structure_digest="" if model is None else model.structure_digest,
        policy="sequential",
        cores=cores,
        lanes=1,
        backfill=True,
        segments=(segment,),
        provenance=provenance,
    )


def fed_in_full(plan: Plan, model: Model) -> Plan:
    """A plan of the whole model for the engine to run: unlike the runtime's own session, its segment is fed nothing but
    what the plan names, so that this names what callers may feed in place of initializers, too."""
    fed = tuple([info.name for info in (*model.graph.inputs, *model.graph.overridable)])
    return replace(plan, segments=tuple([replace(segment, inputs=fed) for segment in plan.segments]))


def make_provenance(
    source: str,
    reason: str,
    *,
    whole_ns: int | None = None,
    chosen_ns: int | None = None,
    candidates: tuple[Candidate, ...] = (),
) -> Provenance:
    """A provenance of this machine and runtime."""
    return Provenance(
        source=source,
        whole_ns=whole_ns,
        chosen_ns=chosen_ns,
        candidates=candidates,
        runtime_version=onnxruntime.__version__,
        machine=machine_fingerprint(),
        reason=reason,
    )
