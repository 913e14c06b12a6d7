"""What one run keeps busy, and for how long: all that the model of energy needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from parallax.energy._model import ModelledEnergy, PowerModel, model_busy_energy
from parallax.schedule import CPU_BACKEND, Plan
from parallax.schedule.placement import JudgedPlacement


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Describes one run, measured or simulated."""

    makespan_ns: int
    """How long it takes."""
    core_ns: int
    """Busy time of the CPU's cores, added up."""
    device_ns: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Backend -> for how long it is busy."""
    touched_bytes: int = 0
    """What its operators read and write."""

    @classmethod
    def of_plan(
        cls, plan: Plan, *, makespan_ns: int, cost_ns: Sequence[int] | None = None, touched_bytes: int = 0
    ) -> Usage:
        """A run of a plan, each of whose segments keeps as many cores busy as it is wide, or its device.

        Args:
            plan: its segments' widths and backends.
            makespan_ns: how long the run takes: measured, or simulated (`parallax.schedule.simulate_plan`).
            cost_ns: for how long each segment computes, in place of the plan's own predictions.
            touched_bytes: what the run's operators read and write.
        """
        core_ns, device_ns = 0, dict[str, int]()
        busy_ns = [segment.cost_ns for segment in plan.segments] if cost_ns is None else cost_ns
        for segment, ns in zip(plan.segments, busy_ns, strict=True):
            if segment.backend == CPU_BACKEND:
                core_ns += ns * max(1, segment.width)
            else:
                device_ns[segment.backend] = device_ns.get(segment.backend, 0) + ns
        return cls(makespan_ns=makespan_ns, core_ns=core_ns, device_ns=device_ns, touched_bytes=touched_bytes)

    @classmethod
    def of_placement(cls, judged: JudgedPlacement, devices: Sequence[str], *, touched_bytes: int = 0) -> Usage:
        """A simulated run of a placement.

        Args:
            devices: the backends of the problem's devices, in their order.
            touched_bytes: what the run's operators read and write.
        """
        core_ns, device_ns = 0, dict[str, int]()
        for span in judged.run.timeline:
            region, ns = judged.tasks.region_of[span.segment], span.end_ns - span.start_ns
            if region is None:
                core_ns += span.width * ns
            else:
                backend = devices[judged.regions.device_of[region]]
                device_ns[backend] = device_ns.get(backend, 0) + ns
        return cls(makespan_ns=judged.makespan_ns, core_ns=core_ns, device_ns=device_ns, touched_bytes=touched_bytes)

    def times(self, factor: float) -> Usage:
        """The same on a machine that takes ``factor`` times as long for everything."""
        return replace(
            self,
            makespan_ns=round(self.makespan_ns * factor),
            core_ns=round(self.core_ns * factor),
            device_ns={backend: round(ns * factor) for backend, ns in self.device_ns.items()},
        )

    def energy(self, power: PowerModel) -> ModelledEnergy:
        """Its joules. Raises: ConfigError for a device whose power is not known."""
        return model_busy_energy(
            power,
            makespan_ns=self.makespan_ns,
            core_ns=self.core_ns,
            device_ns=self.device_ns,
            touched_bytes=self.touched_bytes,
        )
