"""Sessions on bundles: what may be asked of one, what happens to one from elsewhere, and the cache of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime
import platformdirs

from parallax.bundle import (
    BUNDLE_FORMAT_VERSION,
    BUNDLE_SUFFIX,
    MANIFEST_NAME,
    Bundle,
    CheckedFiles,
    CompileOptions,
    SourceFile,
    SourceRecord,
    describe_mismatch,
    describe_source,
    mismatch_error,
    parallax_version,
    prune_folder,
    read_manifest,
    rebuild_command,
    remove_tree,
    runtime_build,
    settled,
    signature,
    use_bundle,
)
from parallax.engine import Executor, MappedWeights
from parallax.errors import BundleError, ConfigError, ParallaxError
from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, TensorInfo
from parallax.machine import available_cores, free_memory_bytes
from parallax.model import Model, load_model
from parallax.profile import machine_fingerprint, make_private_folder, why_any_distrusted, why_distrusted
from parallax.session._compile import compile_loaded, recorded_options, replayed_options
from parallax.session._options import OPTION_RULES, PlanningOptions
from parallax.session._streaming import binding_limit

logger = logging.getLogger(__name__)

T = TypeVar("T")

CACHE_LIMIT_BYTES = 4 << 30
"""Beyond this much, bundles of the cache that were not used for longest are removed."""


def cache_folder(cache_dir: Path | None) -> Path:
    """Where cached and rebuilt bundles lie."""
    return (platformdirs.user_cache_path("parallax") if cache_dir is None else cache_dir) / "bundles"


def open_for_here(
    path: str | os.PathLike[str], use: Callable[[Bundle], T], options: PlanningOptions, session_options: Any
) -> T:
    """What ``use`` makes of the bundle at ``path``, or of one made anew from the model it keeps.

    Raises:
        BundleError: it is damaged, or not a bundle.
        BundleMismatchError: it was made for elsewhere and does not keep the model.
        ConfigError: an option that was decided when the bundle was compiled.
    """

    def use_if_fit(bundle: Bundle) -> T | _Unfit:
        _refuse_decided(options, bundle)
        differences = describe_mismatch(bundle.manifest, cores=_cores(bundle, options, session_options))
        if not differences:
            return use(bundle)
        if bundle.portable_path is None:
            raise mismatch_error(bundle.manifest, Path(path), differences)
        return _Unfit(_rebuilt(bundle, differences, options, session_options))

    result = use_bundle(path, use_if_fit, verify=options.verify, cache_dir=options.cache_dir)
    if not isinstance(result, _Unfit):
        return result
    _touch(result.rebuilt)
    return use_bundle(result.rebuilt, use, verify=options.verify, cache_dir=options.cache_dir)


class _Unfit:
    """A bundle for elsewhere, and where the one for here is."""

    def __init__(self, rebuilt: Path) -> None:
        self.rebuilt = rebuilt


def _cores(bundle: Bundle, options: PlanningOptions, session_options: Any) -> int | None:
    """Cores to compare with those of the plan; None where the caller chose them and any number will do."""
    chosen = options.threads
    if chosen is None and session_options is not None and session_options.intra_op_num_threads > 0:
        chosen = int(session_options.intra_op_num_threads)
    if chosen is not None:
        return None if bundle.plan.is_uncut else chosen
    if bundle.manifest.options.threads is not None:
        return bundle.manifest.options.threads
    return available_cores()


def _refuse_decided(options: PlanningOptions, bundle: Bundle) -> None:
    given = [
        name for name, rule in OPTION_RULES.items() if rule.is_decided and getattr(options, name) not in (None, False)
    ]
    if options.split == ("always" if bundle.plan.is_uncut else "never"):
        given.append("split")
    if options.policy == "sequential" and not bundle.plan.is_uncut:
        given.append("policy")
    if given:
        raise ConfigError(
            f"{given[0]}= is decided when a bundle is compiled",
            where=str(bundle.path),
            fix="compile a bundle with it, or open the model itself",
        )


def _rebuilt(bundle: Bundle, differences: tuple[str, ...], options: PlanningOptions, session_options: Any) -> Path:
    """The bundle for this machine, made from the model that ``bundle`` keeps, unless that was done before."""
    portable = bundle.portable_path
    assert portable is not None
    replayed = replayed_options(bundle.manifest.options, cache_dir=options.cache_dir)
    cores = _cores(bundle, options, session_options)
    threads = replayed.threads if replayed.threads is not None or cores == available_cores() else cores
    replayed = replace(replayed, threads=threads)
    model = load_model(portable)
    # Not as the manifest says: a forged one must not put its model in another's place.
    source = describe_source(model)
    limit = bundle.manifest.options.memory_limit
    target = _place(source, replayed, limit)
    try:
        _make_cache(target.parent)
        is_there = _is_usable(target, options, source, recorded_options(replayed, memory_limit=limit))
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
        compile_loaded(model, target, replayed, source=source, memory_limit=limit)
        prune_cache(target.parent, keep=target)
    return target


# -- the cache ------------------------------------------------------------------------------------------------


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


def _is_usable(target: Path, options: PlanningOptions, source: SourceRecord, recorded: CompileOptions) -> bool:
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
        return "; ".join(describe_mismatch(manifest, cores=None)) or None

    complaint = _why_planted(target)
    if complaint is not None:
        logger.warning("removing a cached bundle that somebody else may have put there: %s", complaint)
        if not remove_tree(target):
            raise BundleError(f"a planted bundle cannot be removed: {complaint}", where=str(target), fix="remove it")
        return False
    try:
        complaint = use_bundle(target, complain, verify=options.verify, cache_dir=options.cache_dir)
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


def cached_bundle(path: str, options: PlanningOptions) -> Path | None:
    """The cached bundle of the model at ``path`` for this machine and these options, made if it is not there.

    None, with a log line, where it cannot be made: then the model is opened as without a cache. Errors of the
    model itself are left to that, too.
    """
    try:
        folder = cache_folder(options.cache_dir)
        _make_cache(folder)
        source = _known_source(path, options.cache_dir)
        model = None
        if source is None:
            model = load_model(path)
            source = _learn_source(path, model, options.cache_dir)
        # A bundle that was cut for a container's limit is not the one to open outside of it.
        limit = binding_limit(sum(file.size for file in source.files), None)
        target = _place(source, options, limit)
        if not _is_usable(target, options, source, recorded_options(options, memory_limit=limit)):
            made = load_model(path) if model is None else model
            compile_loaded(made, target, options, source=source, memory_limit=limit)
            prune_cache(folder, keep=target)
        _touch(target)
    except (ParallaxError, OSError) as error:
        logger.warning("no bundle of %s can be cached: %s", path, error)
        return None
    return target


def _place(source: SourceRecord, options: PlanningOptions, memory_limit: int | None) -> Path:
    recorded = recorded_options(options, memory_limit=memory_limit)
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
    return cache_folder(options.cache_dir) / f"{name}{BUNDLE_SUFFIX}"


def _known_source(path: str, cache_dir: Path | None) -> SourceRecord | None:
    """The digests of a model's files, if they are known and the files were not written to since."""
    files = []
    for name, (expected, digest) in _source_files(path, cache_dir).load().items():
        location, _, place = name.partition("\n")
        try:
            if signature(Path(place)) != expected:
                return None
        except OSError:
            return None
        files.append(SourceFile(location=location, size=expected[2], sha256=digest))
    # The model itself comes first, as it was stored.
    return SourceRecord(path=os.path.abspath(path), files=tuple(files)) if files else None


