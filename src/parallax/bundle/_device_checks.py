"""What a bundle may say of devices and of what runs there; loaded for bundles that say anything.

Whoever wrote a bundle may have written anything here, too. Names and options lead to libraries and files that a device
is opened from: which of them are followed on a bundle's word alone says `is_safe_to_open`. All others must be given by
the caller of the session.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from parallax.bundle._manifest import (
    MAX_BYTES,
    AskedDevice,
    CompileOptions,
    DeviceRecord,
    Manifest,
    RegionRecord,
    has_twice,
)
from parallax.engine import find_transfers
from parallax.schedule import CPU_BACKEND, Plan

_MOST_DEVICES: Final = 64
_MOST_OPTIONS: Final = 64
_MOST_CHARACTERS: Final = 4096
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}")
_KEY: Final = re.compile(r"[A-Za-z0-9_.:-]{1,200}", re.ASCII)
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}", re.ASCII)
"""Of a backend, a provider or a device that comes with one. What is a path, or has a file in it, is none."""
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?(e[-+]?[0-9]{1,3})?", re.ASCII)
_POLICY: Final = re.compile(r"[a-z][a-z0-9-]{0,63}(,[a-z_]{1,40}=[A-Za-z0-9.+-]{1,40})*", re.ASCII)

_FROM_FILES: Final = "learned"
"""The placer whose settings name files."""

_SAFE_OPTIONS: Final = frozenset({"speed", "host_flops", "float16", "device_id"})
"""Numbers. Others name files, folders or libraries, or are passed to what may load some."""

_HAS_PRECISION: Final = re.compile(r"(emulated:[^?]+)\?float16=(?:[01]|true|false)", re.ASCII)
"""The name of an emulated device with the one option in it that leads to no file."""

_SPLITS: Final = ("auto", "never")


def is_safe_to_open(device: AskedDevice) -> bool:
    """Whether a device may be opened because a bundle names it: neither its name nor an option leads to a file."""
    found = _HAS_PRECISION.fullmatch(device.name)
    name = device.name if found is None else found[1]
    if _PLAIN_NAME.fullmatch(name) is None or name.endswith(".json"):
        return False
    return all(key in _SAFE_OPTIONS and _NUMBER.fullmatch(value) is not None for key, value in device.options)


def is_placing_policy(policy: str) -> bool:
    """Whether that may name what placed a model on devices: a placer whose settings are numbers and words."""
    return _POLICY.fullmatch(policy) is not None and policy.partition(",")[0] != _FROM_FILES


def device_complaints(manifest: Manifest) -> Iterator[str]:
    """What is wrong with all that a manifest says of devices, but for what other files say."""
    yield from _option_complaints(manifest.options)
    asked = {device.name for device in manifest.options.devices}
    if len(manifest.devices) > _MOST_DEVICES or has_twice(device.name for device in manifest.devices):
        yield "the manifest names too many devices, or one of them twice"
    if has_twice(device.backend for device in manifest.devices):
        yield "the manifest has two devices of one name"
    for device in manifest.devices:
        yield from _record_complaints(device)
        if device.name not in asked:
            yield f"it needs {device.name[:80]!r}, which it was not compiled for"
    used = {segment.region.device for segment in manifest.segments if segment.region is not None}
    if used != set(range(len(manifest.devices))):
        yield "the segments do not run on the devices that the manifest names"
    for segment in manifest.segments:
        if segment.region is not None:
            yield from _region_complaints(segment.region, segment.graph)


def _option_complaints(options: CompileOptions) -> Iterator[str]:
    if options.split not in _SPLITS or (options.split != "auto" and not options.devices):
        yield f"it was compiled with split={options.split[:80]!r}, which is not possible"
    if len(options.devices) > _MOST_DEVICES or has_twice(device.name for device in options.devices):
        yield "it was compiled for too many devices, or for one of them twice"
    for device in options.devices:
        if _TEXT.fullmatch(device.name) is None or device.name == CPU_BACKEND:
            yield "it was compiled for a device of an impossible name"
        if device.memory_bytes is not None and not 1 <= device.memory_bytes <= MAX_BYTES:
            yield f"it was compiled for {device.memory_bytes} bytes of a device's memory, which is not possible"
        yield from _text_complaints(device.options)


def _record_complaints(device: DeviceRecord) -> Iterator[str]:
    if _TEXT.fullmatch(device.name) is None or _TEXT.fullmatch(device.backend) is None:
        yield "the manifest has a device of an impossible name"
    if device.backend == CPU_BACKEND:
        yield "the manifest calls the processor a device"
    if _TEXT.fullmatch(device.version) is None or (device.hardware and _TEXT.fullmatch(device.hardware) is None):
        yield f"the manifest has an impossible version of {device.name[:80]!r}"
    yield from _text_complaints(device.opening_options)
    for key, value in device.opening_options:
        if key not in _SAFE_OPTIONS or _NUMBER.fullmatch(value) is None or not 0 < float(value) < math.inf:
            yield f"the manifest opens a device with {key[:80]!r}={value[:80]!r}, which none asks for"


def _text_complaints(options: tuple[tuple[str, str], ...]) -> Iterator[str]:
    if len(options) > _MOST_OPTIONS or has_twice(key for key, _ in options):
        yield "a device has too many options, or one of them twice"
    for key, value in options:
        if _KEY.fullmatch(key) is None or (value and _TEXT.fullmatch(value) is None):
            yield f"a device has an impossible option {key[:80]!r}"


def _region_complaints(region: RegionRecord, graph: str) -> Iterator[str]:
    numbers = (*region.moved_bytes, *region.flops, *region.touched_bytes)
    if numbers and not 0 <= min(numbers) <= max(numbers) <= MAX_BYTES:
        yield f"{graph!r} does an impossible amount of work"
    if len({len(region.operators), len(region.element_types), len(region.flops), len(region.touched_bytes)}) > 1:
        yield f"{graph!r} does not say of each operator how much work it is"
    if any(len(name) > _MOST_CHARACTERS for name in {*region.operators, *region.element_types}):
        yield f"{graph!r} has an operator or a type of an impossible name"
    if has_twice(name for name, _ in region.shapes):
        yield f"{graph!r} has two shapes of one input"
    if any(not 0 <= size <= MAX_BYTES for _, shape in region.shapes for size in shape):
        yield f"{graph!r} has an impossible shape of an input"


def plan_complaints(manifest: Manifest, plan: Plan) -> Iterator[str]:
    """Where a plan and its manifest do not agree on what runs on devices."""
    has_regions = any(record.region is not None for record in manifest.segments)
    if plan.is_rewritten and not has_regions and not plan.is_sliced:
        yield "the plan is of a model that was rewritten for a device, and has none"
    if plan.own_shapes or (has_regions and (plan.rows_rounds != 1 or plan.stretches)):
        yield "the plan is of a model that was rewritten as no bundle's is"
    if has_regions and plan.provenance.source == "memory":
        yield "the plan is for little memory, and has a device"
    moved = find_transfers(plan, manifest.interface.outputs)
    for segment, record, transfers in zip(plan.segments, manifest.segments, moved, strict=True):
        region = record.region
        if region is None:
            if segment.backend != CPU_BACKEND or segment.width < 1:
                yield f"segment {segment.name!r} of the plan is for a device, and its graph is not"
            continue
        device = manifest.devices[region.device]
        if segment.backend not in (device.backend, device.name) or segment.bodies:
            yield f"segment {segment.name!r} of the plan is not for the device that its graph is for"
        if len(region.moved_bytes) != len(transfers.inputs) + len(transfers.outputs):
            yield f"segment {segment.name!r} of the plan moves other tensors than its graph does"
        if not {name for name, _ in region.shapes} <= set(segment.inputs):
            yield f"segment {segment.name!r} of the plan has shapes of what it does not read"
