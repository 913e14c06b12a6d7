"""The cache of bundles: of models that are opened with ``cache=True``, and of bundles that were made for elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from parallax.bundle._digest import settled, signature
from parallax.bundle._folder import BUNDLE_SUFFIX, MANIFEST_NAME, Verify
from parallax.bundle._identity import describe_mismatch, parallax_version, rebuild_command, runtime_build
from parallax.bundle._known_sources import known_source, source_files
from parallax.bundle._manifest import BUNDLE_FORMAT_VERSION, CompileOptions, SourceRecord
from parallax.bundle._open import Bundle, use_bundle
from parallax.bundle._publish import prune_folder, remove_tree
from parallax.bundle._read import read_manifest
from parallax.bundle._write import describe_source
from parallax.errors import BundleError, ConfigError, ParallaxError
from parallax.model import Model, load_model
from parallax.planner import binding_limit
from parallax.profile import (
    default_cache_folder,
    machine_fingerprint,
    make_private_folder,
    why_any_distrusted,
    why_distrusted,
)

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 4 << 30
"""Beyond this much, bundles of the cache that were not used for longest are removed."""

Compiler = Callable[[Model, Path, SourceRecord, int | None], object]
"""Compiles a model into a bundle at a path, given the digests of its files and the memory limit that binds it, if one
does."""


def cache_folder(cache_dir: Path | None) -> Path:
    """Where cached and rebuilt bundles lie."""
    return (default_cache_folder() if cache_dir is None else cache_dir) / "bundles"


def rebuilt_bundle(
    bundle: Bundle,
    differences: tuple[str, ...],
    compile_model: Compiler,
    *,
    recorded: CompileOptions,
    differ: Callable[[Bundle], tuple[str, ...]] | None = None,
    verify: Verify,
    cache_dir: Path | None,
) -> Path:
    """Return the bundle for this machine, made from the model that ``bundle`` keeps, unless that was done before.

    Args:
        differences: in which ways ``bundle`` was not made for here.
        recorded: what a bundle remembers of the options to compile with.
        differ: tells in which ways the devices of a bundle are others by now; None where it has none.
    """
    portable = bundle.portable_path
    assert portable is not None
    model = load_model(portable)
    # Not as the manifest says: a forged one must not put its model in another's place.
    source = describe_source(model)
    target = _place(source, recorded, cache_dir)
    try:
        _make_cache(target.parent)
        is_there = _is_usable(target, source, recorded, verify=verify, cache_dir=cache_dir, differ=differ)
    except OSError as error:
        raise ConfigError(
            f"the bundle was not made for here, and cannot be made anew: {error.strerror or error}",
            where=str(target),
            fix=f"name another folder with cache_dir=, or: {rebuild_command(bundle.manifest, bundle.path)}",
        ) from error
    if not is_there:
        logger.warning(
            "the bundle %s was not made for here (%s); making it anew from the model it keeps, into %s; "
            "to replace it: %s",
            bundle.path,
            "; ".join(differences),
            target,
            rebuild_command(bundle.manifest, bundle.path),
        )
        compile_model(model, target, source, recorded.memory_limit)
        prune_cache(target.parent, keep=target)
    return target


def _make_cache(folder: Path) -> None:
    """Make the folder of cached bundles, for this user alone.

    Raises:
        OSError: it cannot be made.
        ConfigError: others could plant there what is run here.
    """
    make_private_folder(folder.parent)
    make_private_folder(folder)
    complaint = why_distrusted(folder)
    if complaint is not None:
        raise ConfigError(
            f"others could plant bundles in the cache: {complaint}",
            where=str(folder),
            fix="give the folder to this user, or name another with cache_dir=",
        )


def _is_usable(
    target: Path,
    source: SourceRecord,
    recorded: CompileOptions,
    *,
    verify: Verify,
    cache_dir: Path | None,
    differ: Callable[[Bundle], tuple[str, ...]] | None = None,
) -> bool:
    """Whether the bundle in the cache is whole, this user's own, and made of that model, with those options, for here.

    One that somebody else may have put there is removed.

    Raises: BundleError if such a one cannot be removed.
    """
    if not target.is_dir():
        return False

    def complain(bundle: Bundle) -> str | None:
        manifest = bundle.manifest
        if manifest.source.digest != source.digest:
            return "it was compiled from another model"
        if manifest.options != recorded:
            return "it was compiled with other options"
        if recorded.tune and not bundle.plan.provenance.is_conclusive:
            return "the machine was too busy to tune it when it was compiled"
        differences = describe_mismatch(manifest, cores=None)
        if differ is not None:
            differences = (*differences, *differ(bundle))
        return "; ".join(differences) or None

    complaint = _why_planted(target)
    if complaint is not None:
        logger.warning("removing a cached bundle that somebody else may have put there: %s", complaint)
        if not remove_tree(target):
            raise BundleError(f"a planted bundle cannot be removed: {complaint}", where=str(target), fix="remove it")
        return False
    try:
        complaint = use_bundle(target, complain, verify=verify, cache_dir=cache_dir)
    except BundleError as error:
        complaint = str(error)
    if complaint is not None:
        logger.warning("making a cached bundle anew: %s", complaint)
    return complaint is None


def _why_planted(target: Path) -> str | None:
    """Why somebody else may have written some part of the bundle; None too if it cannot be read at all."""
    try:
        manifest, _ = read_manifest(target)
    except BundleError:
        return why_distrusted(target)
    return why_any_distrusted([target / MANIFEST_NAME, *(target / record.path for record in manifest.files)])


def cached_bundle(
    path: str,
    compile_model: Compiler,
    *,
    record: Callable[[int | None], CompileOptions],
    differ: Callable[[Bundle], tuple[str, ...]] | None = None,
    verify: Verify,
    cache_dir: Path | None,
) -> Path | None:
    """Return the cached bundle of the model at ``path`` for this machine and some options, made if it is not there.

    None, with a log line, where it cannot be made: then the model is opened as without a cache. Errors of the
    model itself are left to that, too.

    Args:
        record: what a bundle remembers of the options to compile with, given the memory limit that binds it, if one
            does.
        differ: tells in which ways the devices of a bundle are others by now; None where it has none.
    """
    try:
        folder = cache_folder(cache_dir)
        _make_cache(folder)
        source = known_source(path, cache_dir)
        model = None
        if source is None:
            model = load_model(path)
            source = _learn_source(path, model, cache_dir)
        # A bundle that was cut for a container's limit is not the one to open outside of it.
        limit = binding_limit(sum(file.size for file in source.files), None)
        recorded = record(limit)
        target = _place(source, recorded, cache_dir)
        if not _is_usable(target, source, recorded, verify=verify, cache_dir=cache_dir, differ=differ):
            made = load_model(path) if model is None else model
            compile_model(made, target, source, limit)
            prune_cache(folder, keep=target)
        note_use(target)
    except (ParallaxError, OSError) as error:
        logger.warning("no bundle of %s can be cached: %s", path, error)
        return None
    return target


def find_cached_bundle(
    path: str,
    *,
    record: Callable[[int | None], CompileOptions],
    verify: Verify,
    cache_dir: Path | None,
) -> Path | None:
    """Return a bundle without devices from the cache, as `cached_bundle` does, and make none.

    None where it is not there, where the model at ``path`` would have to be read to know it, and where the cache
    cannot be read.
    """
    try:
        folder = cache_folder(cache_dir)
        source = known_source(path, cache_dir) if folder.is_dir() else None
        if source is None:
            return None
        _make_cache(folder)
        recorded = record(binding_limit(sum(file.size for file in source.files), None))
        target = _place(source, recorded, cache_dir)
        if not _is_usable(target, source, recorded, verify=verify, cache_dir=cache_dir):
            return None
        note_use(target)
    except (ParallaxError, OSError) as error:
        logger.debug("no bundle of %s is looked for in the cache: %s", path, error)
        return None
    return target


def _place(source: SourceRecord, recorded: CompileOptions, cache_dir: Path | None) -> Path:
    key = json.dumps(
        [
            BUNDLE_FORMAT_VERSION,
            source.digest,
            repr(recorded),
            machine_fingerprint(),
            parallax_version(),
            runtime_build(),
        ]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return cache_folder(cache_dir) / f"{name}{BUNDLE_SUFFIX}"


def _learn_source(path: str, model: Model, cache_dir: Path | None) -> SourceRecord:
    """Compute the digests of a model's files, and remember them."""
    places = [Path(os.path.realpath(file.path)) for file in model.files.all]
    began = time.time_ns()
    before = [signature(place) for place in places]
    source = describe_source(model)
    if model.files.are_at_path() and all(settled(found, began) for found in before):
        source_files(path, cache_dir).store(
            {
                f"{file.location}\n{place}": (found, file.sha256)
                for file, place, found in zip(source.files, places, before, strict=True)
            }
        )
    return source


