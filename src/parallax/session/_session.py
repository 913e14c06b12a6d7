"""``parallax.InferenceSession``: a real subclass of ``onnxruntime.InferenceSession``.

An uncut model *is* the wrapped session: the base class does everything, at its speed. A cut model runs
through the engine, and the whole-model C session (``_sess``) is made only when something asks for it,
so that weights are not held twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

# What a bundle that runs whole needs is imported here, all else where it is used: see `parallax._lazy`.
from parallax import _lazy
from parallax.backends.ort import load_failure, run_failure
from parallax.session._durations import RunDurations
from parallax.session._fork import FORKS
from parallax.session._observing import ObservableSession, SessionObservers, observed_in_background
from parallax.session._opening import Opening
from parallax.session._options import (
    OPTION_RULES,
    Options,
    PlanningOptions,
    SessionKeywords,
    gather_options,
    shows_options,
    with_option_docs,
)
from parallax.session._providers import CPU_PROVIDER, leave_out_missing, split_providers
from parallax.session._source import OpenedBundle, SessionSource, check_arrived, needs_no_threads, travelling
from parallax.session._state import NOT_OPEN, Opened, SessionState, check_transition
from parallax.session._whole_model import OpeningRequest, WholeArguments, is_for_whole, open_beside

if TYPE_CHECKING:
    from parallax.engine import Declaration
    from parallax.model import Glimpse, Model
    from parallax.schedule import Plan
    from parallax.serving import Batcher
    from parallax.session._carried_options import CarriedOptions
    from parallax.session._estimate import Estimator
    from parallax.session._memory import SessionMemory
    from parallax.session._usage import MemoryUsage

logger = _lazy.logger(__name__)

# Looked up once: each run asks for its session's state.
_DIRECT: Final = SessionState.DIRECT
_SPLIT: Final = SessionState.SPLIT


class InferenceSession(ObservableSession):
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

    _opened: Opened = NOT_OPEN
    _fork = 0
    _estimator: Estimator | None = None
    _declaration: Declaration | None = None
    _source: SessionSource | None = None
    # See `_model`.
    _loaded: Model | None = None
    _look: Glimpse | None = None
    # The bundle that the session runs, from when it is open on.
    _opened_bundle: OpenedBundle | None = None
    # Set by the untyped base class; named here for type checkers.
    _sess: Any
    _inputs_meta: Any
    _outputs_meta: Any
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
        self._observers = SessionObservers(self._given_options)
        self._lazy_lock = threading.RLock()
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
        self._forget_opened()
        self._given_providers = (providers, provider_options)
        # Where the base class goes back to when what was asked for is refused, which may be before it opens anything.
        self._fallback_providers = [CPU_PROVIDER]
        providers, provider_options, missing = leave_out_missing(providers, provider_options)
        self._devices, providers, provider_options = split_providers(
            providers, provider_options, tunes=self._parallax_options.tune
        )
        self._whole_arguments = WholeArguments(providers, provider_options, disabled_optimizers)
        request = OpeningRequest(
            options=self._parallax_options,
            source=self._source,
            data=self._model_bytes,
            session_options=self._sess_options_initial,
            arguments=self._whole_arguments,
            devices=self._devices,
            reads_config=self._read_config_from_model,
            events=self._observers.events,
            open_stock=self._open_stock,
            forget_stock=self._forget_stock,
        )
        opening = Opening(request, self._loaded, self._opened_bundle, self._look)
        try:
            opened = opening.open()
        except OSError as error:
            raise load_failure(error) from error
        finally:
            self._model, self._look, self._opened_bundle = opening.model, opening.look, opening.opened_bundle
        self._adopt(opened, missing)

    @property
    def _model(self) -> Model | None:
        """The model, where the session looks into it. One that was opened at sight is read when it is asked for."""
        if self._loaded is None and self._look is not None:
            with self._lazy_lock:
                if self._loaded is None and self._look is not None:
                    self._loaded = self._look.read()
        return self._loaded

    @_model.setter
    def _model(self, model: Model | None) -> None:
        self._loaded, self._look = model, None

    def _open_stock(self, source: str | bytes, session_options: Any) -> Any:
        """Have the base class open this, whatever was given to the session; returns its C session."""
        given = self._model_path, self._model_bytes
        self._model_path, self._model_bytes = (source, None) if isinstance(source, str) else (None, source)
        self._sess_options = session_options
        try:
            super()._create_inference_session(*self._whole_arguments)
        finally:
            self._model_path, self._model_bytes = given
        return self._sess

    def _forget_stock(self) -> None:
        self._sess_options = self._sess_options_initial
        self._sess = None

    def _forget_opened(self) -> None:
        """Back to where nothing was opened yet: a bundle that was replaced meanwhile may be of another kind."""
        self._enter(NOT_OPEN)
        self._memory = self._estimator = self._declaration = None
        self._forget_stock()

    def _enter(self, opened: Opened) -> None:
        check_transition(self._opened, opened)
        self._opened = opened

    def _adopt(self, opened: Opened, missing: str) -> None:
        """Make what was opened this session's. ``missing``: which providers were left out, and why; "" if none was."""
        plan = opened.plan
        assert plan is not None
        if missing:
            told = plan.provenance
            plan = replace(plan, provenance=replace(told, reason=f"{missing}; {told.reason}"))
        self._plan = plan
        self._estimator = opened.estimator
        self.__dict__.update(opened.attributes)
        # As the runtime has it: what was registered, whether anything runs there or not.
        self._providers = [*(device.name for device in self._devices), *self._providers]
        self._enter(opened)
        if opened.split is not None:
            del self._sess  # from here on __getattr__ makes it on demand
        self._memory = self._watch(opened)

    def _watch(self, opened: Opened) -> SessionMemory | None:
        if not self._parallax_options.is_watched:
            return None
        from parallax.session._usage import watch_memory

        return watch_memory(opened, self._parallax_options, self._estimator, self._give_back)

    def __getattr__(self, name: str) -> Any:
        # Only reached when the attribute is missing, which for _sess means: the model is cut and nobody has
        # asked for the whole-model session yet. In an uncut session _sess is a plain attribute.
        if name == "_sess" and self._opened.split is not None:
            with self._lazy_lock:
                if "_sess" not in self.__dict__:
                    self.__dict__["_sess"] = self._make_whole_session()
                return self.__dict__["_sess"]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_outputs(self) -> Any:
        """The outputs as ONNX Runtime declares them. Of a split model that takes, the first time, milliseconds."""
        opened = self._opened
        if (opened.split is not None or opened.stored_declaration is not None) and self._declaration is None:
            from parallax.engine import Declaration
            from parallax.session._outputs import declare_outputs

            with self._lazy_lock:
                if self._declaration is None:
                    owner = self._sess if opened.split is None else opened.split.executor
                    self._declaration = declare_outputs(
                        opened,
                        self._model,
                        parts=Declaration(arguments=self._outputs_meta, session=owner),
                        names=self._output_names,
                        session_options=self._sess_options_initial,
                    )
                    self._outputs_meta = list(self._declaration.arguments)
        return super().get_outputs()

    def _make_whole_session(self) -> Any:
        logger.info("something asked for the whole-model session of a cut model; its weights are now held twice")
        opened = self._opened
        assert self._source is not None
        if self._memory is not None and opened.budget is not None:
            known = opened.weight_bytes(self._look or self._loaded)
            self._memory.hold(opened.budget.weight_bytes if known is None else known)
        return open_beside(
            opened,
            self._source,
            self._model,
            self._sess_options_initial,
            threads=self._parallax_options.threads,
            arguments=self._whole_arguments,
        )

    def _reset_session(self, providers: Any, provider_options: Any) -> None:
        self._enter(NOT_OPEN)
        super()._reset_session(providers, provider_options)
        opened = self._opened
        known = opened.weight_bytes(self._look or self._loaded)
        self._durations.expect(weight_bytes=known, is_unbounded=opened.is_unbounded)

    def _reopen_after_fork(self) -> None:
        """A forked child has no lanes and no pool threads: open again what the session was opened with.

        Without threads, the runtime's session goes on as ONNX Runtime's own would: its weights stay shared with the
        parent.
        """
        with FORKS.reopening:
            if self._fork == FORKS.generation:
                return
            before = dict(self.__dict__)
            self._lazy_lock = threading.RLock()
            self._fork = FORKS.generation
            self._memory = None
            self._observers.renew()
            opened = self._opened
            if opened.split is None and needs_no_threads(self._sess_options, self._providers):
                self._memory = self._watch(opened)
                return
            FORKS.keep(self.__dict__.get("_sess"), opened, self._inputs_meta, self._outputs_meta)
            self._captured_graph_bindings = {}
            try:
                self._create_inference_session(*self._given_providers, self._whole_arguments.disabled_optimizers)
            except BaseException:
                # Half open, the session would answer. The next run says the same again.
                self.__dict__.clear()
                self.__dict__.update(before)
                raise

    # -- memory -----------------------------------------------------------------------------------------

    def memory(self) -> MemoryUsage:
        """What this session holds now, and what it plans with. Takes milliseconds.

        A session without a budget infers the sizes of its tensors when this is first called, which takes
        longer.
        """
        from parallax.session._usage import describe_usage, estimate_opened

        opened = self._opened
        with self._lazy_lock:
            if self._estimator is None:
                whole = self.__dict__.get("_sess")
                self._estimator = estimate_opened(opened, self._model, whole, self._parallax_options.shapes)
        return describe_usage(opened, self._model, self._memory, self._estimator)

    def trim(self) -> int:
        """Give memory that is kept for the next run back to the system: arenas that no run uses, what ONNX Runtime's
        arenas hold, free pages of the heap. The next run takes a little longer.

        Returns: bytes by which the process's private memory shrank meanwhile (where the system does not tell,
        those of arenas).
        """
        from parallax.machine import private_bytes

        before = private_bytes()
        returned = self._give_back()
        after = private_bytes()
        return returned if before is None or after is None else max(0, before - after)

    def _give_back(self) -> int:
        """Bytes of arenas."""
        from parallax.backends.ort import shrink_shared_allocator
        from parallax.machine import trim_heap
        from parallax.session._shrink import shrink_arena

        split = self._opened.split
        returned = 0 if split is None else split.executor.trim()
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
        if self._fork != FORKS.generation:
            self._reopen_after_fork()
        begin = time.perf_counter_ns()
        opened = self._opened
        try:
            if opened.state is _SPLIT:
                call = self._run_split
            # The runtime checks names, but not that inputs which no operator reads are there.
            elif opened.state is _DIRECT and len(input_feed) >= len(self._inputs_meta):
                call = self._run_direct
            else:
                call = self._run_whole
            if self._durations.may_be_long:
                result = self._run_stoppably(call, opened, output_names, input_feed, run_options)
            else:
                result = call(opened, output_names, input_feed, run_options)
        except Exception as error:
            translated = run_failure(error)
            if translated is error:
                raise
            raise translated from error
        self._durations.note(time.perf_counter_ns() - begin)
        return result

    def _run_stoppably(self, call: Any, opened: Opened, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        """In a way that Ctrl-C can stop, at the price of a hand-over; where none has lasted yet, without."""
        may_watch = opened.split is None and self._memory is None
        return self._durations.run_stoppably(
            lambda options: call(opened, output_names, input_feed, options), run_options, may_watch=may_watch
        )

    def _run_direct(self, opened: Opened, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        assert opened.direct is not None
        names = output_names or self._output_names
        try:
            if self._observers.events.attached:
                call = partial(opened.direct, names, input_feed, run_options)
                return self._call_whole(call, names, input_feed, run_options)
            return opened.direct(names, input_feed, run_options)
        except C.InvalidArgument:
            # The base class looks for what is missing before the runtime looks at what is there.
            self._validate_input(list(input_feed))
            raise

    def _run_whole(self, opened: Opened, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        call = partial(super().run, output_names, input_feed, run_options)
        return self._call_whole(call, output_names, input_feed, run_options)

    def _run_split(self, opened: Opened, output_names: Any, input_feed: Any, run_options: Any) -> Any:
        assert opened.split is not None
        if self._is_for_whole(opened, run_options):
            call = partial(super().run, output_names, input_feed, run_options)
            return self._call_whole(call, output_names, input_feed, run_options, is_unknown=True)
        return [value.numpy() for value in opened.split.run(output_names, input_feed, run_options, self._memory)]

    def _is_for_whole(self, opened: Opened, run_options: Any) -> bool:
        if run_options is None:
            return False
        assert self._source is not None
        return is_for_whole(run_options, opened, self._source, has_arena=self._sess_options.enable_cpu_mem_arena)

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> Any:
        """As ``run``, with ``onnxruntime.OrtValue`` on both sides and no copies."""
        if self._fork != FORKS.generation:
            self._reopen_after_fork()
        opened = self._opened
        if opened.split is not None and not self._is_for_whole(opened, run_options):
            feeds = {name: value._get_c_value() for name, value in input_dict_ort_values.items()}
            values = opened.split.run(output_names, feeds, run_options, self._memory)
            return [onnxruntime.OrtValue(value) for value in values]
        call = partial(super().run_with_ort_values, output_names, input_dict_ort_values, run_options)
        is_split = opened.split is not None
        return self._call_whole(call, output_names, input_dict_ort_values, run_options, is_unknown=is_split)

    def run_async(
        self, output_names: Any, input_feed: Any, callback: Any, user_data: Any, run_options: Any = None
    ) -> None:
        """As ``run``, returning at once; ``callback(results, user_data, error_text)`` is called from another thread."""
        if self._fork != FORKS.generation:
            self._reopen_after_fork()
        opened = self._opened
        if opened.split is None and self._memory is None:
            events, run_async = self._observers.events, super().run_async
            if events.attached:
                names = output_names or self._output_names
                run_async = observed_in_background(run_async, events, self.plan, names)
            run_async(output_names, input_feed, callback, user_data, run_options)
            return
        if opened.split is None:
            self._validate_input(list(input_feed.keys()))
        else:
            opened.split.check_complete(input_feed)
        run = self._run_whole if opened.split is None else self._run_split
        from parallax.session._background import run_in_background

        run_in_background(lambda: run(opened, output_names, input_feed, run_options), callback, user_data)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """As in ONNX Runtime. A binding belongs to the whole-model session, so that is what runs it."""
        if self._fork != FORKS.generation:
            self._reopen_after_fork()
        # A binding does not say what shapes are bound.
        estimator = self._estimator if self._opened.split is None else None
        is_unknown = estimator is None or bool(estimator.open_inputs)
        call = partial(super().run_with_iobinding, iobinding, run_options)
        self._call_whole(call, (), {}, run_options, is_unknown=is_unknown)

    # -- many callers, many requests --------------------------------------------------------------------

    def batcher(
        self,
        *,
        slo_ms: float | None = None,
        max_batch: int = 32,
        max_queue: int | None = None,
        pad: Mapping[str, float] | None = None,
        examples: Sequence[Mapping[str, Any]] | None = None,
    ) -> Batcher:
        """Make a batcher: it takes requests of many callers, and runs them together or side by side, whichever it
        measures to serve more. Takes about a second, more for large models; see ``docs/batching.md``.

        Args:
            slo_ms: milliseconds within which a request is to be answered, unless it says another limit. A request that
                could not be is refused at once (`Overloaded`). Default: no limit.
            max_batch: rows along the batch axis that run together at most; 1 runs requests one by one.
            max_queue: requests that may wait; the next one is refused. Default: 1,024.
            pad: input -> number that its open axes are filled up with, so that requests of unlike lengths run together;
                answers are cut back. The model must take a mask that hides what is filled up: it is checked.
            examples: two requests of equal shapes and unlike values to check and measure with. Default: made up.

        Raises:
            ConfigError: an option does not fit; also where ``pad`` changes answers.
            InputError: an example does not fit the model.

        Example::

            with session.batcher(slo_ms=50) as batcher:
                futures = [batcher.submit({"x": array}) for array in arrays]
                outputs = [future.result() for future in futures]
        """
        from parallax.session._serving import BatcherOptions, make_batcher

        options = BatcherOptions(slo_ms=slo_ms, max_batch=max_batch, max_queue=max_queue, pad=pad, examples=examples)
        return make_batcher(self, options)

    def run_many(self, feeds: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
        """Run the model on many feeds; the answers come in their order, each as ``run(None, ...)`` gives it.

        What takes longer than a second is run as is measured to take least: side by side, or several together.

        Args:
            feeds: read as far as they can be run, so that a generator needs memory for some hundred at a time.

        Raises: as ``run``, for the first feeds that fail.

        Example::

            outputs = session.run_many({"x": array} for array in arrays)
        """
        from parallax.session._serving import run_many

        return run_many(self, feeds)

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
                "disabled_optimizers": self._whole_arguments.disabled_optimizers,
                "read_config_from_model": int(self._read_config_from_model),
            },
        }

    def _carried_options(self, given: Any) -> CarriedOptions:
        from parallax.session._carried_options import CarriedOptions

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
