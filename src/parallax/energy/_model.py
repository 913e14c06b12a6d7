"""Energy of a run as a model has it: constants with a band, times what the simulator says is busy.

``energy = static power x makespan + busy power x busy time + energy per byte x bytes``. So what runs side by side
lowers the first term only, and a device that is quicker but hungrier may cost more than the CPU that is slower.
Modelled joules are no measurement: they are to be shown with their band, and marked as modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from parallax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A figure that is not known exactly: it lies between ``low`` and ``high``, probably near ``typical``."""

    low: float
    typical: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.typical <= self.high:
            raise ConfigError(
                f"a band from {self.low} over {self.typical} to {self.high}",
                fix="give 0 <= low <= typical <= high",
            )

    @classmethod
    def exactly(cls, value: float) -> Band:
        """A figure that is known."""
        return cls(low=value, typical=value, high=value)

    def __add__(self, other: Band) -> Band:
        return Band(low=self.low + other.low, typical=self.typical + other.typical, high=self.high + other.high)

    def times(self, factor: float) -> Band:
        """The band of a multiple; ``factor`` is at least 0."""
        return Band(low=self.low * factor, typical=self.typical * factor, high=self.high * factor)


NOTHING: Final = Band.exactly(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """What a machine draws, in watts, and joules per byte."""

    static_w: Band
    """As long as a run lasts, whatever computes: board, screen, memory refresh."""
    core_w: Band
    """Of each busy core of the CPU, beyond that."""
    device_w: Mapping[str, Band] = field(default_factory=lambda: MappingProxyType({}))
    """Backend -> of the device while it computes, beyond that."""
    joules_per_byte: Band = NOTHING
    """Of memory that is read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledEnergy:
    """Joules of one run by their cause. Modelled, not measured."""

    static: Band
    cores: Band
    devices: Band
    memory: Band

    @property
    def total(self) -> Band:
        """Return the sum of all parts."""
        return self.static + self.cores + self.devices + self.memory


def model_busy_energy(
    power: PowerModel,
    *,
    makespan_ns: int,
    core_ns: int,
    device_ns: Mapping[str, int] = MappingProxyType({}),
    touched_bytes: int = 0,
) -> ModelledEnergy:
    """The energy of a run of which it is known what was busy for how long.

    Args:
        power: of the machine.
        makespan_ns: how long the run takes.
        core_ns: busy time of the CPU's cores, added up.
        device_ns: backend -> how long it computes.
        touched_bytes: what the run's operators read and write.

    Raises: ConfigError for a device whose power is not known.
    """
    unknown = sorted(set(device_ns) - set(power.device_w))
    if unknown:
        raise ConfigError(
            f"the power of {unknown[0]} is not known",
            fix="give it in PowerModel.device_w, or in the power block of the device's profile",
        )
    return ModelledEnergy(
        static=power.static_w.times(makespan_ns / 1e9),
        cores=power.core_w.times(core_ns / 1e9),
        devices=sum((power.device_w[backend].times(ns / 1e9) for backend, ns in device_ns.items()), NOTHING),
        memory=power.joules_per_byte.times(touched_bytes),
    )
