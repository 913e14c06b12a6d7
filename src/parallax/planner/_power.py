"""What the machine of a plan draws: by the power blocks of emulated devices, or as machines of its kind do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallax.backends.emulated import PREFIX, DeviceProfile, EmulatedBackend, FigureBand
from parallax.energy import Band, PowerModel, unknown_host
from parallax.errors import ConfigError
from parallax.graph import OpGraph, node_work
from parallax.planner._request import PlanDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledMachine:
    """A machine whose joules are modelled."""

    power: PowerModel
    time_factor: float = 1.0
    """How many times as long as here a run takes on it."""
    what: str
    """Which one it is, for people."""


def modelled_machine(devices: Mapping[str, PlanDevice], *, cores: int) -> ModelledMachine | str:
    """The machine that plans with these devices are for; or why nothing is known of what it draws.

    Args:
        devices: by the names they were asked for.
        cores: of this machine's that plans may use.
    """
    if not devices:
        return ModelledMachine(
            power=unknown_host(cores),
            what=f"some machine of which {cores} {'core is' if cores == 1 else 'cores are'} used",
        )
    profiles: dict[str, DeviceProfile] = {}
    factor: float | None = None
    for asked, device in devices.items():
        backend = device.backend
        if not isinstance(backend, EmulatedBackend):
            return f"nothing is known of what {asked} draws"
        if backend.profile.power is None:
            return f"the profile of {asked} has no power block"
        if not math.isclose(backend.speed, backend.host_flops / backend.profile.cpu_gemm_flops):
            return f"{asked} has a speed that was set by hand, which does not say how long its phone would take"
        factor = backend.speed if factor is None else factor
        profiles[backend.info.name] = backend.profile
    first, *others = profiles.values()
    assert factor is not None
    # What takes a second here takes so many times as long on the device's own processor.
    return ModelledMachine(power=power_of(first, cores=cores, others=others), time_factor=factor, what=first.title)


def power_of(profile: DeviceProfile, *, cores: int, others: Sequence[DeviceProfile] = ()) -> PowerModel:
    """The power of a profile's device, whose processor is stood for by so many equal cores that are together as fast.

    Together they draw what all of the profile's cores draw.

    Args:
        others: further accelerators beside the same processor.

    Raises: ConfigError where a profile has no power block.
    """
    if profile.power is None or any(other.power is None for other in others):
        raise ConfigError("a profile without a power block", fix="see the profiles of Parallax")
    together = Band.exactly(0.0)
    for cluster, band in zip(profile.cpu, profile.power.core_w, strict=True):
        together = together + _band(band).times(cluster.count)
    device_w = {
        f"{PREFIX}:{entry.name}": _band(entry.power.device_w) for entry in (profile, *others) if entry.power is not None
    }
    return PowerModel(
        static_w=_band(profile.power.static_w),
        core_w=together.times(1 / cores),
        device_w=device_w,
        joules_per_byte=_band(profile.power.joules_per_byte),
    )


def _band(figure: FigureBand) -> Band:
    return Band(low=figure.low, typical=figure.typical, high=figure.high)


def touched_bytes(graph: OpGraph) -> int:
    """What the operators of a model read and write in a run, as if no cache held them."""
    return sum(node_work(graph, node).bytes or 0 for node in graph.nodes)
