"""What a manifest may say. Its digest is no signature: whoever changes it can compute another one.

All numbers that anything is opened, mapped or started by are checked here, before any other file of the bundle is
looked at; `_content` compares them with what the other files say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from parallax.bundle._folder import GENERATION, data_path
from parallax.bundle._manifest import (
    BUNDLE_FORMAT_VERSION,
    MAX_BYTES,
    CompileOptions,
    InterfaceRecord,
    Manifest,
    SegmentRecord,
    SourceRecord,
    has_twice,
)
from parallax.errors import BundleError
from parallax.schedule import PAPER_POLICY, Plan

MAX_PATH: Final = 4096
"""Characters; more is refused by any system."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FRACTION: Final = re.compile(r"[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", re.ASCII)
_POLICIES: Final = ("adaptive", "sequential", PAPER_POLICY)


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises: BundleError naming the first thing that cannot be."""
    for complaint in _complaints(manifest):
        raise BundleError(complaint, where=where, fix="do not use this bundle: compile the model again")


def plan_path(generation: str) -> str:
    """Where a bundle's plan lies, below its folder."""
    return f"{generation}/plan.json"


def graph_path(generation: str, index: int) -> str:
    """Where the graph of its segment with that index lies; its data have the suffix ``.data``."""
    return f"{generation}/segments/{index:04}.onnx"


def portable_path(generation: str) -> str:
    """Where the model itself lies, if it is kept."""
    return f"{generation}/portable/model.onnx"


def declaration_path(generation: str) -> str:
    """Where lies what the runtime says of the model's outputs, if that can be kept."""
    return f"{generation}/outputs.onnx"


def names_path(generation: str) -> str:
    """Where the names of the model's tensors lie, if they were kept."""
    return f"{generation}/names.json.z"


def _complaints(manifest: Manifest) -> Iterator[str]:
    if manifest.format_version != BUNDLE_FORMAT_VERSION:
        yield f"format version {manifest.format_version} where {BUNDLE_FORMAT_VERSION} is current"
    if GENERATION.fullmatch(manifest.generation) is None:
        yield f"the manifest names an impossible folder {manifest.generation[:80]!r}"
    if not 1 <= manifest.cores <= Plan.MOST_CORES:
        yield f"{manifest.cores} cores are not within 1 to {Plan.MOST_CORES}"
    if not 0 <= manifest.weight_bytes <= MAX_BYTES:
        yield f"{manifest.weight_bytes} bytes of weights are not possible"
    yield from _file_complaints(manifest)
    yield from _option_complaints(manifest.options)
    yield from _source_complaints(manifest.source)
    yield from _interface_complaints(manifest.interface)
    if (manifest.trimming is None) is not (manifest.options.padding is None):
        yield "it is not said how padding is run, or that it was asked for"
    for segment in manifest.segments:
        yield from _weight_complaints(segment)
    if says_of_devices(manifest):
        from parallax.bundle._device_checks import device_complaints  # few bundles have any

        yield from device_complaints(manifest)


def says_of_devices(manifest: Manifest) -> bool:
    """Whether a manifest says anything of devices."""
    options = manifest.options
    return bool(
        manifest.devices
        or options.devices
        or options.split != "auto"
        or any(segment.region is not None for segment in manifest.segments)
    )


def _file_complaints(manifest: Manifest) -> Iterator[str]:
    generation = manifest.generation
    known: dict[str, int] = {}
    for record in manifest.files:
        if not _stays_inside(record.path, generation):
            yield f"the manifest names a file outside the bundle: {record.path[:200]!r}"
        if record.path in known or not 0 <= record.size <= MAX_BYTES:
            yield f"the manifest names {record.path[:200]!r} twice, or with an impossible size"
        if _SHA256.fullmatch(record.sha256) is None:
            yield f"the manifest has no digest of {record.path[:200]!r}"
        known[record.path] = record.size
    if not manifest.segments:
        yield "the manifest names no graph"
    graphs = [segment.graph for segment in manifest.segments]
    named = [manifest.plan, *graphs]
    if manifest.portable is not None:
        named.append(manifest.portable)
    for path in named:
        if path not in known:
            yield f"the manifest uses {path[:200]!r}, which is not among its files"
    if named[: 1 + len(graphs)] != [plan_path(generation), *(graph_path(generation, i) for i in range(len(graphs)))]:
        yield "plan and graphs do not lie where they belong"
    if manifest.portable not in (None, portable_path(generation)):
        yield "the model does not lie where it belongs"
    used = {*named, declaration_path(generation), names_path(generation), *(data_path(graph) for graph in graphs)}
    kept = f"{generation}/portable/"
    for path in known:
        if path not in used and (manifest.portable is None or not path.startswith(kept)):
            yield f"no part of the bundle uses {path[:200]!r}"


def _stays_inside(path: str, generation: str) -> bool:
    """Whether a path can only mean a file below the generation's folder."""
    parts = path.split("/")
    if len(path) > MAX_PATH or not _can_be_encoded(path):
        return False
    if len(parts) < 2 or parts[0] != generation:
        return False
    # Backslashes and colons separate folders and drives elsewhere.
    return not any(part in ("", ".", "..") or any(mark in part for mark in "\\:\0") for part in parts)


def _can_be_encoded(path: str) -> bool:
    """Whether it has a form in which a system takes it; not so with the half of a pair of surrogates."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _option_complaints(options: CompileOptions) -> Iterator[str]:
    if options.threads is not None and not 1 <= options.threads <= Plan.MOST_CORES:
        yield f"it was compiled for {options.threads} threads, which is not possible"
    if not _is_policy(options) or len(options.policy) > MAX_PATH:
        yield f"it was compiled by an unknown policy {options.policy[:80]!r}"
    if options.min_gain is not None and not _is_fraction(options.min_gain):
        yield f"it was compiled with min_gain={options.min_gain[:80]!r}, which is no fraction from 0 to below 1"
    if options.memory_limit is not None and not 0 <= options.memory_limit <= MAX_BYTES:
        yield f"it was compiled for {options.memory_limit} bytes of memory, which is not possible"
    if options.memory_budget is not None and not 1 <= options.memory_budget <= MAX_BYTES:
        yield f"it was compiled for a budget of {options.memory_budget} bytes, which is not possible"
    if options.margin is not None and not _is_fraction(options.margin):
        yield f"it was compiled with margin={options.margin[:80]!r}, which is no fraction from 0 to below 1"
    if (options.margin is None) is not (options.memory_budget is None):
        yield "it was compiled for a budget without a margin, or for a margin of none"
    if options.padding not in (None, "trim"):
        yield f"it was compiled with an unknown way to run padding {options.padding[:80]!r}"
    if options.objective not in ("latency", *Plan.ENERGY_OBJECTIVES):
        yield f"it was compiled for an unknown objective {options.objective[:80]!r}"
    if has_twice(name for name, _ in options.shapes):
        yield "it was compiled for two shapes of one input"
    if any(dim < 0 for _, shape in options.shapes for dim in shape):
        yield "it was compiled for a shape with a negative size"


def _is_policy(options: CompileOptions) -> bool:
    if options.policy.partition(",")[0] in _POLICIES:
        return True
    if not options.devices:
        return False
    from parallax.bundle._device_checks import is_placing_policy

    return is_placing_policy(options.policy)


def _is_fraction(text: str) -> bool:
    return len(text) <= 40 and _FRACTION.fullmatch(text) is not None and float(text) < 1


def _source_complaints(source: SourceRecord) -> Iterator[str]:
    if not source.files:
        yield "the manifest does not say what was compiled"
    for file in source.files:
        if not 0 <= file.size <= MAX_BYTES or _SHA256.fullmatch(file.sha256) is None:
            yield f"the manifest has no size or digest of {file.location[:200]!r}, which was compiled"


def _interface_complaints(interface: InterfaceRecord) -> Iterator[str]:
    if has_twice([*interface.inputs, *interface.overridable]):
        yield "the manifest names an input twice"


def _weight_complaints(segment: SegmentRecord) -> Iterator[str]:
    if has_twice(weight.name for weight in segment.weights):
        yield f"a weight of {segment.graph!r} is named twice"
    for weight in segment.weights:
        if not 0 <= weight.offset <= MAX_BYTES or any(not 0 <= dim <= MAX_BYTES for dim in weight.shape):
            yield f"weight {weight.name[:80]!r} has an impossible place or shape"
