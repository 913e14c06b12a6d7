"""Sessions on bundles: what may be asked of one, and what becomes of one that was made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from parallax.bundle import Bundle, describe_mismatch, mismatch_error, use_bundle
from parallax.errors import ConfigError
from parallax.machine import available_cores
from parallax.opening._state import NO_DEVICES, BundleDevices
from parallax.options import COMPILE_OPTIONS, OPTION_RULES, PlanningOptions
from parallax.schedule import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.options import Device

T = TypeVar("T")


def open_for_here(
    path: str | os.PathLike[str],
    use: Callable[[Bundle, BundleDevices], T],
    options: PlanningOptions,
    session_options: Any,
    given: tuple[Device, ...] | None,
) -> T:
    """What ``use`` makes of the bundle at ``path``, or of one made anew from the model it keeps.

    Args:
        given: devices of ``providers=``; None where it was not given.

    Raises:
        BundleError: it is damaged, or not a bundle.
        BundleMismatchError: it was made for elsewhere and does not keep the model.
        ConfigError: an option, or a device, that was decided when the bundle was compiled.
    """

    def use_if_fit(bundle: Bundle) -> T | _Unfit:
        _refuse_decided(options, bundle)
        cores = _cores(bundle, options, session_options)
        differences = describe_mismatch(bundle.manifest, cores=cores)
        devices = NO_DEVICES
        if given or bundle.manifest.options.devices:
            from parallax.opening._bundle_devices import open_devices_of  # few bundles have any

            devices, lacking = open_devices_of(bundle, given)
            differences = (*differences, *lacking)
        if not differences:
            return use(bundle, devices)
        if bundle.portable_path is None:
            from pathlib import Path

            raise mismatch_error(bundle.manifest, Path(path), differences)
        return _Unfit(_rebuilt(bundle, differences, options, cores=cores, given=given))

    result = use_bundle(path, use_if_fit, verify=options.verify, cache_dir=options.cache_dir)
    if not isinstance(result, _Unfit):
        return result
    from parallax.bundle import note_use

    note_use(result.rebuilt)
    return use_bundle(
        result.rebuilt,
        lambda bundle: use(bundle, _devices_of_rebuilt(bundle, given)),
        verify=options.verify,
        cache_dir=options.cache_dir,
    )


def _devices_of_rebuilt(bundle: Bundle, given: tuple[Device, ...] | None) -> BundleDevices:
    if not bundle.manifest.options.devices:
        return NO_DEVICES
    from parallax.opening._bundle_devices import devices_of_rebuilt

    return devices_of_rebuilt(bundle, given)


def _rebuilt(
    bundle: Bundle,
    differences: tuple[str, ...],
    options: PlanningOptions,
    *,
    cores: int | None,
    given: tuple[Device, ...] | None,
) -> Path:
    """The bundle for here, made of the model that ``bundle`` keeps.

    Args:
        differences: in which ways ``bundle`` was not made for here.
        cores: those that the session is to use; None where any number will do.
        given: devices of ``providers=``; None where it was not given.
    """
    from parallax.bundle import rebuilt_bundle
    from parallax.opening._compile import compiler_for, recorded_options, replayed_options

    stored = bundle.manifest.options
    replayed = replayed_options(stored, cache_dir=options.cache_dir)
    threads = replayed.threads if replayed.threads is not None or cores == available_cores() else cores
    replayed = replace(replayed, threads=threads)
    differ = None
    if stored.devices:
        from parallax.opening._bundle_devices import changed_devices, devices_here

        replayed = replace(replayed, devices=devices_here(bundle, given))
        differ = partial(changed_devices, devices=replayed.devices)
    return rebuilt_bundle(
        bundle,
        differences,
        compiler_for(replayed),
        recorded=recorded_options(replayed, memory_limit=stored.memory_limit),
        differ=differ,
        verify=options.verify,
        cache_dir=options.cache_dir,
    )


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
        return None if bundle.plan.is_whole else chosen
    if bundle.manifest.options.threads is not None:
        return bundle.manifest.options.threads
    return available_cores()


def _refuse_decided(options: PlanningOptions, bundle: Bundle) -> None:
    is_whole = len(bundle.plan.segments) <= 1 and not bundle.plan.stretches
    planned_as = bundle.manifest.options
    given = [name for name, rule in OPTION_RULES.items() if rule.is_decided and _is_given(getattr(options, name))]
    if options.min_gain == 0 and not is_whole:
        given.remove("min_gain")  # it asks for what the bundle is
    if options.padding is not None and options.padding == planned_as.padding:
        given.remove("padding")  # likewise
    if options.objective in Plan.ENERGY_OBJECTIVES and options.objective != planned_as.objective:
        given.append("objective")
    if options.slim and planned_as.slim:
        given.remove("slim")  # likewise
    if options.split == ("always" if is_whole else "never"):
        given.append("split")
    # A whole model runs one thing after the other, whatever a policy says of it.
    is_followed = options.policy in ("adaptive", planned_as.policy) or (options.policy == "sequential" and is_whole)
    if not is_followed and options.policy != "sequential":
        from parallax.planner import policy_name  # no bundle is planned

        is_followed = policy_name(options.policy) == planned_as.policy
    if not is_followed:
        given.append("policy")
    if given:
        other = "compile a bundle with it" if given[0] in COMPILE_OPTIONS else "leave it out"
        raise ConfigError(
            f"{given[0]}= is decided when a bundle is compiled",
            where=bundle.folder,
            fix=f"{other}, or open the model itself",
        )
    if options.backends:
        raise ConfigError(
            f"backends={options.backends!r} are for tuned sessions, and a bundle names its devices itself",
            where=bundle.folder,
            fix="leave backends= out, or open the model itself with tune=True",
        )


def _is_given(value: Any) -> bool:
    """Whether an option whose default is None or False has another value; 0, which equals False, is one."""
    return value is not None and value is not False
