"""A delegate with the processor in reserve: its failures cost time, never an answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from parallax.backends._breaker import CircuitBreaker
from parallax.backends._fault_policy import DEFAULT_POLICY, FaultPolicy
from parallax.backends._protocol import (
    DEFAULT_OPTIONS,
    Backend,
    CompiledModel,
    CompileOptions,
    Interface,
    MemoryDomain,
    Place,
    UnfitFeedsError,
)
from parallax.backends.ort import empty_host_value, host_bytes, is_on_host
from parallax.errors import BackendError, RunCancelled

if TYPE_CHECKING:
    from parallax.model import SegmentModel

logger = logging.getLogger(__name__)

_FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}


class Complaints:
    """Lets the first complaint about each delegate be a warning, however many parts of a model it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warned: set[str] = set()  # (lock)

    def level(self, delegate: str) -> int:
        """Return the level of the next message about it: `logging.WARNING` once, then `logging.INFO`."""
        with self._lock:
            is_first = delegate not in self._warned
            self._warned.add(delegate)
        return logging.WARNING if is_first else logging.INFO


def compile_guarded(
    backend: Backend,
    segment: SegmentModel,
    *,
    fallback: Backend,
    width: int,
    options: CompileOptions = DEFAULT_OPTIONS,
    policy: FaultPolicy = DEFAULT_POLICY,
    complaints: Complaints | None = None,
) -> CompiledModel:
    """Compile a part for ``backend``, to be run by ``fallback`` wherever that fails.

    ``fallback`` compiles it when it is first needed, unless ``options.answers`` computes it already. If ``backend``
    refuses the part, that is now, after one warning.

    Args:
        complaints: shared by the parts that are to warn of a delegate once between them; by default each warns once.

    Raises: BackendError if neither can compile it.
    """

    complaints = Complaints() if complaints is None else complaints

    def compile_fallback() -> CompiledModel:
        if options.answers is not None:
            return options.answers
        own = CompileOptions(session_options=options.session_options, work=options.work)
        return fallback.compile(segment, width=max(1, width), options=own)

    try:
        delegate = backend.compile(segment, width=width, options=options)
    except BackendError as error:
        logger.log(
            complaints.level(backend.info.name),
            "%s does not compile segment %r, which runs on %s instead: %s; leave the backend out to silence this",
            backend.info.name,
            segment.name,
            fallback.info.name,
            error.what,
        )
        return compile_fallback()
    return GuardedModel(
        delegate,
        fallback=compile_fallback,
        what=backend.info.name,
        part=segment.name,
        policy=policy,
        complaints=complaints,
    )


