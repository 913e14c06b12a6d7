"""The manifest: what a bundle is made of, what it was made from, and what it was made for.

``manifest.json`` begins with a digest over the bytes of the rest: whoever changes one of them, even a blank, is
noticed. It names every other file with its size and digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from parallax.errors import BundleError, PlanError
from parallax.model import StoredWeight
from parallax.schedule import parse_json, read_record, write_record

BUNDLE_FORMAT_VERSION: Final = 3
"""Raised whenever a bundle written before must not be read any more."""

MANIFEST_NAME: Final = "manifest.json"

MAX_MANIFEST_BYTES: Final = 64 << 20
"""Larger than any manifest of ours: refused before it is read into memory."""

GENERATION = re.compile(r"g-[0-9a-f]{16}")
"""Names of the folders that hold a bundle's files; a bundle that is compiled again gets another one."""

_FORM = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "manifest": (\{.*\})\}\n', re.DOTALL)

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_COMPILE_AGAIN = "compile the model again"


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
        """One hex digest over all of the source's files; their place does not count."""
        content = [[file.location if index else "", file.size, file.sha256] for index, file in enumerate(self.files)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRecord:
    """Names the model is called with, and whether a run's length depends on data."""

    inputs: tuple[str, ...]
    overridable: tuple[str, ...]
    outputs: tuple[str, ...]
    unbounded: bool
    """It has loops, so that one run says nothing of the next one's duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """One segment's optimised graph."""

    graph: str
    nodes: tuple[str, ...]
    """Names of the model's nodes in it, for messages; empty in an uncut bundle."""
    weights: tuple[StoredWeight, ...]
    """What of the file of its data is used as it lies there, so that the session can be lent it."""


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
    plan: str
    segments: tuple[SegmentRecord, ...]
    portable: str | None
    """The model as it came, if it was kept."""
    files: tuple[FileRecord, ...]


def render_manifest(manifest: Manifest) -> bytes:
    """A manifest as it lies on disk: a JSON object of a digest, and the manifest whose bytes it is of."""
    body = json.dumps(write_record(manifest), indent=1, ensure_ascii=True).encode()
    return b'{"sha256": "%s", "manifest": %s}\n' % (_digest(body), body)


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """Read and check the manifest of the bundle in ``folder``; also returns the bytes it was read from.

    Raises: BundleError if there is none, or it is damaged, of another format, or names what is not its own.
    """
    path = folder / MANIFEST_NAME
    try:
        text = _read_plain_file(path)
    except FileNotFoundError as error:
        raise BundleError(
            "this folder is not a bundle: it has no manifest", where=str(folder), fix="give a folder that was compiled"
        ) from error
    except OSError as error:
        raise BundleError(f"cannot read the manifest: {error.strerror or error}", where=str(path)) from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError("the manifest is larger than any", where=str(path), fix=_COMPILE_AGAIN)
    try:
        manifest = _parse(text, str(path))
    except PlanError as error:
        raise BundleError(
            f"the manifest is damaged: {error.what}", where=error.where or str(path), fix=_COMPILE_AGAIN
        ) from error
    return manifest, text


def _read_plain_file(path: Path) -> bytes:
    """What is in a file, as far as any manifest goes.

    Raises:
        OSError: it cannot be read.
        BundleError: it is a link, pipe, folder or device; none is opened, or waited for.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise BundleError("this is no file of a bundle", where=str(path), fix=_COMPILE_AGAIN)
    # It may have become something else since.
    descriptor = os.open(path, _READ_FLAGS)
    with open(descriptor, "rb") as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _parse(text: bytes, where: str) -> Manifest:
    form = _FORM.fullmatch(text)
    if form is None:
        if isinstance(parse_json(text), dict):
            raise BundleError(
                "this is not the manifest of a bundle, or one of an early version", where=where, fix=_COMPILE_AGAIN
            )
        raise BundleError("this is not a manifest at all", where=where, fix=_COMPILE_AGAIN)
    digest, body = form.groups()
    if digest != _digest(body):
        raise BundleError("the manifest was changed since it was written", where=where, fix=_COMPILE_AGAIN)
    content = parse_json(body)
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version != BUNDLE_FORMAT_VERSION:
        raise BundleError(
            f"a bundle of format version {version}; this version of Parallax reads {BUNDLE_FORMAT_VERSION}",
            where=where,
            fix=_COMPILE_AGAIN,
        )
    manifest = read_record(Manifest, content, "manifest")
    _check_names(manifest, where)
    return manifest


def _check_names(manifest: Manifest, where: str) -> None:
    def refuse(what: str) -> BundleError:
        return BundleError(what, where=where, fix="do not use this bundle: " + _COMPILE_AGAIN)

    if manifest.format_version != BUNDLE_FORMAT_VERSION:
        raise refuse(f"format version {manifest.format_version} where {BUNDLE_FORMAT_VERSION} is current")
    if GENERATION.fullmatch(manifest.generation) is None:
        raise refuse(f"the manifest names an impossible folder {manifest.generation[:80]!r}")
    known = set()
    for record in manifest.files:
        if not _stays_inside(record.path, manifest.generation):
            raise refuse(f"the manifest names a file outside the bundle: {record.path[:200]!r}")
        if record.path in known or record.size < 0:
            raise refuse(f"the manifest names {record.path[:200]!r} twice, or with an impossible size")
        known.add(record.path)
    named = [manifest.plan, *(segment.graph for segment in manifest.segments)]
    if manifest.portable is not None:
        named.append(manifest.portable)
    for path in named:
        if path not in known:
            raise refuse(f"the manifest uses {path[:200]!r}, which is not among its files")
    if not manifest.segments:
        raise refuse("the manifest names no graph")


def _stays_inside(path: str, generation: str) -> bool:
    """Whether a path from a manifest, which may be forged, can only mean a file below the generation's folder."""
    parts = path.split("/")
    if len(parts) < 2 or parts[0] != generation or PurePosixPath(path).is_absolute():
        return False
    # Backslashes and colons separate folders and drives elsewhere.
    return not any(part in ("", ".", "..") or any(mark in part for mark in "\\:\0") for part in parts)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
