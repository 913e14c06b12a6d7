"""Opening a model: from what a session was given to what it runs.

A bundle is opened as it was compiled. Any other model is analysed and planned. Split, it runs in the engine; whole,
it is left to ONNX Runtime's own session, and so is what our analysis refuses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from parallax import _lazy
from parallax.backends import ort
from parallax.errors import ModelError, ParallaxError, UnsafeModelError
from parallax.opening._bundle_opening import BundleOpening
from parallax.opening._source import OpenedBundle, in_memory_if_small
from parallax.opening._state import Opened, SessionState, split_attributes
from parallax.opening._whole_model import OpeningRequest, native_class, open_whole, unjudged
from parallax.options import check_providers, is_onnx_source, session_cores, why_not_cut

if TYPE_CHECKING:
    from parallax.engine import Executor
    from parallax.graph import OpGraph
    from parallax.memory import Budget
    from parallax.model import Model, ModelSummary
    from parallax.options import PlanningOptions
    from parallax.partition.padding import Trimming
    from parallax.planner import RequirementEstimator
    from parallax.schedule import Plan

logger = _lazy.logger(__name__)

_UNBOUNDED: Final = frozenset({"Loop", "Scan"})
"""How long these take depends on data, so the last run says nothing of the next: always interruptible."""


def _refusals() -> tuple[type[Exception], ...]:
    """What opening a model at sight can end with: then it is read, which may say better what is wrong."""
    return (ParallaxError, *ort.OPENING_EXCEPTIONS)


class Opening:
    """Makes one attempt to open a model.

    Args:
        request: what the session was given.
        model: what it loaded already, or was given loaded; None: it is read.
        opened_bundle: the bundle that was open before, if one was.
        look: what it looked at before, in place of loading it.

    Attributes:
        model: what was loaded so far; None where the session does not look into the model.
        look: of a model that stays whole for a reason that shows at sight; it is not loaded.
    """

    def __init__(
        self,
        request: OpeningRequest,
        model: Model | None,
        opened_bundle: OpenedBundle | None,
        look: ModelSummary | None = None,
    ) -> None:
        self._request = request
        self.model = model
        self.look = look
        self._bundles = BundleOpening(request, opened_bundle)
        self._estimator: RequirementEstimator | None = None
        self._budget: Budget | None = None
        self._is_unbounded = False
        self._trimming: Trimming | None = None

    @property
    def opened_bundle(self) -> OpenedBundle | None:
        """The bundle that the session runs, if it runs one."""
        return self._bundles.opened_bundle

    def open(self) -> Opened:
        """What is open now.

        Raises: as ``InferenceSession``. What was loaded until then is kept in ``model``.
        """
        request = self._request
        source = request.source
        if self.model is None and self.look is None:
            was_bundle = self.opened_bundle is not None
            opened = self._bundles.open()
            if opened is not None:
                return opened
            if was_bundle:
                self.model = source.read()
        if not is_onnx_source(source.path, request.data, request.session_options):
            source.hold(source.path)
            return self._open_whole("the model is not in ONNX format (ORT format has no graph to split)")
        if self.model is None:
            seen = self._open_at_sight()
            if seen is not None:
                return seen
        if self.model is not None:
            self.model.files.check_intact()
        try:
            model = self._read_model()
        except ModelError as error:
            return self._open_refused(error)
        if request.options.padding is not None:
            from parallax.opening._trimming import trimming_of

            self._trimming = trimming_of(model, request.session_options)
        obstacle = why_kept_whole(request, model)
        if obstacle is not None:
            return self._open_whole(obstacle)
        return self._open_planned(model)

    @property
    def _is_by_default(self) -> bool:
        """Whether all is left to the default policy, in the shapes that the model has."""
        from parallax.planner import is_unasked  # no bundle is planned

        options = self._request.options
        return is_unasked(options) and options.budget_bytes is None and options.shapes is None

    def _open_at_sight(self) -> Opened | None:
        """A model that the default policy leaves whole for a reason that shows at sight; None where it must be read, be
        it to say what is wrong with it."""
        request, self.look = self._request, None
        providers, provider_options, disabled_optimizers = request.arguments
        if (
            not self._is_by_default
            or request.options.calibration is not None
            or request.options.slim
            or request.session_options is not None
            or request.devices
            or request.reads_config
            or disabled_optimizers
            or request.options.padding is not None
            or why_not_cut(None, providers) is not None
        ):
            return None
        look = request.source.look()
        if look is None:
            return None
        from parallax.planner import may_be_remembered, whole_plan, why_whole_at_sight

        cores = session_cores(request.options, None)
        reason = why_whole_at_sight(look, cores=cores)
        if reason is None or may_be_remembered(look.structure_digest, request.options.cache_dir):
            return None
        check_providers(providers, provider_options)
        if look.files.model is not None:
            request.source.files = look.files
        plan = whole_plan(look, reason, cores=cores)
        try:
            opened = open_whole(request, plan, model=None, session_options=None)
        except _refusals():
            request.forget_stock()
            return None
        self.look = look
        return opened

    def _read_model(self) -> Model:
        """The model that is to be opened; its graph is built at once unless the default policy may do without.

        Raises: ModelError if the analysis refuses it.
        """
        request = self._request
        if self.model is None:
            self.model = request.source.read()
        if request.options.slim:
            from parallax.opening._slimming import slimmed

            self.model = slimmed(self.model, request.session_options)
        model = self.model
        if model.survey.with_bodies or request.devices or not self._is_by_default:
            # Bodies are checked before the runtime sees them; a loop in one may run for as long as it likes.
            self._is_unbounded = any(node.op_type in _UNBOUNDED for _, node in model.graph.walk())
        return model

    def _open_planned(self, model: Model) -> Opened:
        request = self._request
        providers, provider_options, _ = request.arguments
        check_providers(providers, provider_options)
        options = planning_options(request)
        from parallax.opening._plan_choice import choose_plan

        try:
            plan, executor = choose_plan(model, options, request.session_options, self._fit)
        except ModelError as error:
            if model.fault is None:
                raise
            return self._open_refused(error)
        if executor is None:
            return self._open_whole(plan.provenance.reason, plan)
        return self._open_split(model.graph, in_memory_if_small(model), plan, executor)

    def _open_split(self, graph: OpGraph, model: Model, plan: Plan, executor: Executor) -> Opened:
        self.model = model
        opened = opened_split(self._request, graph, model, plan, executor)
        return self._finished(opened)

    def _open_whole(self, reason: str, plan: Plan | None = None) -> Opened:
        """Leave the model to the base class. ``plan``: for the whole model; None makes one that gives the reason."""
        request = self._request
        if plan is None:
            from parallax.planner import whole_plan

            cores = session_cores(request.options, request.session_options)
            plan = self._fit(self.model, whole_plan(self.model, unjudged(reason, request.options), cores=cores))
        opened = open_whole(request, plan, model=self.model, session_options=request.session_options)
        if request.options.padding is not None and self._trimming is None:
            from parallax.opening._trimming import not_trimmed

            raise not_trimmed(reason)
        return self._finished(opened)

    def _finished(self, opened: Opened) -> Opened:
        made = replace(opened.within(self._budget, self._estimator), is_unbounded=self._is_unbounded)
        return made.with_trimming(self._trimming)

    def _open_refused(self, error: ModelError) -> Opened:
        """Our analysis refuses the model: let the runtime say what it thinks of it, in its own class.

        Except for what is refused for safety, which is not the runtime's to waive. Data that are missing or too short
        here may be elsewhere: in the session options, or in a folder that they name.
        """
        if isinstance(error, UnsafeModelError):
            from onnxruntime.capi import onnxruntime_pybind11_state as C

            raise ort.both(type(error), C.Fail)(error.what, where=error.where, fix=error.fix) from error
        self.model = None
        source = self._request.source
        source.hold(source.path)
        try:
            opened = self._open_whole(f"the analysis refuses the model: {error}")
            _check_names(opened)
        except Exception as theirs:
            if isinstance(theirs, ort.OPENING_EXCEPTIONS):
                combined = ort.both(type(error), native_class(theirs))
                raise combined(error.what, where=error.where, fix=error.fix) from theirs
            raise
        logger.warning("the runtime opens a model that the analysis refuses, so it runs whole: %s", error)
        return opened

    def _fit(self, shaped: Model | None, plan: Plan, *, may_slice: bool = False) -> Plan:
        """The plan that fits the budget, in place of ``plan``; with peaks, where they are known.

        Raises: BudgetError if none does.
        """
        options, model = self._request.options, self.model
        if options.budget_bytes is None and (shaped is None or plan.is_whole):
            return plan
        from parallax.memory import Budget, MemoryRequirement
        from parallax.planner import fit_plan, with_known_peaks

        if options.budget_bytes is None:
            return plan if shaped is None else with_known_peaks(shaped, plan)
        if model is None:
            # There is no graph to look at, so nothing can be refused, and each run gets all there is.
            self._budget = Budget.of(
                options.budget_bytes, weight_bytes=self._request.source.size_bytes, margin=options.margin
            )
            self._budget.check(MemoryRequirement.UNKNOWN)
            return plan
        plan, self._estimator, self._budget = fit_plan(
            model,
            plan,
            options.budget_bytes,
            options.shapes,
            weight_bytes=model.weight_bytes,
            margin=options.margin,
            may_slice=may_slice,
        )
        return plan


def why_kept_whole(request: OpeningRequest, model: Model) -> str | None:
    """Why what the caller asked for beside the model keeps it whole, or None."""
    obstacle = why_not_cut(request.session_options, request.arguments.providers)
    if obstacle is not None:
        return obstacle
    if request.arguments.disabled_optimizers:
        return "single optimisers were disabled"
    if request.reads_config:
        from parallax.options import MODEL_CONFIG_KEY

        if MODEL_CONFIG_KEY in model.metadata:
            return f"session options are to be read from the model's own metadata ({MODEL_CONFIG_KEY})"
    return None


def planning_options(request: OpeningRequest) -> PlanningOptions:
    """The options to plan with: with the devices of ``providers=``, and without backends that nobody meant."""
    options = replace(request.options, devices=request.devices)
    if options.backends is None and (
        request.arguments.providers or request.session_options is not None or options.budget_bytes is not None
    ):
        # Who names providers or sets the runtime's options means the runtime; and what others hold in memory
        # no budget knows.
        return replace(options, backends=())
    return options


def opened_split(request: OpeningRequest, graph: OpGraph, model: Model, plan: Plan, executor: Executor) -> Opened:
    """What is open of a model that runs in segments.

    Args:
        graph: of the model as it came.
        model: that the segments were made of.
        plan: with the peaks of its segments.
        executor: of the plan.
    """
    from parallax.engine import SplitRunner

    read_files = model.files if model.files.mapped_bytes else None
    return Opened(
        state=SessionState.SPLIT,
        runner=SplitRunner.of(executor, plan, graph, request.events, read_files=read_files),
        attributes=split_attributes(executor, graph, request.session_options),
    )


def _check_names(opened: Opened) -> None:
    """Names that are not text are found here, not when they are asked for. Raises: as the runtime does."""
    assert opened.runner is not None
    (whole,) = opened.runner.sessions
    for argument in (*whole.inputs_meta, *whole.overridable_initializers):
        argument.name  # noqa: B018  (asked for its errors)
