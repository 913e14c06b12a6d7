"""Sessions on bundles: what may be asked of one, what becomes of one made elsewhere, and what options it opens with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import onnxruntime

from parallax.bundle import Bundle, describe_mismatch, mismatch_error, use_bundle
from parallax.errors import ConfigError
from parallax.machine import available_cores
from parallax.session._options import OPTION_RULES, PlanningOptions

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.backends.ort import MappedWeights

T = TypeVar("T")


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
        cores = _cores(bundle, options, session_options)
        differences = describe_mismatch(bundle.manifest, cores=cores)
        if not differences:
            return use(bundle)
        if bundle.portable_path is None:
            from pathlib import Path

            raise mismatch_error(bundle.manifest, Path(path), differences)
        from parallax.session._bundle_cache import rebuilt_bundle  # compiles

        return _Unfit(rebuilt_bundle(bundle, differences, options, cores=cores))

    result = use_bundle(path, use_if_fit, verify=options.verify, cache_dir=options.cache_dir)
    if not isinstance(result, _Unfit):
        return result
    from parallax.session._bundle_cache import note_use

    note_use(result.rebuilt)
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
    if options.policy not in ("adaptive", "sequential"):
        from parallax.planner import is_yardstick, policy_name  # no bundle is planned

        if is_yardstick(options.policy) and policy_name(options.policy) != bundle.manifest.options.policy:
            given.append("policy")
    if given:
        raise ConfigError(
            f"{given[0]}= is decided when a bundle is compiled",
            where=bundle.folder,
            fix="compile a bundle with it, or open the model itself",
        )


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
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        yield session_options
    finally:
        session_options.graph_optimization_level = level


def mapped_defaults(weight_bytes: int) -> Any:
    """The options of `mapped_options` where the caller has no wishes, with nothing lent."""
    made = onnxruntime.SessionOptions()
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made.enable_mem_pattern = made.enable_mem_reuse = False
    if weight_bytes < LARGE_WEIGHT_BYTES or _is_free(2 * weight_bytes):
        made.add_session_config_entry("session.prepack.enable_parallel", "1")
    return made


def _is_free(size_bytes: int) -> bool:
    """Whether so much memory can be had."""
    from parallax.machine import free_memory_bytes

    return size_bytes < free_memory_bytes()
