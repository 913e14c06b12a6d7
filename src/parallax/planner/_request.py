"""What a planner is asked, and what it answers: plain records, so that whoever plans needs no session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallax.backends import Backend, FaultPolicy
from parallax.backends.ort import RuntimeOptions
from parallax.model import Model
from parallax.schedule import Plan, Provenance
from parallax.schedule.placement import Placer

if TYPE_CHECKING:
    from parallax.memory import MemoryRequirement

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all) during long work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDevice:
    """An accelerator that a plan may use, opened."""

    backend: Backend
    budget_bytes: int | None = None
    """What it may hold of the model; None: as much as it likes."""
    key: str = ""
    """Names it, with its options, in the key of plans that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Asks the planner how to run this model here. See ``parallax.Options`` for what is named as there."""

    model: Model
    """In the shapes to plan for."""
    cores: int
    """How many of the processor's the plan may use."""
    policy: str = "adaptive"
    placer: Placer | None = None
    """What shares the model between the CPU and devices; None: as the policy "adaptive" or "sequential" does."""
    split: str = "auto"
    min_gain: float | None = None
    objective: str = "latency"
    """What plans are compared by: time, or modelled joules ("energy"), or joules x seconds ("edp")."""
    tune: bool = False
    calibration: Mapping[str, Any] | None = None
    """Feeds to tune with; None: random ones."""
    cache_dir: Path | None = None
    progress: Progress | None = None
    backends: tuple[str, ...] | None = None
    """Names of what may compute the whole model in place of ONNX Runtime's CPU kernels, where that is measured to be
    quicker; None: those that are installed."""
    devices: Mapping[str, PlanDevice] = field(default_factory=dict)
    """By the names they were asked for, in order of preference."""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    """What segments inherit of the caller's session options."""
    has_runtime_options: bool = False
    """Whether these are the caller's: costs measured with them are not kept."""
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    shares_rows: bool = True
    """Whether plans for the model split by rows are of use."""
    computes_constants: bool = True
    """Whether plans for the model with its constants computed are of use."""
    plans_bodies: bool = True
    """Whether bodies of control flow may get plans of their own."""

    @property
    def open_backends(self) -> dict[str, Backend]:
        """The devices' backends, by the names they were asked for."""
        return {name: device.backend for name, device in self.devices.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """The planner's answer."""

    plan: Plan
    model: Model
    """The model whose nodes the plan speaks of: the one that was asked for, or that with its constants computed or its
    layers split by rows."""

    @property
    def provenance(self) -> Provenance:
        """Where the plan is from, and what speaks for it."""
        return self.plan.provenance

    @property
    def requirement(self) -> MemoryRequirement:
        """What one run of the plan holds, in the shapes that the model has. Takes milliseconds."""
        from parallax.planner._requirement import estimate_graph

        return estimate_graph(self.model.inferred(), self.plan)
