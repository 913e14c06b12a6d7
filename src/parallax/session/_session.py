"""``parallax.InferenceSession``: a real subclass of ``onnxruntime.InferenceSession``.

An uncut model *is* the wrapped session: the base class does everything, at its speed. A cut model runs
through the engine, and the whole-model C session (``_sess``) is made only when something asks for it,
so that weights are not held twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Unpack

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C
from onnxruntime.capi.onnxruntime_inference_collection import check_and_normalize_provider_args

from parallax.bundle import Bundle, looks_like_bundle
from parallax.device import StockSession, move_to_first_core, private_bytes, trim_heap
from parallax.engine import (
    OPENING_EXCEPTIONS,
    RUNTIME_EXCEPTIONS,
    Declaration,
    Executor,
    RunBudget,
    RunLastsError,
    SegmentSpan,
    SinkHolder,
    TraceSink,
    both,
    declared_outputs,
    open_failure,
    restore_declaration,
    run_failure,
    run_interruptibly,
    run_watched,
    shrink_shared_allocator,
)
from parallax.errors import BackendError, BundleError, ConfigError, InputError, ModelError, UnsafeModelError
from parallax.model import HeldFiles, Model, OpGraph, read_model
from parallax.schedule import Plan
from parallax.session._backends import installed_backends
from parallax.session._budgeting import counted_bundle, estimate_bundle, fit_plan, with_known_peaks
from parallax.session._bundles import (
    LARGE_WEIGHT_BYTES,
    Interface,
    cached_bundle,
    mapped_defaults,
    mapped_options,
    open_for_here,
    read_interface,
)
from parallax.session._carried_options import CarriedOptions
from parallax.session._config_keys import MODEL_CONFIG_KEY
from parallax.session._estimate import UNKNOWN_NEED, Estimator, RunNeed, dispatcher_budget, estimate_model
from parallax.session._feeds import FeedBinder, FeedSpec
from parallax.session._gate import Grant
from parallax.session._given_options import copied_options, why_not_with_bundle, why_not_with_split_bundle
from parallax.session._memory import IDLE_TRIM_S, Budget, SessionMemory, shapes_of
from parallax.session._options import (
    OPTION_RULES,
    Options,
    PlanningOptions,
    SessionKeywords,
    gather_options,
    shows_options,
    with_option_docs,
)
from parallax.session._planning import choose_plan, is_onnx_source, is_unasked, planned_model, session_cores, uncut_plan
from parallax.session._providers import CPU_PROVIDER, leave_out_missing, split_providers
from parallax.session._run_options import why_run_needs_whole
from parallax.session._runtime_options import (
    compiled_options,
    has_pinned_threads,
    lean_memory,
    lean_options,
    planned_threads,
    runtime_options,
    why_not_compiled,
    why_not_cut,
)
from parallax.session._shrink import shrink_arena
from parallax.session._source import (
    OpenedBundle,
    SessionSource,
    check_arrived,
    in_memory_if_small,
    needs_no_threads,
    travelling,
)
from parallax.session._usage import MemoryUsage

logger = logging.getLogger(__name__)

# A run longer than this is worth the hand-over that lets Ctrl-C stop it (see engine._interrupt).
_INTERRUPTIBLE_NS = 100_000_000

# Nothing is known of a first run but the weights it reads. Below this size it rarely takes a second, and another
# thread would cost it some ten milliseconds: a core is shared until the system notices that the next one idles.
_SLOW_WEIGHT_BYTES = 256 << 20

# How long these take depends on data, so the last run says nothing of the next: always interruptible.
_UNBOUNDED = frozenset({"Loop", "Scan"})

_fork_generation = 0
# C sessions that a fork left without their threads: destroying one would wait for threads that are gone.
_orphans: list[Any] = []

_async_pool: ThreadPoolExecutor | None = None
_async_lock = threading.Lock()
_reopen_lock = threading.Lock()


def _note_fork() -> None:
    global _async_lock, _async_pool, _fork_generation, _reopen_lock
    _fork_generation += 1
    _async_pool = None
    # Whoever held a lock when the process forked is not there to release it.
    _async_lock = threading.Lock()
    _reopen_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class InferenceSession(StockSession):  # type: ignore[misc]
    """Runs an ONNX model through Parallax; usable wherever ``onnxruntime.InferenceSession`` is.

    Args:
        path_or_bytes: file name, serialised model, ``onnx.ModelProto``, or the folder of a bundle that
            ``parallax.compile`` made. Of a bundle, plan and options are those it was compiled with.
        sess_options, providers, provider_options: as in ONNX Runtime. Providers other than the CPU's get
            the whole model, unless ``tune`` finds regions of it that had better run there beside the CPU. Backends of
            `parallax.device.open_backend` may stand among them ("emulated:pixel-6-gpu", "webgpu"): what gains there,
            launches and transfers counted, runs there, and the rest beside it.
        options: a record of Parallax's own options.
        keywords: fields of `parallax.Options`, in place of ``options`` or for what that leaves at its default; and
            ONNX Runtime's own (``enable_fallback``, ``disabled_optimizers``, ``read_config_from_model``).

    ``plan`` says what was decided and why.

    Raises:
        ModelError: the model is at fault. Also an instance of the class ONNX Runtime raises for it.
        ConfigError: an option is at fault.
        BudgetError: the memory budget is too small; its ``least_bytes`` would do.
        BundleError: a bundle is damaged, or was made for another machine or version.

    Example::

        session = parallax.InferenceSession("model.onnx")
        outputs = session.run(None, {"x": array})
    """

    _executor: Executor | None = None
    # The C session's run, where nothing of the base class's stands between: an uncut model on the CPU.
    _direct: Callable[..., Any] | None = None
    _fork = 0
    _unbounded = False
    # Of an unbounded model: whether all runs so far were short. None before the first; False once one has lasted.
    _usually_short: bool | None = None
    _memory: SessionMemory | None = None
    _estimator: Estimator | None = None
    _budget: Budget | None = None
    _declaration: Declaration | None = None
    _stored_declaration: bytes | None = None
    _source: SessionSource | None = None
    # The bundle that is open, from when it is on.
    _opened_bundle: OpenedBundle | None = None
    # Mapped files that segments read their weights from.
    _read_files: HeldFiles | None = None
    # Set by the untyped base class; named here for type checkers.
    _model_path: str | None
    _model_bytes: bytes | None
    _sess_options: Any
    _sess_options_initial: Any
    _captured_graph_bindings: dict[int, Any]
    _providers: list[str]
    _enable_fallback: bool
    _read_config_from_model: bool

    @shows_options(tuple(OPTION_RULES), takes_others=True)
    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        options: Options | None = None,
        **keywords: Unpack[SessionKeywords],
    ) -> None:
        if sess_options is not None and not isinstance(sess_options, onnxruntime.SessionOptions):
            raise TypeError(f"sess_options is an onnxruntime.SessionOptions or None, not {type(sess_options).__name__}")
        given: dict[str, Any] = dict(keywords)
        self._given_options = gather_options(options, {name: given.pop(name) for name in OPTION_RULES if name in given})
        self._parallax_options = PlanningOptions.of(self._given_options)
        self._tracer = SinkHolder(self._given_options.trace)
        self._lazy_lock = threading.RLock()
        self._model: Model | None = None
        self._plan: Plan | None = None
        self._bundle: Bundle | None = None
        self._fork = _fork_generation
        if hasattr(path_or_bytes, "SerializeToString") and hasattr(path_or_bytes, "graph"):
            self._model = read_model(path_or_bytes)
            path_or_bytes = self._model.whole()
        super().__init__(path_or_bytes, sess_options, providers, provider_options, **given)
        self._interruptible = self._may_be_slow()

    # -- opening ----------------------------------------------------------------------------------------

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        """Called by the base class to open the model, and again by ``set_providers``."""
        if self._source is None:
            self._source = SessionSource(self._model_path, self._model_bytes)
        self._forget_opened()
        self._given_providers = (providers, provider_options)
        # Where the base class goes back to when what was asked for is refused, which may be before it opens anything.
        self._fallback_providers = [CPU_PROVIDER]
        providers, provider_options, missing = leave_out_missing(providers, provider_options)
        self._devices, providers, provider_options = split_providers(
            providers, provider_options, tunes=self._parallax_options.tune
        )
        self._whole_arguments = (providers, provider_options, disabled_optimizers)
        self._open()
        if missing:
            told = self.plan.provenance
            self._plan = replace(self.plan, provenance=replace(told, reason=f"{missing}; {told.reason}"))
        # As the runtime has it: what was registered, whether anything runs there or not.
        self._providers = [*(device.name for device in self._devices), *self._providers]
        self._watch_memory()

    def _open(self) -> None:
        providers, provider_options, disabled_optimizers = self._whole_arguments
        options, source = self._parallax_options, self._source
        assert source is not None
        if self._model is None and self._open_as_bundle(source.path):
            return
        if not is_onnx_source(source.path, self._model_bytes, self._sess_options):
            source.hold(source.path)
            self._open_whole("the model is not in ONNX format (ORT format has no graph to cut)")
            return
        if self._model is not None:
            self._model.files.check_intact()
        try:
            model = self._read_model()
        except ModelError as error:
            self._open_refused(error)
            return
        obstacle = why_not_cut(self._sess_options, providers)
        if obstacle is None and disabled_optimizers:
            obstacle = "single optimisers were disabled"
        if obstacle is None and self._read_config_from_model and MODEL_CONFIG_KEY in model.metadata:
            obstacle = f"session options are to be read from the model's own metadata ({MODEL_CONFIG_KEY})"
        if obstacle is not None:
            self._open_whole(obstacle)
            return
        # The base class checks these only when it opens the model itself.
        check_and_normalize_provider_args(providers, provider_options, onnxruntime.get_available_providers())
        if options.backends is None:
            # Who names providers or sets the runtime's options means the runtime; and what others hold in memory
            # no budget knows.
            named = providers or self._sess_options is not None or options.budget_bytes is not None
            options = replace(options, backends=() if named else installed_backends())
        options = replace(options, devices=self._devices)
        try:
            plan, executor = choose_plan(model, options, self._sess_options, self._fit)
        except ModelError as error:
            if model.fault is None:
                raise
            self._open_refused(error)
            return
        self._plan = plan
        if executor is not None:
            self._model = in_memory_if_small(model)
            if self._model.files.mapped_bytes:
                self._read_files = self._model.files
            self._adopt(model.graph, plan, executor)
            return
        self._open_whole(plan.provenance.reason, plan)

    def _read_model(self) -> Model:
        """The model that is to be opened; its graph is built at once unless the default policy may do without.

        Raises: ModelError if the analysis refuses it.
        """
        assert self._source is not None
        model = self._model = self._source.read() if self._model is None else self._model
        options = self._parallax_options
        by_default = is_unasked(options) and options.budget_bytes is None and options.shapes is None
        if model.survey.with_bodies or self._devices or not by_default:
            # Bodies are checked before the runtime sees them; a loop in one may run for as long as it likes.
            self._unbounded = any(node.op_type in _UNBOUNDED for _, node in model.graph.walk())
        return model

    def _open_cached(self) -> bool:
        """Open from the cache of bundles; False where that cannot be."""
        providers, _, disabled_optimizers = self._whole_arguments
        path = None if self._source is None else self._source.path
        why = "session options were given" if self._sess_options is not None else why_not_cut(None, providers)
        if path is None:
            why = "the model was given as bytes"
        elif self._devices:
            why = f"bundles are compiled for the CPU, not for {self._devices[0].name}"
        elif disabled_optimizers:
            why = "single optimisers were disabled"
        elif not is_onnx_source(path, None, None):
            why = "the model is not in ONNX format"
        if why is not None or path is None:
            logger.info("cache=True is of no effect: %s", why)
            return False
        bundle = cached_bundle(path, self._parallax_options)
        if bundle is None:
            return False
        # What was decided when it was compiled is not asked of it again.
        options = self._parallax_options
        asked = PlanningOptions(cache_dir=options.cache_dir, verify=options.verify, threads=options.threads)
        try:
            self._open_bundle(str(bundle), asked)
        except BundleError as error:
            logger.warning("the cached bundle of %s cannot be used: %s", path, error)
            self._forget_opened()
            return False
        return True

    def _open_as_bundle(self, path: str | None) -> bool:
        """Whether there was a bundle to open: the one that was open before, the one at the path, or a cached one."""
        if self._opened_bundle is not None:
            return self._open_again(self._opened_bundle)
        if path is not None and looks_like_bundle(path):
            self._open_bundle(path, self._parallax_options)
            return True
        return self._parallax_options.cache and self._open_cached()

    def _open_again(self, opened: OpenedBundle) -> bool:
        """Open the session's bundle once more; False where it is gone, but not the model that it was made of."""
        assert self._source is not None
        try:
            self._open_bundle(opened.path, opened.options)
        except BundleError as error:
            if self._source.files is None:
                raise
            logger.warning("a bundle is opened no more, so the model itself is: %s", error)
            self._bundle = self._executor = self._opened_bundle = None
            self._model = self._source.read()
            return False
        return True

    def _open_bundle(self, path: str, options: PlanningOptions) -> None:
        """Open a compiled model. Its plan is fixed; what is left to the caller is how it is run."""
        providers, _, disabled_optimizers = self._whole_arguments
        available = onnxruntime.get_available_providers()
        # The base class warns of what is not installed, and leaves it out.
        installed = [entry for entry in providers or () if _provider_name(entry) in available]
        obstacle = why_not_compiled(self._sess_options, installed)
        if self._devices:
            obstacle = f"it is compiled for the CPU, not for {self._devices[0].name}"
        if disabled_optimizers:
            obstacle = "single optimisers were disabled"
        if obstacle is not None:
            raise _not_with_a_bundle(obstacle, path)
        bundle = open_for_here(path, self._use_bundle, options, self._sess_options)
        if self._opened_bundle is None:
            self._opened_bundle = OpenedBundle.of(bundle, path, options)

    def _forget_opened(self) -> None:
        """Back to where nothing was opened yet: a bundle that was replaced meanwhile may be of another kind."""
        self._executor = self._direct = self._bundle = self._memory = self._estimator = self._budget = None
        self._read_files = None
        self._declaration = self._stored_declaration = None
        self._sess_options = self._sess_options_initial
        self._sess = None

    def _use_bundle(self, bundle: Bundle) -> Bundle:
        assert self._source is not None
        self._forget_opened()
        if self._opened_bundle is None:
            self._source.hold_of_bundle(bundle)
        else:
            self._opened_bundle.check_same(bundle)
        self._bundle = bundle
        self._stored_declaration = bundle.declaration()
        self._unbounded = bundle.manifest.interface.unbounded
        self._check_options_of_bundle(bundle)
        if not bundle.plan.is_uncut:
            providers, provider_options, _ = self._whole_arguments
            # The base class checks these only when it opens the model itself.
            check_and_normalize_provider_args(providers, provider_options, onnxruntime.get_available_providers())
            inherited = compiled_options(self._sess_options)
            if self._parallax_options.budget_bytes is None:
                executor = bundle.compile(inherited)
            else:
                executor = counted_bundle(bundle).compile(lean_options(inherited))
            self._plan = executor.plan
            self._adopt(read_interface(bundle, executor), executor.plan, executor)
            self._fit_bundle(bundle, [segment.session for segment in executor.segments])
            return bundle
        given_options = self._sess_options
        try:
            # Options of the caller's could not be rid of them again.
            weights = bundle.map_weights(0) if given_options is None else None
            with mapped_options(given_options, weights, bundle.manifest.weight_bytes) as self._sess_options:
                threads = self._parallax_options.threads or bundle.manifest.options.threads
                self._open_whole("", bundle.plan, threads=threads, graph_path=str(bundle.graph_path(0)))
            if weights is not None:
                weights.keep_for(self._sess)
                # Others may open sessions with these: they must not speak of memory that this one holds.
                opened = self._sess_options
                self._sess_options = mapped_defaults(bundle.manifest.weight_bytes)
                self._sess_options.intra_op_num_threads = opened.intra_op_num_threads
            self._fit_bundle(bundle, [self._sess])
            if bundle.manifest.weight_bytes >= LARGE_WEIGHT_BYTES:
                trim_heap()
        except RUNTIME_EXCEPTIONS as error:
            self._sess_options = given_options
            raise both(BundleError, _native_class(error))(
                f"the runtime refuses the bundle's graph: {error}",
                where=str(bundle.path),
                fix="compile the model again",
            ) from error
        return bundle

    def _check_options_of_bundle(self, bundle: Bundle) -> None:
        """Raises: ConfigError for session options that a compiled model cannot follow."""
        given = self._sess_options
        if given is None:
            return
        names = bundle.names()
        obstacle = None if bundle.plan.is_uncut else why_not_cut(given, None)
        if obstacle is None:
            obstacle = why_not_with_bundle(given, names, (file.location for file in bundle.manifest.source.files))
        if obstacle is None and not bundle.plan.is_uncut:
            obstacle = why_not_with_split_bundle(given, names)
        if obstacle is not None:
            raise _not_with_a_bundle(obstacle, str(bundle.path))

    def _open_refused(self, error: ModelError) -> None:
        """Our analysis refuses the model: let the runtime say what it thinks of it, in its own class.

        Except for what is refused for safety, which is not the runtime's to waive. Data that are missing or too short
        here may be elsewhere: in the session options, or in a folder that they name.
        """
        if isinstance(error, UnsafeModelError):
            raise both(type(error), C.Fail)(error.what, where=error.where, fix=error.fix) from error
        self._model = None
        assert self._source is not None
        self._source.hold(self._source.path)
        try:
            self._open_whole(f"the analysis refuses the model: {error}")
            # Names that are not text are found here, not when they are asked for.
            for argument in (*self._inputs_meta, *self._overridable_initializers):
                argument.name  # noqa: B018  (asked for its errors)
        except Exception as theirs:
            if isinstance(theirs, OPENING_EXCEPTIONS):
                raise both(type(error), _native_class(theirs))(error.what, where=error.where, fix=error.fix) from theirs
            raise
        logger.warning("the runtime opens a model that the analysis refuses, so it runs uncut: %s", error)

    def _open_whole(
        self, reason: str, plan: Plan | None = None, *, threads: int | None = None, graph_path: str | None = None
    ) -> None:
        """Leave the model to the base class; its options are the caller's, but for the threads that were planned.

        Args:
            threads: instead of those of our own options.
            graph_path: of a bundle's graph, instead of the model.
        """
        cores = session_cores(self._parallax_options, self._sess_options)
        if plan is None:
            plan = self._fit(self._model, uncut_plan(self._model, reason, cores=cores))
        self._plan = plan
        options = self._sess_options
        threads = threads or self._parallax_options.threads
        lean = contextlib.nullcontext if self._parallax_options.budget_bytes is None else lean_memory
        with lean(options) as options, planned_threads(options, threads, plan) as self._sess_options:
            if has_pinned_threads(self._sess_options):
                move_to_first_core()
            try:
                if graph_path is not None:
                    self._create_stock(graph_path)
                else:
                    assert self._source is not None
                    self._source.open_whole(self._model, self._sess_options_initial, self._create_stock)
            except OPENING_EXCEPTIONS as error:
                ours = None if self._model is None else self._model.fault
                if ours is not None:  # it says better what is wrong, and where
                    raise both(type(ours), _native_class(error))(ours.what, where=ours.where, fix=ours.fix) from error
                raise open_failure(error) from error
        self._output_names = [argument.name for argument in self._outputs_meta]
        plain = self._providers == ["CPUExecutionProvider"] and not self._overridable_initializers
        self._tracer = SinkHolder(self._tracer.trace_sink)
        if plain and self._tracer.trace_sink is None and not self._is_watched:
            whole: Any = self._sess
            self._direct = whole.run

    def _create_stock(self, source: str | bytes) -> None:
        """Have the base class open this, whatever was given to the session."""
        given = self._model_path, self._model_bytes
        self._model_path, self._model_bytes = (source, None) if isinstance(source, str) else (None, source)
        try:
            super()._create_inference_session(*self._whole_arguments)
        finally:
            self._model_path, self._model_bytes = given

    def _adopt(self, graph: OpGraph | Interface, plan: Plan, executor: Executor) -> None:
        """Make a cut plan this session's: what the base class reads of ``_sess`` comes from the segments."""
        executor.trace_sink = self._tracer.trace_sink
        self._tracer = executor
        sessions = [segment.session for segment in executor.segments]
        inputs = {
            arg.name: (arg, info) for s in sessions for arg, info in zip(s.inputs_meta, s.input_meminfos, strict=True)
        }
        outputs = {
            arg.name: (arg, info) for s in sessions for arg, info in zip(s.outputs_meta, s.output_meminfos, strict=True)
        }
        overridable = {arg.name: arg for s in sessions for arg in s.overridable_initializers}
        self._inputs_meta = [inputs[info.name][0] for info in graph.inputs]
        self._input_meminfos = [inputs[info.name][1] for info in graph.inputs]
        self._outputs_meta = [outputs[info.name][0] for info in graph.outputs]
        self._output_meminfos = [outputs[info.name][1] for info in graph.outputs]
        self._overridable_initializers = [
            overridable[info.name] for info in graph.overridable if info.name in overridable
        ]
        first = sessions[0]
        self._input_epdevices = list(first.input_epdevices)[:1] * len(self._inputs_meta)
        self._model_meta = first.model_meta
        self._providers = first.get_providers()
        self._provider_options = first.get_provider_options()
        self._profiling_start_time_ns = first.get_profiling_start_time_ns
        if self._sess_options is None:
            self._sess_options = onnxruntime.SessionOptions()
        else:
            # Whoever changes the caller's object afterwards means another session. A split model has none that a copy
            # would lose: providers and custom operators keep it whole.
            self._sess_options = self._sess_options_initial = copied_options(self._sess_options)
        self._output_names = [info.name for info in graph.outputs]
        self._known_outputs = frozenset(self._output_names)
        self._binder = FeedBinder(
            [
                *(FeedSpec.from_tensor(info, required=True) for info in graph.inputs),
                *(FeedSpec.from_tensor(info, required=False) for info in graph.overridable),
            ]
        )
        del self._sess  # from here on __getattr__ makes it on demand
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        # Only reached when the attribute is missing, which for _sess means: the model is cut and nobody has
        # asked for the whole-model session yet. In an uncut session _sess is a plain attribute.
        if name == "_sess" and self._executor is not None:
            with self._lazy_lock:
                if "_sess" not in self.__dict__:
                    self.__dict__["_sess"] = self._make_whole_session()
                return self.__dict__["_sess"]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_outputs(self) -> Any:
        """The outputs as ONNX Runtime declares them. Of a split model that takes, the first time, milliseconds."""
        if (self._executor is not None or self._stored_declaration is not None) and self._declaration is None:
            with self._lazy_lock:
                if self._declaration is None:
                    self._declaration = self._declare_outputs()
                    self._outputs_meta = list(self._declaration.arguments)
        return super().get_outputs()

    def _declare_outputs(self) -> Declaration:
        parts = Declaration(arguments=self._outputs_meta, session=self._executor or self._sess)
        try:
            if self._stored_declaration is not None:
                found = restore_declaration(self._stored_declaration)
            elif self._model is not None:
                self._model.files.check_intact()
                found = declared_outputs(self._model, runtime_options(self._sess_options_initial))
            else:
                return parts
        except BackendError as error:
            logger.warning("only parts of the model can say what its outputs are: %s", error)
            return parts
        # What is no tensor has no shape, so that parts of the model describe it as well.
        known = {argument.name: argument for argument in (*parts.arguments, *found.arguments)}
        arguments = [known[name] for name in self._output_names]
        return Declaration(arguments=arguments, session=(parts.session, found.session))

    def _make_whole_session(self) -> Any:
        logger.info("something asked for the whole-model session of a cut model; its weights are now held twice")
        if self._memory is not None and self._budget is not None:
            known = self._model if self._bundle is None else self._bundle.manifest
            self._memory.hold(self._budget.weight_bytes if known is None else known.weight_bytes)
        providers, provider_options, disabled_optimizers = self._whole_arguments
        source = self._source
        assert source is not None
        if self._bundle is not None and source.files is None:
            raise BundleError(
                "this needs the whole model, which a bundle of a cut model does not hold",
                where=str(self._bundle.path),
                fix="compile it with portable=True (--portable), or open the model itself",
            )
        with planned_threads(self._sess_options_initial, self._parallax_options.threads, None) as session_options:
            whole = source.open_whole(
                self._model,
                self._sess_options_initial,
                lambda given: StockSession(
                    given,
                    session_options,
                    providers,
                    provider_options,
                    disabled_optimizers=disabled_optimizers,
                ),
            )
        return whole._sess

    def _reset_session(self, providers: Any, provider_options: Any) -> None:
        self._executor = None
        self._direct = None
        super()._reset_session(providers, provider_options)
        self._interruptible = self._may_be_slow()

    def _may_be_slow(self) -> bool:
        """Whether the first run had better be one that Ctrl-C can stop."""
        if self._bundle is not None:
            weight_bytes = self._bundle.manifest.weight_bytes
        elif self._model is not None:
            weight_bytes = self._model.weight_bytes
        else:
            return True
        return self._unbounded or weight_bytes >= _SLOW_WEIGHT_BYTES

    def _reopen_after_fork(self) -> None:
        """A forked child has no lanes and no pool threads: open again what the session was opened with.

        Without threads, the runtime's session goes on as ONNX Runtime's own would: its weights stay shared with the
        parent.
        """
        with _reopen_lock:
            if self._fork == _fork_generation:
                return
            before = dict(self.__dict__)
            self._lazy_lock = threading.RLock()
            self._fork = _fork_generation
            self._memory = None
            if self._executor is None and needs_no_threads(self._sess_options, self._providers):
                self._watch_memory()
                return
            _orphans.append((self.__dict__.get("_sess"), self._executor, self._inputs_meta, self._outputs_meta))
            self._captured_graph_bindings = {}
            self._executor = None
            self._sess = None
            self._sess_options = self._sess_options_initial
            disabled_optimizers = self._whole_arguments[2]
            try:
                self._create_inference_session(*self._given_providers, disabled_optimizers)
            except BaseException:
                # Half open, the session would answer. The next run says the same again.
                self.__dict__.clear()
                self.__dict__.update(before)
                raise

    # -- memory -----------------------------------------------------------------------------------------

    @property
    def _is_watched(self) -> bool:
        """Whether runs are counted: for a budget, or to know when the session idles."""
        options = self._parallax_options
        return options.budget_bytes is not None or options.idle_trim_s not in (None, float("inf"))

    def _fit(self, shaped: Model | None, plan: Plan) -> Plan:
        """The plan that fits the budget, in place of ``plan``; with peaks, where they are known."""
        options, model = self._parallax_options, self._model
        if options.budget_bytes is None:
            return plan if shaped is None else with_known_peaks(shaped, plan)
        if model is None:
            # There is no graph to look at, so nothing can be refused, and each run gets all there is.
            self._budget = Budget.of(options.budget_bytes, weight_bytes=self._source_bytes())
            self._budget.check(UNKNOWN_NEED, where="memory_budget")
            return plan
        plan, self._estimator, self._budget = fit_plan(
            model, plan, options.budget_bytes, options.shapes, weight_bytes=model.weight_bytes
        )
        return plan

    def _fit_bundle(self, bundle: Bundle, sessions: Sequence[Any]) -> None:
        """Refuse a bundle that does not fit the budget. Its weights are mapped."""
        budget_bytes = self._parallax_options.budget_bytes
        if budget_bytes is None:
            return
        self._budget = Budget.of(budget_bytes, weight_bytes=0, segments=len(sessions))
        self._estimator = estimate_bundle(bundle, sessions)
        self._budget.check(self._estimator.need({}), where="memory_budget")

    def _source_bytes(self) -> int:
        assert self._source is not None
        return self._source.size_bytes

    def _watch_memory(self) -> None:
        """Once the session is open: from now on runs are admitted, and idle memory goes back."""
        if not self._is_watched:
            return
        given = self._parallax_options.idle_trim_s
        trim = weakref.WeakMethod(self._give_back)

        def trim_if_alive() -> None:
            method = trim()
            if method is not None:
                method()

        executor = self._executor
        self._memory = SessionMemory(
            estimator=self._estimator,
            budget=self._budget,
            idle_trim_s=IDLE_TRIM_S if given is None else given,
            trim=trim_if_alive,
            arenas=None if executor is None else lambda: executor.memory().touched_bytes,
        )

    def memory(self) -> MemoryUsage:
        """What this session holds now, and what it plans with. Takes milliseconds.

        A session without a budget infers the sizes of its tensors when this is first called, which takes
        longer.
        """
        with self._lazy_lock:
            executor, bundle, model = self._executor, self._bundle, self._model
            if self._estimator is None:
                if bundle is not None:
                    sessions = [self._sess] if executor is None else [segment.session for segment in executor.segments]
                    self._estimator = estimate_bundle(bundle, sessions)
                elif model is not None and model.fault is None:
                    planned = planned_model(model, self.plan)
                    self._estimator = estimate_model(planned, self.plan, planned=self._parallax_options.shapes)
            estimator = self._estimator
        memory, budget = self._memory, self._budget
        shapes = {} if memory is None else memory.last_shapes
        need = UNKNOWN_NEED if estimator is None else estimator.need(shapes)
        arenas = None if executor is None else executor.memory()
        gate = None if memory is None else memory.gate
        return MemoryUsage(
            planned_bytes=None if arenas is None else arenas.planned_bytes,
            reserved_bytes=None if arenas is None else arenas.reserved_bytes,
            touched_bytes=None if arenas is None else arenas.touched_bytes,
            run_peak_bytes=need.wanted_bytes if need.is_known else None,
            weights_mapped_bytes=self._mapped_bytes(),
            weights_private_bytes=0 if bundle is not None else None if model is None else model.weight_bytes,
            process_private_bytes=private_bytes(),
            budget_bytes=None if budget is None else budget.budget_bytes,
            limit_bytes=None if gate is None else gate.limit_bytes,
            admitted_bytes=None if gate is None else gate.granted_bytes,
            admitted_peak_bytes=None if gate is None else gate.peak_granted_bytes,
            least_budget_bytes=None if budget is None or not need.is_known else budget.least_bytes(need),
        )

    def _mapped_bytes(self) -> int | None:
        if self._bundle is not None:
            return sum(record.size for record in self._bundle.manifest.files if record.path.endswith(".data"))
        if self._executor is None or self._model is None:
            return None  # whether the runtime maps external data is its own affair
        return self._model.weight_bytes if self._model.files.mapped_bytes else 0

    def trim(self) -> int:
        """Give memory that is kept for the next run back to the system: arenas that no run uses, what ONNX Runtime's
        arenas hold, free pages of the heap. The next run takes a little longer.

        Returns: bytes by which the process's private memory shrank meanwhile (where the system does not tell,
        those of arenas).
        """
        before = private_bytes()
        returned = self._give_back()
        after = private_bytes()
        return returned if before is None or after is None else max(0, before - after)

    def _give_back(self) -> int:
        """Bytes of arenas."""
        returned = 0 if self._executor is None else self._executor.trim()
        whole = self.__dict__.get("_sess")
        if whole is not None:
            shrink_arena(whole)
        shrink_shared_allocator()
        trim_heap()
        return returned

    # -- what a plan adds -------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What runs where, and why; one segment means that the model is uncut."""
        assert self._plan is not None
        return self._plan

    @property
    def trace(self) -> TraceSink | None:
        """Receives a span per segment and run while set; None once it failed and was detached."""
        return self._tracer.trace_sink

    # -- running ----------------------------------------------------------------------------------------

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Compute the outputs, as ``onnxruntime.InferenceSession.run`` does.

        Args:
            output_names: which outputs, in which order; None or empty means all.
            input_feed: input name -> numpy array, nested list, or OrtValue.
            run_options: ``onnxruntime.RunOptions``; ``terminate`` stops a run from another thread.

        Raises:
            InputError (and ONNX Runtime's class for it): a feed has the wrong name, type, rank or size.
            SegmentError (likewise): a segment failed; names it and its nodes. The session stays usable.
            RunCancelled: ``run_options.terminate`` was set.
        """
        if self._fork != _fork_generation:
            self._reopen_after_fork()
        begin = time.perf_counter_ns()
        try:
            if self._executor is not None:
                call = self._run_cut
            # The runtime checks names, but not that inputs which no operator reads are there.
            elif self._direct is not None and len(input_feed) >= len(self._inputs_meta):
                call = self._run_direct
            else:
                call = self._run_whole
            if self._interruptible:
                result = self._run_stoppably(call, output_names, input_feed, run_options)
            else:
                result = call(output_names, input_feed, run_options)
        except Exception as error:
            translated = run_failure(error)
            if translated is error:
                raise
            raise translated from error
        self._note_duration(time.perf_counter_ns() - begin)
        return result

    def _run_stoppably(self, call: Callable[..., Any], output_names: Any, input_feed: Any, run_options: Any) -> Any:
        """In a way that Ctrl-C can stop, at the price of a hand-over; where none has lasted yet, without."""

        def job(options: Any) -> Any:
            return call(output_names, input_feed, options)

        if self._usually_short and run_options is None and self._executor is None and self._memory is None:
            try:
                return run_watched(job)
            except RunLastsError:
                self._usually_short = False
        return run_interruptibly(job, run_options)

    def _note_duration(self, duration_ns: int) -> None:
        """What the last run tells of the next: how it had better be called."""
        if duration_ns > _INTERRUPTIBLE_NS:
            self._interruptible = True
            self._usually_short = False
        elif not self._unbounded:
            self._interruptible = False
        elif self._usually_short is None:
            self._usually_short = True

    def _admitted(
        self, feeds: Any, run_options: Any, need: RunNeed | None = None
    ) -> contextlib.AbstractContextManager[Grant | None]:
        """Around one run of the whole model; waits until the budget allows it."""
        if self._memory is None:
            return contextlib.nullcontext()
        return self._memory.run(shapes_of(feeds), need=need, run_options=run_options)

    def _run_direct(self, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        assert self._direct is not None
        try:
            return self._direct(output_names or self._output_names, input_feed, run_options)
        except C.InvalidArgument:
            # The base class looks for what is missing before the runtime looks at what is there.
            self._validate_input(list(input_feed))
            raise

    def _run_whole(self, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        with self._admitted(input_feed, run_options):
            return self._run_traced(output_names, input_feed, run_options)

    def _run_traced(self, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        sink = self._tracer.trace_sink
        if sink is None:
            return super().run(output_names, input_feed, run_options)
        begin = time.perf_counter_ns()
        result = super().run(output_names, input_feed, run_options)
        segment = self.plan.segments[0]
        self._tracer.record_span(
            sink,
            SegmentSpan(
                run=0,
                segment=0,
                name=segment.name,
                lane=0,
                width=segment.width,
                start_ns=begin,
                end_ns=time.perf_counter_ns(),
                input_bytes=sum(getattr(value, "nbytes", 0) for value in input_feed.values()),
                output_bytes=sum(getattr(value, "nbytes", 0) for value in result),
            ),
        )
        return result

    def _run_cut(self, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        if self._is_for_whole(run_options):
            with self._admitted({}, run_options, need=UNKNOWN_NEED):
                return super().run(output_names, input_feed, run_options)
        return [value.numpy() for value in self._execute(output_names, input_feed, run_options)]

    def _is_for_whole(self, run_options: Any) -> bool:
        """Whether a run of a split model is left to the whole model's session.

        Raises: ConfigError where there is none, in a bundle.
        """
        if run_options is None:
            return False
        obstacle = why_run_needs_whole(run_options, has_arena=self._sess_options.enable_cpu_mem_arena)
        if (
            obstacle is not None
            and self._bundle is not None
            and self._source is not None
            and self._source.files is None
        ):
            raise ConfigError(
                f"this bundle of a split model cannot be run so: {obstacle}",
                where=str(self._bundle.path),
                fix='compile it with portable=True or with split="never", or open the model itself',
            )
        return obstacle is not None

    def _execute(self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any) -> list[Any]:
        assert self._executor is not None
        bound = self._binder.bind(input_feed)
        if not output_names:
            output_names = self._output_names
        elif isinstance(output_names, str):
            raise TypeError("output names are a list of strings, not one string")
        for name in output_names:
            if name not in self._known_outputs:
                if not isinstance(name, str):
                    raise TypeError(f"output names are strings, not {type(name).__name__}")
                raise both(InputError, C.InvalidArgument)(
                    f"Invalid output name: {name}", fix=f"the model's outputs are {self._output_names}"
                )
        read = self._read_files
        if read is not None:
            read.check_intact()
        if self._memory is None:
            results = self._executor.run(bound.values, output_names, run_options)
        else:
            shapes = {name: tuple(value.shape()) for name, value in bound.values.items()}
            with self._memory.run(shapes, run_options=run_options) as grant:
                results = self._executor.run(bound.values, output_names, run_options, budget=self._limited(grant))
        if read is not None:
            read.check_intact()
        return results

    def _limited(self, grant: Grant | None) -> RunBudget | None:
        """What a grant leaves for segments running at the same time, kept up to date."""
        if grant is None:
            return None
        plan, need = self.plan, grant.need

        def limit() -> int | None:
            return dispatcher_budget(plan, need, grant.granted_bytes)

        budget = RunBudget(limit())
        grant.on_change(lambda: budget.change(limit()))
        budget.change(limit())  # it may have changed in between
        return budget

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> Any:
        """As ``run``, with ``onnxruntime.OrtValue`` on both sides and no copies."""
        if self._fork != _fork_generation:
            self._reopen_after_fork()
        if self._executor is None:
            with self._admitted(input_dict_ort_values, run_options):
                return super().run_with_ort_values(output_names, input_dict_ort_values, run_options)
        if self._is_for_whole(run_options):
            with self._admitted({}, run_options, need=UNKNOWN_NEED):
                return super().run_with_ort_values(output_names, input_dict_ort_values, run_options)
        feeds = {name: value._get_c_value() for name, value in input_dict_ort_values.items()}
        return [onnxruntime.OrtValue(value) for value in self._execute(output_names, feeds, run_options)]

    def run_async(
        self, output_names: Any, input_feed: Any, callback: Any, user_data: Any, run_options: Any = None
    ) -> None:
        """As ``run``, returning at once; ``callback(results, user_data, error_text)`` is called from another thread."""
        if self._fork != _fork_generation:
            self._reopen_after_fork()
        if self._executor is None and self._memory is None:
            super().run_async(output_names, input_feed, callback, user_data, run_options)
            return
        if self._executor is None:
            self._validate_input(list(input_feed.keys()))
        else:
            self._binder.check_complete(input_feed)
        run = self._run_whole if self._executor is None else self._run_cut

        unclaimed = threading.Lock()

        def job() -> None:
            if not unclaimed.acquire(blocking=False):
                return
            try:
                results = run(output_names, input_feed, run_options)
            except Exception as error:  # the callback is how the caller hears of it, as in ONNX Runtime
                callback([], user_data, str(error))
            else:
                callback(results, user_data, "")

        try:
            _async_threads().submit(job)
        except RuntimeError as error:
            # No thread can be started, though one that is there may still come to it.
            logger.debug("a run that was to go on in the background does so here: %s", error)
            job()

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """As in ONNX Runtime. A binding belongs to the whole-model session, so that is what runs it."""
        if self._fork != _fork_generation:
            self._reopen_after_fork()
        # A binding does not say what shapes are bound.
        estimator = self._estimator if self._executor is None else None
        need = UNKNOWN_NEED if estimator is None or estimator.open_inputs else None
        with self._admitted({}, run_options, need=need):
            super().run_with_iobinding(iobinding, run_options)

    # -- copies -----------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What it takes to open the same model in the same way elsewhere: the source and the options.

        A model given by path is opened from that path again, if the same model lies there; sinks and callbacks stay
        behind.
        """
        assert self._source is not None
        given = self._sess_options_initial
        providers, provider_options = self._given_providers
        return {
            **travelling(self._source, self._model, self._opened_bundle, given),
            "session_options": None if given is None else self._carried_options(given),
            "providers": providers,
            "provider_options": provider_options,
            "options": self._given_options.carried(),
            "keywords": {
                "enable_fallback": int(self._enable_fallback),
                "disabled_optimizers": self._whole_arguments[2],
                "read_config_from_model": int(self._read_config_from_model),
            },
        }

    def _carried_options(self, given: Any) -> CarriedOptions:
        is_known = self._bundle is not None or (self._model is not None and self._model.fault is None)
        return CarriedOptions.of(given, is_model_known=is_known)

    def __setstate__(self, state: dict[str, Any]) -> None:
        carried: CarriedOptions | None = state["session_options"]
        check_arrived(state)
        InferenceSession.__init__(
            self,
            state["source"],
            None if carried is None else carried.to_session_options(),
            state["providers"],
            state["provider_options"],
            options=state["options"],
            **state["keywords"],
        )


InferenceSession.__doc__ = with_option_docs(InferenceSession.__doc__, tuple(OPTION_RULES))


def _provider_name(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple) else entry


def _not_with_a_bundle(obstacle: str, path: str) -> ConfigError:
    return ConfigError(
        f"this bundle cannot be run so: {obstacle}", where=path, fix="leave that out, or open the model itself"
    )


def _async_threads() -> ThreadPoolExecutor:
    global _async_pool
    with _async_lock:
        if _async_pool is None:
            _async_pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="parallax-async")
        return _async_pool


def _native_class(error: Exception) -> type[Exception]:
    """The runtime's own class of an error that may be of both worlds already."""
    if isinstance(error, UnicodeDecodeError):
        return C.InvalidGraph  # type: ignore[no-any-return]  # what it would have been, had it named nothing
    return next(kind for kind in type(error).__mro__ if kind in RUNTIME_EXCEPTIONS)