class GuardedModel:
    """A compiled part with another to fall back to. ``failures`` and ``fallbacks`` count runs.

    Attributes:
        backend: the delegate's name.
        on_set_aside: called with what the delegate failed with, and the seconds after which it may try again (None:
            never), whenever it is disabled. In the thread of the run that failed, without a lock held.

    Args:
        delegate: runs it as long as it behaves.
        fallback: makes the other one, once, when it is needed.
        what: the delegate's name for messages.
        part: what it runs, likewise.
        complaints: see `compile_guarded`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        delegate: CompiledModel,
        *,
        fallback: Callable[[], CompiledModel],
        what: str,
        part: str = "",
        policy: FaultPolicy = DEFAULT_POLICY,
        complaints: Complaints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._delegate = delegate
        self._make_fallback = fallback
        self._fallback: CompiledModel | None = None
        self.backend = what
        self.on_set_aside: Callable[[str, float | None], object] | None = None
        self._here = _InThread()
        self._what = f"{what}, segment {part!r}" if part else what
        self._complaints = Complaints() if complaints is None else complaints
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._fallback_lock = threading.Lock()
        self._breaker = CircuitBreaker(tolerated=policy.tolerated, retry_s=policy.retry_s)  # (lock)
        self._has_complained = False  # (lock)
        self.failures = 0  # (lock)
        self.fallbacks = 0  # (lock)

    @property
    def interface(self) -> Interface:
        """What the delegate is fed and returns, and the fallback likewise."""
        return self._delegate.interface

    @property
    def memory(self) -> MemoryDomain:
        """Where the delegate makes its outputs; those of the fallback are in the processor's memory."""
        return self._delegate.memory

    @property
    def is_set_aside(self) -> bool:
        """Whether the delegate is not being asked at present."""
        with self._lock:
            return self._breaker.is_open

    @property
    def has_fallen_back(self) -> bool:
        """Whether the fallback computed what this thread ran last."""
        return self._here.has_fallen_back

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`. Raises what the fallback raises."""
        made = self._run(
            lambda model, fed: dict(zip(outputs, model.run_with_ort_values(fed, outputs, run_options), strict=True)),
            feeds,
        )
        return [made[name] for name in outputs]

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """See `CompiledModel`. Raises what the fallback raises."""
        if self._policy.deadline_s is None:
            return self._run(lambda model, fed: model.run_bound(fed, targets, run_options), feeds)
        # A delegate that hangs must not write to the caller's memory later on.
        free = (None, Place.HOST)
        own = {name: target if target in free else Place.HOST for name, target in targets.items()}
        made = self._run(lambda model, fed: model.run_bound(fed, own, run_options), feeds)
        return {name: made[name] if target in free else _copy(made[name], target) for name, target in targets.items()}

    def _run(
        self, call: Callable[[CompiledModel, Mapping[str, Any]], Mapping[str, Any]], feeds: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self._here.has_fallen_back = False
        with self._lock:
            may_try = self._breaker.may_try(self._clock())
        if may_try:
            try:
                made = self._try(call, feeds)
            except RunCancelled:
                self._note_nothing()
                raise
            except (UnfitFeedsError, _NoThreadError):
                self._note_nothing()  # these feeds or this process are at fault, not the delegate
            except _DeadlineError as error:
                self._note_failure(error, for_good=True)
            except Exception as error:
                return self._make_good(call, feeds, error)
            except BaseException:
                self._note_nothing()
                raise
            else:
                if not (self._policy.checks_nan and _has_nan(made)):
                    self._note_success()
                    return made
                return self._make_good(call, feeds, None)
        return self._run_fallback(call, feeds)

    def _try(
        self, call: Callable[[CompiledModel, Mapping[str, Any]], Mapping[str, Any]], feeds: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        deadline = self._policy.deadline_s
        if deadline is None:
            return call(self._delegate, feeds)
        copies = {name: _own_copy(fed) for name, fed in feeds.items()}
        outcome: list[Mapping[str, Any] | BaseException] = []

        def work() -> None:
            try:
                outcome.append(call(self._delegate, copies))
            except BaseException as error:  # handed over to the thread that waits
                outcome.append(error)

        thread = threading.Thread(target=work, name=f"parallax-delegate {self._what}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise _NoThreadError(f"no thread can be started to watch its deadline: {error}") from error
        thread.join(deadline)
        if not outcome:
            raise _DeadlineError(f"it did not answer within {deadline:g} s")
        (result,) = outcome
        if isinstance(result, BaseException):
            raise result
        return result

    def _make_good(
        self,
        call: Callable[[CompiledModel, Mapping[str, Any]], Mapping[str, Any]],
        feeds: Mapping[str, Any],
        error: Exception | None,
    ) -> Mapping[str, Any]:
        """Have the processor compute what the delegate raised ``error`` for, or (None) made a NaN of.

        The processor is the judge: what it raises too is the feeds' fault, and a NaN that it makes too the model's.
        """
        try:
            correct = self._run_fallback(call, feeds)
        except BaseException:
            self._note_nothing()
            raise
        if error is not None:
            known = error if isinstance(error, BackendError) else BackendError(f"{type(error).__name__}: {error}")
            self._note_failure(known)
        elif _has_nan(correct):
            self._note_success()
        else:
            self._note_failure(BackendError("it made a NaN where the processor makes none"))
        return correct

    def _run_fallback(
        self, call: Callable[[CompiledModel, Mapping[str, Any]], Mapping[str, Any]], feeds: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        with self._fallback_lock:
            if self._fallback is None:
                self._fallback = self._make_fallback()
            fallback = self._fallback
        self._here.has_fallen_back = True
        with self._lock:
            self.fallbacks += 1
        return call(fallback, {name: fed if is_on_host(fed) else _copy(fed, None) for name, fed in feeds.items()})

    def _note_success(self) -> None:
        with self._lock:
            self._breaker.succeeded()

    def _note_nothing(self) -> None:
        with self._lock:
            self._breaker.abandon()

    def _note_failure(self, error: BackendError, *, for_good: bool = False) -> None:
        with self._lock:
            self.failures += 1
            opened = self._breaker.failed(self._clock())
            if for_good:
                self._breaker.give_up()
            level = logging.DEBUG if self._has_complained else self._complaints.level(self.backend)
            self._has_complained = True
        logger.log(
            level,
            "%s failed, and the processor computed instead: %s; update the driver or the backend, or leave it out",
            self._what,
            error.what,
        )
        if for_good or opened:
            logger.info("%s is disabled%s", self._what, "" if for_good else f" for {self._policy.retry_s:g} s")
            if self.on_set_aside is not None:
                self.on_set_aside(error.what, None if for_good else self._policy.retry_s)


class _InThread(threading.local):
    """What is known of the last run of a thread."""

    has_fallen_back = False


class _DeadlineError(BackendError):
    """A delegate did not answer in time."""


class _NoThreadError(BackendError):
    """The system allows no more threads."""


def _own_copy(value: Any) -> Any:
    """A tensor with memory of its own; what is no plain tensor is the runtime's own anyway."""
    if not value.is_tensor() or value.data_type() == "tensor(string)":
        return value
    return _copy(value, None)


def _copy(value: Any, target: Any) -> Any:
    """The tensor in ``target``, or in fresh memory of the processor."""
    if target is None:
        target = empty_host_value(value.shape(), value.element_type())
    elif list(target.shape()) != list(value.shape()) or target.element_type() != value.element_type():
        raise BackendError(f"a target of shape {list(target.shape())} does not fit {list(value.shape())}")
    if is_on_host(value) and is_on_host(target):
        host_bytes(target)[:] = host_bytes(value)
    else:
        onnxruntime.copy_tensors([onnxruntime.OrtValue(value)], [onnxruntime.OrtValue(target)])
    return target


def _has_nan(made: Mapping[str, Any]) -> bool:
    for value in made.values():
        kind = _FLOATS.get(value.element_type()) if value.is_tensor() else None
        if kind is not None and is_on_host(value) and np.isnan(host_bytes(value).view(kind)).any():
            return True
    return False