def prune_cache(
    folder: Path, *, keep: Path | None = None, limit_bytes: int | None = CACHE_LIMIT_BYTES
) -> tuple[tuple[Path, int], ...]:
    """Remove leftovers of dead writers, and the bundles used longest ago while all take more than ``limit_bytes``
    (None: no bundle).

    Returns: what was removed, with its bytes (0 for leftovers).
    """
    removed = [(path, 0) for path in prune_folder(folder)]
    if limit_bytes is None:
        return tuple(removed)
    found = []
    for entry in folder.iterdir():
        # Another process may prune at the same time.
        with contextlib.suppress(OSError, BundleError):
            used = (entry / MANIFEST_NAME).stat().st_mtime
            size = sum(record.size for record in read_manifest(entry)[0].files)
            found.append((used, size, entry))
    total = sum(size for _, size, _ in found)
    for _, size, entry in sorted(found):
        if total <= limit_bytes:
            break
        if entry != keep:
            # The manifest first: without it, nothing is a bundle.
            with contextlib.suppress(OSError):
                (entry / MANIFEST_NAME).unlink()
                shutil.rmtree(entry)
                removed.append((entry, size))
                total -= size
    return tuple(removed)


def note_use(target: Path) -> None:
    """Note that a cached bundle was used; a cache that is read-only merely forgets."""
    with contextlib.suppress(OSError):
        os.utime(target / MANIFEST_NAME)
