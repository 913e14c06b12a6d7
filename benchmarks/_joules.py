"""Modelled joules of simulated runs: what was busy for how long, and how two runs compare, whatever the constants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from parallax.energy import Band, ModelledEnergy, PowerModel, model_busy_energy
from parallax.schedule._simulate import SimulatedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """One run."""

    makespan_ns: int
    core_ns: int
    """Of the CPU's cores, added up."""
    device_ns: int = 0
    touched_bytes: int

    @classmethod
    def of_run(cls, run: SimulatedRun, *, transfer_ns: int, touched_bytes: int) -> Busy:
        """A simulated one: what has width 0 is the device's.

        Args:
            transfer_ns: of the device's time, that in which a core of the CPU copies instead.
        """
        core_ns = sum(span.width * (span.end_ns - span.start_ns) for span in run.timeline)
        on_device = sum(span.end_ns - span.start_ns for span in run.timeline if span.width == 0)
        return cls(
            makespan_ns=run.makespan_ns,
            core_ns=core_ns + transfer_ns,
            device_ns=max(0, on_device - transfer_ns),
            touched_bytes=touched_bytes,
        )

    def energy(self, power: PowerModel) -> ModelledEnergy:
        """Its joules on a machine with one device."""
        (device,) = power.device_w
        return model_busy_energy(
            power,
            makespan_ns=self.makespan_ns,
            core_ns=self.core_ns,
            device_ns={device: self.device_ns},
            touched_bytes=self.touched_bytes,
        )


def share_of(run: Busy, other: Busy, power: PowerModel) -> Band:
    """The joules of a run as a share of another one's, on one machine of which the constants are not known exactly.

    Both runs are on the same machine, so that the constants are the same in both. The share is monotone in each of
    them, so that its least and its largest value are among those where each constant is at an end of its band.
    """

    def share(*constants: float) -> float:
        exact = _exactly(power, *constants)
        return run.energy(exact).total.typical / other.energy(exact).total.typical

    (device_w,) = power.device_w.values()
    bands = (power.static_w, power.core_w, device_w, power.joules_per_byte)
    ends = [share(*constants) for constants in itertools.product(*((band.low, band.high) for band in bands))]
    typical = share(*(band.typical for band in bands))
    return Band(low=min(*ends, typical), typical=typical, high=max(*ends, typical))


def _exactly(power: PowerModel, static_w: float, core_w: float, device_w: float, joules_per_byte: float) -> PowerModel:
    (device,) = power.device_w
    return PowerModel(
        static_w=Band.exactly(static_w),
        core_w=Band.exactly(core_w),
        device_w={device: Band.exactly(device_w)},
        joules_per_byte=Band.exactly(joules_per_byte),
    )
