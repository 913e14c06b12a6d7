"""The manifest: what a bundle is made of, what it was made from, and what it was made for.

``manifest.json`` begins with a digest over the bytes of the rest: whoever changes one of them, even a blank, is
noticed. It names every other file with its size and digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from parallax._hashing import sha256_hex
from parallax._json_records import write_record
from parallax._record import dataclass
from parallax.bundle._folder import data_path
from parallax.model import StoredWeight

BUNDLE_FORMAT_VERSION: Final = 9
"""Raised whenever a bundle written before must not be read any more."""

MAX_BYTES: Final = 1 << 56
"""More than any disk or address space holds, and so than any number in a manifest may say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the bundle."""

    path: str
    """Below the bundle's folder, with ``/``; its first part is the generation."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that the model was read from."""

    location: str
    """As the model states it; the model's own name for the model itself."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What was compiled."""

    path: str | None
    """Absolute; None where the model came as bytes."""
    files: tuple[SourceFile, ...]
    """The model first, then its external data."""

    @property
    def digest(self) -> str:
        """Return one hex digest over all of the source's files; their place does not count."""
        content = [[file.location if index else "", file.size, file.sha256] for index, file in enumerate(self.files)]
        return sha256_hex(json.dumps(content).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedDevice:
    """A device that a model was compiled for, as ``providers=`` named it."""

    name: str
    options: tuple[tuple[str, str], ...] = ()
    """By key; values as text."""
    memory_bytes: int | None = None
    """What it may hold; None: as much as it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What the caller asked for; enough to do the same again."""

    threads: int | None = None
    policy: str = "adaptive"
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    min_gain: str | None = None
    """Decimal, as ``repr`` writes it."""
    tune: bool = False
    memory_limit: int | None = None
    """Bytes into which the weights do not fit beside the rest, so that the model was cut by weight."""
    memory_budget: int | None = None
    """Bytes that runs of a session on it are to keep to, so that the plan is one that fits."""
    margin: str | None = None
    """Share of the budget that is left free, decimal, as ``repr`` writes it."""
    padding: str | None = None
    """How padding is run: "trim", or as it is."""
    split: str = "auto"
    """As it was asked for, where devices were: on the CPU alone, the others say the same."""
    devices: tuple[AskedDevice, ...] = ()
    """In order of preference."""
    slim: bool = False
    """Whether the plan and the graphs are of what `parallax.model.slim_model` left of the model."""
    objective: str = "latency"
    """What plans were compared by: time, joules ("energy"), or joules x seconds ("edp")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRecord:
    """Names the model is called with, and whether a run's length depends on data."""

    inputs: tuple[str, ...]
    overridable: tuple[str, ...]
    outputs: tuple[str, ...]
    unbounded: bool
    """It has loops, so that one run says nothing of the next one's duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device that runs a part of the plan, as it was found when the bundle was compiled."""

    name: str
    """As ``providers=`` names it."""
    backend: str
    """As it names itself."""
    version: str
    """Of the library that computes."""
    hardware: str
    """What it runs on, as its library calls it; "" of an emulated one."""
    opening_options: tuple[tuple[str, str], ...]
    """As its `parallax.backends.BackendInfo` had them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRecord:
    """What a segment that runs on a device is compiled with when the bundle is opened."""

    device: int
    """Index among the devices of the manifest."""
    is_emulated: bool
    """The processor computes its answers: its graph is optimised, and its weights packed, as those of the processor's
    own segments. Else it is the part as it was cut, which the device compiles when the bundle is opened."""
    operators: tuple[str, ...]
    """Types of those that it runs. Of each, in the same order, what follows: lists of plain values are read fastest."""
    element_types: tuple[str, ...]
    """It computes in."""
    flops: tuple[int, ...]
    touched_bytes: tuple[int, ...]
    """Read and written."""
    moved_bytes: tuple[int, ...]
    """Of each tensor that goes to the device's memory or comes from there."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of its inputs, as far as they were known when it was planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """One segment's optimised graph."""

    graph: str
    nodes: tuple[str, ...]
    """Names of the model's nodes in it, for messages; empty in a bundle of a whole model."""
    weights: tuple[StoredWeight, ...]
    """What of the file of its data is used as it lies there, so that the session can be lent it."""
    region: RegionRecord | None = None
    """None on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is known of a bundle without opening its other files."""

    format_version: int
    generation: str
    parallax_version: str
    runtime_version: str
    runtime_build: str
    machine: str
    """CPU, its instruction-set features, operating system."""
    cores: int
    """Cores the plan was made for."""
    options: CompileOptions
    source: SourceRecord
    structure_digest: str
    weight_bytes: int
    interface: InterfaceRecord
    trimming: str | None
    """How runs leave out padding, as JSON; None where they do not."""
    plan: str
    segments: tuple[SegmentRecord, ...]
    portable: str | None
    """The model as it came, if it was kept."""
    files: tuple[FileRecord, ...]
    devices: tuple[DeviceRecord, ...] = ()
    """Those that the plan's segments run on."""

    @property
    def held_weight_bytes(self) -> int:
        """Bytes of weights that devices take a form of their own from when the bundle is opened; an upper bound."""
        if not self.devices:
            return 0
        taken = {
            data_path(segment.graph)
            for segment in self.segments
            if segment.region is not None and not segment.region.is_emulated
        }
        return sum(record.size for record in self.files if record.path in taken)


def has_twice(names: Iterable[str]) -> bool:
    """Whether one of these names is there twice, which no list in a manifest may have."""
    listed = list(names)
    return len(set(listed)) != len(listed)


def render_manifest(manifest: Manifest) -> bytes:
    """A manifest as it lies on disk: a JSON object of a digest, and the manifest whose bytes it is of."""
    body = json.dumps(write_record(manifest), indent=1, ensure_ascii=True).encode()
    return b'{"sha256": "%s", "manifest": %s}\n' % (body_digest(body), body)


def body_digest(body: bytes) -> bytes:
    """What stands before the body of a manifest: SHA-256, hex."""
    return sha256_hex(body).encode()
