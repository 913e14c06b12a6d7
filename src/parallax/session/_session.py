"""``parallax.InferenceSession``: a real subclass of ``onnxruntime.InferenceSession``.

A whole model *is* the wrapped session: the base class does everything, at its speed. A split model runs
through the engine, and the whole-model C session (``_sess``) is made only when something asks for it,
so that weights are not held twice.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import onnxruntime

# What a bundle that runs whole needs is imported here, all else where it is used: see `parallax._lazy`.
from parallax.backends.ort import StockSession, load_failure, run_failure
from parallax.engine import FORKS, RunDurations, RunnerHandle, WholeRunner, nothing_open
from parallax.opening import (
    NOT_OPEN,
    Opened,
    OpenedBundle,
    Opening,
    OpeningRequest,
    SessionSource,
    WholeArguments,
    check_arrived,
    check_transition,
    needs_no_threads,
    travelling,
)
from parallax.options import (
    CPU_PROVIDER,
    OPTION_RULES,
    STOCK_KEYWORDS,
    AskedProviders,
    Options,
    PlanningOptions,
    SessionKeywords,
    check_session_keywords,
    gather_options,
    leave_out_missing,
    shows_options,
    split_providers,
    with_option_docs,
)
from parallax.session._base import SessionObservers
from parallax.session._closing import ClosableSession

if TYPE_CHECKING:
    from parallax.backends import TensorArgument
    from parallax.backends.ort._types import Feeds, OutputNames, Provider, RunCallback
    from parallax.engine import Declaration, Runner
    from parallax.model import ModelSource
    from parallax.options import CarriedOptions
    from parallax.schedule import Plan


class InferenceSession(ClosableSession):
    """Runs an ONNX model through Parallax; usable wherever ``onnxruntime.InferenceSession`` is.

    Args:
        path_or_bytes: file name, serialised model, ``onnx.ModelProto``, or the folder of a bundle that
            ``parallax.compile`` made. Of a bundle, plan and options are those it was compiled with.
        sess_options, providers, provider_options: as in ONNX Runtime. Providers other than the CPU's get
            the whole model, unless ``tune`` finds regions of it that had better run there beside the CPU. Backends of
            `parallax.backends.open_backend` may stand among them ("emulated:pixel-6-gpu", "webgpu"): what gains there,
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

    _fork = 0
    _declaration: Declaration | None = None
    # The bundle that the session runs, from when it is open on.
    _opened_bundle: OpenedBundle | None = None
    # Set by the untyped base class; named here for type checkers.
    _sess: Any
    _inputs_meta: Any
    _outputs_meta: Any
    _model_path: str | None
    _model_bytes: bytes | None
    _sess_options: Any
    _captured_graph_bindings: dict[int, Any]
    _providers: list[str]
    _enable_fallback: bool
    _read_config_from_model: bool

    @shows_options(tuple(OPTION_RULES), takes_others=True)
    def __init__(
        self,
        path_or_bytes: ModelSource,
        sess_options: Any = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        *,
        options: Options | None = None,
        **keywords: Unpack[SessionKeywords],
    ) -> None:
        if sess_options is not None and not isinstance(sess_options, onnxruntime.SessionOptions):
            raise TypeError(f"sess_options is an onnxruntime.SessionOptions or None, not {type(sess_options).__name__}")
        given: dict[str, Any] = dict(keywords)
        own = {name: given.pop(name) for name in OPTION_RULES if name in given}
        if given:
            check_session_keywords(given, STOCK_KEYWORDS, OPTION_RULES)
        self._given_options = gather_options(options, own)
        self._parallax_options = PlanningOptions.of(self._given_options)
        self._observers = SessionObservers(self._given_options)
        self._asked_providers = AskedProviders()
        self._runners = RunnerHandle(self._observers.events)
        self._former, self._prepared = weakref.WeakSet(), weakref.WeakSet()
        self._lazy_lock, self._swap_lock = threading.RLock(), threading.RLock()
        self._model = None
        self._plan: Plan | None = None
        self._fork = FORKS.generation
        if hasattr(path_or_bytes, "SerializeToString") and hasattr(path_or_bytes, "graph"):
            from parallax.model import read_model

            self._model = read_model(path_or_bytes)
            path_or_bytes = self._model.whole()
        super().__init__(path_or_bytes, sess_options, providers, provider_options, **given)
        opened = self._opened
        known = opened.weight_bytes(self._look or self._loaded)
        self._durations = RunDurations(weight_bytes=known, is_unbounded=opened.is_unbounded)

    # -- opening ----------------------------------------------------------------------------------------

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        """Called by the base class to open the model, and again by ``set_providers``."""
        if self._source is None:
            self._source = SessionSource(self._model_path, self._model_bytes)
        is_fallback = providers is not None and providers is self.__dict__.get("_fallback_providers")
        given = providers
        self._forget_opened()
        self._given_providers = (providers, provider_options)
        # Where the base class goes back to when what was asked for is refused, which may be before it opens anything.
        self._fallback_providers = [CPU_PROVIDER]
        providers, provider_options, missing = leave_out_missing(providers, provider_options)
        self._asked_providers.note(given, providers, missing, is_fallback=is_fallback)
        self._devices, providers, provider_options = split_providers(
            providers, provider_options, tunes=self._parallax_options.tune or self._source.is_bundle
        )
        self._whole_arguments = WholeArguments(providers, provider_options, disabled_optimizers)
        request = self._opening_request(self._open_stock)
        opening = Opening(request, self._loaded, self._opened_bundle, self._look)
        try:
            opened = opening.open()
        except OSError as error:
            raise load_failure(error) from error
        finally:
            self._model, self._look, self._opened_bundle = opening.model, opening.look, opening.opened_bundle
        self._adopt(opened)
        self._follow()
        self._announce()

    def _opening_request(self, open_stock: Callable[[str | bytes, Any], Any]) -> OpeningRequest:
        assert self._source is not None
        return OpeningRequest(
            options=self._parallax_options,
            source=self._source,
            data=self._model_bytes,
            session_options=self._sess_options_initial,
            arguments=self._whole_arguments,
            devices=self._devices,
            reads_config=self._read_config_from_model,
            events=self._observers.events,
            owner=self,
            open_stock=open_stock,
            forget_stock=self._forget_stock,
        )

    def _open_stock(self, source: str | bytes, session_options: Any) -> Any:
        """Have the base class open this, whatever was given to the session."""
        given = self._model_path, self._model_bytes
        self._model_path, self._model_bytes = (source, None) if isinstance(source, str) else (None, source)
        self._sess_options = session_options
        try:
            super()._create_inference_session(*self._whole_arguments)
        finally:
            self._model_path, self._model_bytes = given
        return self

    def _open_separately(self, source: str | bytes, session_options: Any) -> Any:
        providers, provider_options, disabled = self._whole_arguments
        return StockSession(
            source, session_options, providers, provider_options, disabled_optimizers=disabled, enable_fallback=0
        )

    def _forget_stock(self) -> None:
        self._sess_options = self._sess_options_initial
        self._sess = None

    def _forget_opened(self) -> None:
        """Back to where nothing was opened yet: a bundle that was replaced meanwhile may be of another kind."""
        self._stop_following("the session was opened anew")
        self._follower = self._not_following = None
        with self._lazy_lock:
            self._prepared.clear()
        self._enter(NOT_OPEN)
        self._memory = self._estimator = self._declaration = None
        self._forget_stock()

    def _enter(self, opened: Opened) -> None:
        check_transition(self._opened, opened)
        self._opened = opened
        self._runners.put(opened.runner)

    def _adopt(self, opened: Opened) -> None:
        """Make what was opened this session's."""
        if opened.devices is not None:
            self._devices = opened.devices
        self._show(opened)
        self._enter(opened)
        if opened.split is not None:
            del self._sess  # from here on __getattr__ makes it on demand
        self._memory = self._watch(opened)

    def _show(self, opened: Opened) -> None:
        self._plan, self._estimator, self._declaration = None, opened.estimator, None
        self.__dict__.update(opened.attributes)
        # As the runtime has it: what was registered, whether anything runs there or not.
        self._providers = [*(device.name for device in self._devices), *self._providers]

    def get_outputs(self) -> Sequence[TensorArgument]:
        """Return name, type and shape of each output, as ONNX Runtime does. A split model's first call takes ms."""
        opened = self._opened
        if (opened.split is not None or opened.stored_declaration is not None) and self._declaration is None:
            from parallax.engine import Declaration, declare_outputs
            from parallax.options import runtime_options

            with self._lazy_lock:
                if self._declaration is None:
                    owner = self._sess if opened.split is None else opened.split.executor
                    self._declaration = declare_outputs(
                        opened.stored_declaration,
                        self._model,
                        parts=Declaration(arguments=self._outputs_meta, session=owner),
                        names=self._output_names,
                        options=runtime_options(self._sess_options_initial),
                    )
                    self._outputs_meta = list(self._declaration.arguments)
        return super().get_outputs()

    def _reset_session(self, providers: Any, provider_options: Any) -> None:
        self._check_open()
        before, disabled, swapped = self._given_providers, self._whole_arguments.disabled_optimizers, self._swapped
        self._swapped = None
        self._enter(NOT_OPEN)
        try:
            super()._reset_session(providers, provider_options)
        except Exception:
            # What was asked for cannot be had: the session stays as it was.
            self._create_inference_session(*before, disabled)
            if swapped is not None:
                self.swap_plan(swapped[0], reason=swapped[1])
            raise
        opened = self._opened
        known = opened.weight_bytes(self._look or self._loaded)
        self._durations.expect(weight_bytes=known, is_unbounded=opened.is_unbounded)

    def _reopen_after_fork(self) -> None:
        """A forked child has no lanes and no pool threads: open again what the session was opened with.

        Without threads, the runtime's session goes on as ONNX Runtime's own would: its weights stay shared with the
        parent.
        """
        self._check_open()
        with FORKS.reopening:
            if self._fork == FORKS.generation:
                return
            self._leave_follower_to_parent()
            before = dict(self.__dict__)
            self._lazy_lock, self._swap_lock = threading.RLock(), threading.RLock()
            self._fork = FORKS.generation
            self._memory = None
            self._runners.renew()
            opened = self._opened
            if opened.split is None and needs_no_threads(self._sess_options, self._providers):
                self._memory = self._watch(opened)
                self._follow()
                return
            FORKS.keep(self.__dict__.get("_sess"), opened, self._inputs_meta, self._outputs_meta)
            self._captured_graph_bindings = {}
            try:
                self._create_inference_session(*self._given_providers, self._whole_arguments.disabled_optimizers)
                if self._swapped is not None:
                    plan, reason = self._swapped
                    self.swap_plan(plan, reason=reason)
            except BaseException:
                # Half open, the session would answer. The next run says the same again.
                self.__dict__.clear()
                self.__dict__.update(before)
                self._runners.put(opened.runner)
                raise

    # -- running ----------------------------------------------------------------------------------------

    def _reopen_if_forked(self) -> None:
        if self._fork != FORKS.generation:
            self._reopen_after_fork()

    def run(self, output_names: OutputNames, input_feed: Feeds, run_options: Any = None) -> list[Any]:
        """Compute the outputs, as ``onnxruntime.InferenceSession.run`` does.

        Args:
            output_names: which outputs, in which order; None or empty means all.
            input_feed: input name -> numpy array, nested list or OrtValue, of the type and shape in ``get_inputs()``.
            run_options: ``onnxruntime.RunOptions``; ``terminate`` stops a run from another thread.

        Returns: numpy arrays, of the types in ``get_outputs()``; lists, dicts or None for what is no tensor.

        Raises:
            InputError (and ONNX Runtime's class for it): a feed has the wrong name, type, rank or size.
            SegmentError (likewise): a segment failed; names it and its nodes. The session stays usable.
            RunCancelled, SessionClosedError: ``run_options.terminate`` was set; the session was closed.
        """
        if self._fork != FORKS.generation:
            self._reopen_after_fork()
        begin = time.perf_counter_ns()
        runner = self._runners.current
        result: list[Any]
        try:
            if runner is None:
                self._check_open()  # it may have been closed a moment ago
                raise nothing_open()
            call = runner.run if run_options is None else self._way_to_run(runner, run_options)
            if self._durations.may_be_long:
                result = self._run_stoppably(call, runner, output_names, input_feed, run_options)
            else:
                result = call(output_names, input_feed, run_options, self._memory)
        except Exception as error:
            translated = run_failure(error)
            if translated is error:
                if isinstance(error, TypeError | AttributeError):
                    from parallax.options import check_arguments

                    check_arguments(output_names, input_feed, run_options)
                raise
            raise translated from error
        self._durations.note(time.perf_counter_ns() - begin)
        return result

    def _run_stoppably(self, call: Any, runner: Runner, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        """In a way that Ctrl-C can stop, at the price of a hand-over; where none has lasted yet, without."""
        memory = self._memory
        return self._durations.run_stoppably(
            lambda options: call(output_names, input_feed, options, memory),
            run_options,
            may_watch=memory is None and not runner.is_split,
        )

    def run_with_ort_values(
        self, output_names: OutputNames, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Run as ``run`` does, with ``onnxruntime.OrtValue`` on both sides and no copies. Raises: as ``run``."""
        self._reopen_if_forked()
        runner = self._taken_runner()
        made: list[Any]
        try:
            if self._is_for_whole(runner, run_options):
                call = partial(super().run_with_ort_values, output_names, input_dict_ort_values, run_options)
                made = self._call_beside(call, output_names, input_dict_ort_values, run_options, self._memory)
            else:
                made = runner.run_values(output_names, input_dict_ort_values, run_options, self._memory)
        except Exception as error:
            translated = run_failure(error)
            if translated is not error:
                raise translated from error
            if isinstance(error, TypeError | AttributeError):
                from parallax.options import check_values

                check_values(output_names, input_dict_ort_values, run_options)
            raise
        return made

    def run_async(
        self,
        output_names: OutputNames,
        input_feed: Feeds,
        callback: RunCallback,
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """Start ``run``; another thread calls ``callback(results, user_data, error_text)``, with "" for no error."""
        from parallax.options import check_arguments, check_callback

        check_arguments(output_names, input_feed, run_options)
        check_callback(callback)
        self._reopen_if_forked()
        runner, memory = self._taken_runner(), self._memory
        if isinstance(runner, WholeRunner) and memory is None:
            runner.run_async(output_names, input_feed, callback, user_data, run_options)
            return
        runner.check_complete(input_feed)
        from parallax.engine import run_in_background

        def run() -> Any:
            return self._way_to_run(runner, run_options)(output_names, input_feed, run_options, memory)

        run_in_background(run, callback, user_data)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Run with a binding, which belongs to the whole-model session: that is what runs it. Raises: as ``run``."""
        if not isinstance(iobinding, onnxruntime.IOBinding):
            from parallax.options import check_binding

            check_binding(iobinding, run_options)
        self._reopen_if_forked()
        runner = self._taken_runner()
        # A binding does not say what shapes are bound.
        is_known = not runner.is_split and runner.estimator is not None and not runner.estimator.open_inputs
        bound_to: Any = getattr(iobinding, "_session", None)
        if bound_to in self._former:
            call = partial(bound_to.run_with_iobinding, iobinding._iobinding, run_options)
        else:
            call = partial(super().run_with_iobinding, iobinding, run_options)
        require = runner.requirement if is_known else None
        self._call_beside(call, (), {}, run_options, self._memory, require=require)

    def _taken_runner(self) -> Runner:
        """The runner in force, for one run. Raises: ConfigError if there is none."""
        runner = self._runners.current
        if runner is None:
            self._check_open()  # it may have been closed a moment ago
            raise nothing_open()
        return runner

    # -- copies -----------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What it takes to open the same model in the same way elsewhere: the source and the options.

        A model given by path is opened from that path again, if the same model lies there; sinks and callbacks stay
        behind.
        """
        self._check_open()
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
                "disabled_optimizers": self._whole_arguments.disabled_optimizers,
                "read_config_from_model": int(self._read_config_from_model),
            },
        }

    def _carried_options(self, given: Any) -> CarriedOptions:
        from parallax.options import CarriedOptions

        is_known = self._opened.bundle is not None or (self._model is not None and self._model.fault is None)
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
