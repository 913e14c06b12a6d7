"""What of a plan runs on devices, as a bundle records it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from parallax._record import dataclass
from parallax.bundle._manifest import DeviceRecord, Manifest, RegionRecord
from parallax.engine import segment_works, static_shapes
from parallax.schedule import CPU_BACKEND

if TYPE_CHECKING:
    from parallax.backends import Backend
    from parallax.graph import OpGraph
    from parallax.schedule import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParts:
    """Devices that a plan uses, and what it runs there."""

    devices: tuple[DeviceRecord, ...]
    regions: Mapping[int, RegionRecord]
    """By index of the segment."""


def describe_parts(plan: Plan, graph: OpGraph, backends: Mapping[str, Backend]) -> DeviceParts:
    """What a plan runs on devices.

    Args:
        graph: with types, in the shapes that were planned for, of the model whose nodes the plan speaks of.
        backends: the devices, by the names that they were asked for.
    """
    delegated = [segment for segment in plan.segments if segment.backend != CPU_BACKEND]
    works = segment_works(plan, graph, [segment.index for segment in delegated])
    named = {name: name for name in backends}
    # Segments name a backend as it names itself, which may not be how it was asked for.
    named |= {backend.info.name: name for name, backend in reversed(list(backends.items()))}
    used = list(dict.fromkeys(named[segment.backend] for segment in delegated))
    regions = {}
    for segment in delegated:
        device, work = named[segment.backend], works[segment.index]
        regions[segment.index] = RegionRecord(
            device=used.index(device),
            is_emulated=backends[device].info.is_emulated,
            operators=tuple([one.op_type for one in work.operators]),
            element_types=tuple([one.element_type for one in work.operators]),
            flops=tuple([one.flops for one in work.operators]),
            touched_bytes=tuple([one.touched_bytes for one in work.operators]),
            moved_bytes=work.moved_bytes,
            shapes=tuple(static_shapes(graph, segment.inputs).items()),
        )
    return DeviceParts(devices=tuple([_record(name, backends[name]) for name in used]), regions=regions)


def _record(name: str, backend: Backend) -> DeviceRecord:
    info = backend.info
    return DeviceRecord(
        name=name,
        backend=info.name,
        version=info.version,
        hardware="" if info.is_emulated else info.device,
        opening_options=info.opening_options,
    )


def device_differences(manifest: Manifest, backends: Mapping[str, Backend]) -> tuple[str, ...]:
    """Say in which ways devices that are open here are not those that a bundle was made for.

    Args:
        backends: by the names that the manifest gives them; those that are not there are not compared.
    """
    found = []
    for made in manifest.devices:
        backend = backends.get(made.name)
        if backend is None:
            continue
        here = _record(made.name, backend)
        for what, before, now in (
            ("name", made.backend, here.backend),
            ("version", made.version, here.version),
            ("hardware", made.hardware, here.hardware),
        ):
            if before != now:
                found.append(f"{what} of {made.name}: made for {before!r}, here is {now!r}")
    return tuple(found)
