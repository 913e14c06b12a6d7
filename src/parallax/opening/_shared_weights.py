"""A session's model opened once more on a bundle, so that what is opened beside it shares its weights.

Each C session that ONNX Runtime opens on a model packs the weights for itself. Its interface for sharing packed weights
is not part of its Python package; but those of a bundle are pages of a file, which all sessions on it map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from parallax.bundle import cached_bundle, read_manifest
from parallax.errors import ConfigError
from parallax.model import HeldFiles
from parallax.opening._bundle_opening import BundleOpening
from parallax.opening._compile import compiler_for, recorded_options
from parallax.opening._source import OpenedBundle
from parallax.options import PlanningOptions

if TYPE_CHECKING:
    from parallax.bundle import Bundle
    from parallax.model import Glimpse, Model
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest


def bundle_to_share(request: OpeningRequest, look: Model | Glimpse | None) -> OpenedBundle:
    """Compile a session's model, whole, into a bundle of the cache, unless that was done before.

    Args:
        look: what the session loaded or looked at; None where it did neither.

    Raises:
        ConfigError: it cannot be; says why.
        ParallaxError: as compiling and reading a bundle.
    """
    source, options = request.source, request.options
    if source.is_bundle:
        raise _not_shared("the bundle that was opened is not there any more", fix="keep it while it is used")
    files = source.files if look is None else getattr(look, "files", None) or getattr(look, "source", None)
    if source.path is None or not isinstance(files, HeldFiles):
        raise _not_shared("the model was given as bytes", fix="give its path")
    if options.budget_bytes is not None:
        raise _not_shared("a memory budget counts what was opened", fix="open a bundle")
    asked = PlanningOptions(
        cache_dir=options.cache_dir, verify=options.verify, threads=options.threads, split="never", slim=options.slim
    )
    path = None
    if files.are_at_path():
        path = cached_bundle(
            source.path,
            compiler_for(asked),
            record=lambda limit: recorded_options(asked, memory_limit=limit),
            differ=_has_no_devices,
            verify=options.verify,
            cache_dir=options.cache_dir,
        )
        if path is None:
            raise _not_shared("no bundle of it can be cached", fix="name a folder with cache_dir=")
    if path is None or not files.are_at_path():
        raise _not_shared("other files lie at its path by now", fix="leave a model's files in place while it is used")
    return OpenedBundle(
        path=str(path),
        model_digest=read_manifest(path)[0].source.digest,
        options=shared_options(request),
    )


def shared_options(request: OpeningRequest) -> PlanningOptions:
    """What a session opens such a bundle with."""
    options = request.options
    return PlanningOptions(cache_dir=options.cache_dir, verify=options.verify, threads=options.threads)


def open_shared(request: OpeningRequest, opened: Opened, bundle: OpenedBundle) -> Opened:
    """Open the bundle in place of what a session has open, with the same plan and as many threads.

    Args:
        request: its ``open_stock`` opens beside what the session has open.
        opened: what that is, a whole model.

    Raises: ConfigError if the bundle is not one of the whole model; ParallaxError as opening it.
    """
    plan, runner = opened.plan, opened.runner
    assert plan is not None
    assert runner is not None
    threads = int(runner.sessions[0].session_options.intra_op_num_threads) or None
    # What the session has open is not to be dropped.
    beside = replace(request, options=replace(request.options, threads=threads), forget_stock=_keep)
    made = BundleOpening(beside, bundle).open()
    if made is None or made.plan is None or not made.plan.is_uncut:
        raise _not_shared("the weights do not fit into memory", fix="open a bundle")
    return replace(made.with_plan(plan), bundle=None, shared_bundle=made.bundle, devices=opened.devices)


def _not_shared(why: str, *, fix: str) -> ConfigError:
    return ConfigError(f"weights are not shared with a replica: {why}", fix=fix)


def _has_no_devices(bundle: Bundle) -> tuple[str, ...]:
    """In which ways its devices are others by now."""
    return ()


def _keep() -> None:
    """Nothing is dropped."""