def _learn_source(path: str, model: Model, cache_dir: Path | None) -> SourceRecord:
    """Compute the digests of a model's files, and remember them."""
    places = [Path(os.path.realpath(file.path)) for file in model.files.all]
    began = time.time_ns()
    before = [signature(place) for place in places]
    source = describe_source(model)
    if model.files.are_at_path() and all(settled(found, began) for found in before):
        _source_files(path, cache_dir).store(
            {
                f"{file.location}\n{place}": (found, file.sha256)
                for file, place, found in zip(source.files, places, before, strict=True)
            }
        )
    return source


def _source_files(path: str, cache_dir: Path | None) -> CheckedFiles:
    return CheckedFiles(f"source {os.path.realpath(path)}", cache_dir)


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


def _touch(target: Path) -> None:
    """Note that a cached bundle was used; a cache that is read-only merely forgets."""
    with contextlib.suppress(OSError):
        os.utime(target / MANIFEST_NAME)


# -- what a session needs of a bundle -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A model's inputs and outputs, as far as feeding it goes."""

    inputs: tuple[TensorInfo, ...]
    overridable: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_interface(bundle: Bundle, executor: Executor) -> Interface:
    """The interface of a cut bundle, from what its segments say of it.

    Raises: BundleError if no segment knows a name that the manifest lists.
    """
    known: dict[str, Any] = {}
    for segment in executor.segments:
        session = segment.session
        for argument in (*session.inputs_meta, *session.overridable_initializers, *session.outputs_meta):
            known.setdefault(argument.name, argument)
    names = bundle.manifest.interface
    try:
        return Interface(
            inputs=tuple(_tensor(known[name]) for name in names.inputs),
            overridable=tuple(_tensor(known[name]) for name in names.overridable if name in known),
            outputs=tuple(_tensor(known[name]) for name in names.outputs),
        )
    except KeyError as error:
        raise BundleError(f"no graph of the bundle knows {error}", where=str(bundle.path)) from error


