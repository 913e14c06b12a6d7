"""Opening a compiled model: the bundle at the path that was given, one from the cache, or the one that was open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnxruntime

from parallax import _lazy
from parallax.backends import ort
from parallax.bundle import looks_like_bundle
from parallax.errors import BudgetError, BundleError, ConfigError
from parallax.opening._source import OpenedBundle
from parallax.opening._state import BundleDevices, Opened, SessionState, split_attributes
from parallax.opening._whole_model import OpeningRequest, native_class, open_whole
from parallax.options import (
    PlanningOptions,
    check_providers,
    compiled_options,
    lean_options,
    why_not_compiled,
    why_not_cut,
)

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.bundle import Bundle
    from parallax.options import Device

logger = _lazy.logger(__name__)


class BundleOpening:
    """One attempt to open a model as a bundle.

    Args:
        request: what the session was given.
        opened_bundle: the bundle that was open before, which is the session's model by now; None the first time.

    Attributes:
        opened_bundle: the bundle that the session runs, from when it is open on.
    """

    def __init__(self, request: OpeningRequest, opened_bundle: OpenedBundle | None) -> None:
        self._request = request
        self.opened_bundle = opened_bundle

    def open(self) -> Opened | None:
        """The bundle that was open before, the one at the path, or a cached one; None where there is none.

        None too where the one that was open before is gone, but not the model that it was made of; then
        ``opened_bundle`` is None.

        Raises:
            BundleError: it is damaged, or was made for elsewhere.
            BudgetError: it does not fit the memory budget.
            ConfigError: an option that it cannot follow.
        """
        request = self._request
        path = request.source.path
        if self.opened_bundle is not None and not self._is_for_other_devices(self.opened_bundle):
            return self._open_again(self.opened_bundle)
        if path is not None and looks_like_bundle(path):
            return self._open_at(path, request.options)
        return self._open_cached() if request.options.cache else None

    def _is_for_other_devices(self, opened: OpenedBundle) -> bool:
        """Whether it is from the cache, and other devices are named by now: then it is another bundle's turn."""
        request = self._request
        if opened.path == request.source.path or opened.devices == tuple(one.name for one in request.devices):
            return False
        self.opened_bundle = None
        return True

    def _open_again(self, opened: OpenedBundle) -> Opened | None:
        try:
            return self._open_at(opened.path, opened.options)
        except BundleError as error:
            if self._request.source.files is None:
                raise
            logger.warning("a bundle is opened no more, so the model itself is: %s", error)
            self.opened_bundle = None
            return None

    def _open_cached(self) -> Opened | None:
        """From the cache of bundles; None where that cannot be."""
        request, options = self._request, self._request.options
        from parallax.opening._no_effect import why_not_cached

        path = request.source.path
        why = why_not_cached(request)
        if why is not None or path is None:
            logger.info("cache=True is of no effect: %s", why)
            return None
        # What tuning may compute a whole model with beside, a bundle does not keep.
        narrow = replace(options, devices=request.devices, backends=())
        wide = replace(narrow, memory_budget=None, budget_bytes=None)
        # What was decided when it was compiled is not asked of it again.
        left = OpenedBundle.options_for(options)
        # One bundle serves all budgets that it fits, so that a budget which is a share of what is free has it too.
        for asked in (wide,) if options.budget_bytes is None else (wide, narrow):
            bundle = self._cached(path, asked)
            if bundle is None:
                return None
            try:
                return self._open_at(str(bundle), left)
            except BundleError as error:
                logger.warning("the cached bundle of %s cannot be used: %s", path, error)
                request.forget_stock()
                return None
            except BudgetError as error:
                if asked is narrow:
                    raise
                logger.info("a bundle of %s is made for this memory budget: %s", path, error)
                request.forget_stock()
        return None

    def _cached(self, path: str, asked: PlanningOptions) -> Path | None:
        """The bundle in the cache of the model at ``path`` with these options, made if it is not there."""
        from parallax.bundle import cached_bundle
        from parallax.opening._compile import compiler_for, recorded_options

        return cached_bundle(
            path,
            compiler_for(asked),
            record=lambda limit: recorded_options(asked, memory_limit=limit),
            differ=self._changed_devices,
            verify=asked.verify,
            cache_dir=asked.cache_dir,
        )

    def _open_at(self, path: str, options: PlanningOptions) -> Opened:
        """Open a compiled model. Its plan is fixed; what is left to the caller is how it is run."""
        request = self._request
        available = onnxruntime.get_available_providers()
        # The base class warns of what is not installed, and leaves it out.
        installed = [entry for entry in request.arguments.providers or () if _provider_name(entry) in available]
        obstacle = why_not_compiled(request.session_options, installed)
        if request.arguments.disabled_optimizers:
            obstacle = "single optimisers were disabled"
        if obstacle is not None:
            raise _not_with_a_bundle(obstacle, path)
        from parallax.opening._bundles import open_for_here

        opened = open_for_here(path, self._use, options, request.session_options, self._given_devices)
        if self.opened_bundle is None:
            assert opened.bundle is not None
            self.opened_bundle = OpenedBundle.of(opened.bundle, path, options, opened.devices or ())
        return opened

    @property
    def _given_devices(self) -> tuple[Device, ...] | None:
        """Devices that the caller named; None where nothing was said of providers."""
        request = self._request
        return request.devices if request.arguments.providers else None

    def _changed_devices(self, bundle: Bundle) -> tuple[str, ...]:
        """In which ways the devices of a bundle are others by now."""
        if not bundle.manifest.devices:
            return ()
        from parallax.opening._bundle_devices import changed_devices

        return changed_devices(bundle, self._request.devices)

    def _use(self, bundle: Bundle, devices: BundleDevices) -> Opened:
        """Open what a bundle holds; called once more where it was replaced meanwhile."""
        request = self._request
        request.forget_stock()
        if self.opened_bundle is None:
            request.source.hold_of_bundle(bundle)
        else:
            self.opened_bundle.check_same(bundle)
        self._check_options(bundle)
        opened = self._open_whole(bundle) if bundle.plan.is_whole else self._open_split(bundle, devices)
        opened = replace(
            opened,
            bundle=bundle,
            devices=devices.shown,
            stored_declaration=bundle.declaration(),
            is_unbounded=bundle.manifest.interface.unbounded,
        )
        if bundle.manifest.trimming is None:
            return opened
        from parallax.opening._trimming import stored_trimming

        return opened.with_trimming(stored_trimming(bundle))

    def _check_options(self, bundle: Bundle) -> None:
        """Raises: ConfigError for session options that a compiled model cannot follow."""
        given = self._request.session_options
        if given is None:
            return
        from parallax.options import why_not_with_bundle, why_not_with_split_bundle

        names = bundle.names()
        obstacle = None if bundle.plan.is_whole else why_not_cut(given, None)
        if obstacle is None:
            manifest = bundle.manifest
            locations = [file.location for file in manifest.source.files]
            obstacle = why_not_with_bundle(given, names, locations, is_trimmed=manifest.trimming is not None)
        if obstacle is None and not bundle.plan.is_whole:
            obstacle = why_not_with_split_bundle(given, names)
        if obstacle is not None:
            raise _not_with_a_bundle(obstacle, bundle.folder)

    def _open_split(self, bundle: Bundle, devices: BundleDevices) -> Opened:
        request = self._request
        check_providers(request.arguments.providers, request.arguments.provider_options)
        from parallax.bundle import open_executor, read_interface
        from parallax.engine import SplitRunner

        run, inherited = bundle, compiled_options(request.session_options)
        if request.options.budget_bytes is not None:
            from parallax.bundle import counted_bundle

            run, inherited = counted_bundle(bundle), lean_options(inherited)
        executor = open_executor(run, inherited, backends=devices.backends, faults=request.options.faults)
        interface = read_interface(bundle, executor)
        runner = SplitRunner.of(executor, executor.plan, interface, request.events)
        opened = Opened(
            state=SessionState.SPLIT,
            runner=runner,
            attributes=split_attributes(executor, interface, request.session_options),
        )
        return self._fitted(opened, bundle, runner.sessions)

    def _open_whole(self, bundle: Bundle) -> Opened:
        from parallax.bundle import LARGE_WEIGHT_BYTES, mapped_defaults, mapped_options

        request, manifest = self._request, bundle.manifest
        given = request.session_options
        try:
            # Options of the caller's could not be rid of them again.
            weights = bundle.map_weights(0) if given is None else None
            with mapped_options(given, weights, manifest.weight_bytes) as options:
                opened = open_whole(
                    request,
                    bundle.plan,
                    model=None,
                    session_options=options,
                    threads=request.options.threads or manifest.options.threads,
                    graph_path=bundle.graph_path(0),
                )
            assert opened.runner is not None
            (whole,) = opened.runner.sessions
            if weights is not None:
                weights.keep_for(whole)
                # Others may open sessions with these: they must not speak of memory that this one holds.
                shown = mapped_defaults(manifest.weight_bytes)
                shown.intra_op_num_threads = whole.session_options.intra_op_num_threads
                opened = replace(opened, attributes={**opened.attributes, "_sess_options": shown})
            opened = self._fitted(opened, bundle, [whole])
            if manifest.weight_bytes >= LARGE_WEIGHT_BYTES:
                from parallax.machine import trim_heap

                trim_heap()
        except ort.RUNTIME_EXCEPTIONS as error:
            request.forget_stock()
            raise ort.both(BundleError, native_class(error))(
                f"the runtime refuses the bundle's graph: {error}",
                where=bundle.folder,
                fix="compile the model again",
            ) from error
        return opened

    def _fitted(self, opened: Opened, bundle: Bundle, sessions: list[Any]) -> Opened:
        """With its budget. Its weights are mapped, but for what devices make of theirs.

        Raises: BudgetError for a bundle that does not fit it.
        """
        budget_bytes = self._request.options.budget_bytes
        if budget_bytes is None:
            return opened
        from parallax.bundle import estimate_bundle
        from parallax.memory import Budget

        held = bundle.manifest.held_weight_bytes
        budget = Budget.of(budget_bytes, weight_bytes=held, segments=len(sessions), margin=self._request.options.margin)
        estimator = estimate_bundle(bundle, sessions)
        try:
            budget.check(estimator.requirement({}))
        except BudgetError as error:
            raise BudgetError(
                error.what,
                least_bytes=error.least_bytes,
                where=bundle.folder,
                fix=f"{error.fix}; or compile the bundle with the smaller budget, if a plan fits that",
            ) from error
        return opened.within(budget, estimator)


def _provider_name(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple) else entry


def _not_with_a_bundle(obstacle: str, path: str) -> ConfigError:
    return ConfigError(
        f"this bundle cannot be run so: {obstacle}", where=path, fix="leave that out, or open the model itself"
    )