_TYPE_CODES = {ELEMENT_TYPES[code].runtime_type: code for code in NUMPY_TYPES}


def _tensor(argument: Any) -> TensorInfo:
    return TensorInfo(name=argument.name, dtype=_TYPE_CODES[argument.type], shape=tuple(argument.shape))


_AS_IT_IS = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

LARGE_WEIGHT_BYTES = 32 << 20
"""From here on, opening a bundle leaves enough free memory in the heap to be worth handing back."""


@contextlib.contextmanager
def mapped_options(session_options: Any, weights: MappedWeights | None, weight_bytes: int) -> Iterator[Any]:
    """Options that open a bundle's graph: as it is, with little memory where the caller has no wishes.

    The caller's object is restored afterwards. Memory patterns (one block for all tensors of a run, sized by
    the run before) are left off: measured on the zoo, they gain nothing here and cost up to half as much again. So is
    memory reuse (which dead tensor's buffer a later one takes): to plan it compares all tensors with each other, which
    takes up to an eighth of the opening, and the allocator finds a free block as quickly.
    Weights are packed side by side, to be compared with what is stored, where memory is not scarce: that holds
    as many of them at once as there are threads.

    Args:
        weights: are lent to the session, where the options are not the caller's.
        weight_bytes: of all weights of the model.
    """
    if session_options is None:
        made = mapped_defaults(weight_bytes)
        if weights is not None:
            weights.lend(made)
        yield made
        return
    level = session_options.graph_optimization_level
    session_options.graph_optimization_level = _AS_IT_IS
    try:
        yield session_options
    finally:
        session_options.graph_optimization_level = level


def mapped_defaults(weight_bytes: int) -> Any:
    """The options of `mapped_options` where the caller has no wishes, with nothing lent."""
    made = onnxruntime.SessionOptions()
    made.graph_optimization_level = _AS_IT_IS
    made.enable_mem_pattern = made.enable_mem_reuse = False
    if weight_bytes < LARGE_WEIGHT_BYTES or 2 * weight_bytes < free_memory_bytes():
        made.add_session_config_entry("session.prepack.enable_parallel", "1")
    return made
