"""A model that stays whole: ONNX Runtime's own session of it, with the caller's options but for what was planned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from parallax._record import dataclass
from parallax.backends import ort
from parallax.engine import WholeRunner
from parallax.errors import BundleError, ConfigError
from parallax.machine import move_to_first_core
from parallax.opening._state import Opened, SessionState
from parallax.options import has_pinned_threads, lean_memory, planned_threads
from parallax.schedule import Plan

if TYPE_CHECKING:
    from parallax.engine import EventStream
    from parallax.model import Model
    from parallax.opening._source import SessionSource
    from parallax.options import Device, PlanningOptions


HOLDING_ATTRIBUTES: Final = frozenset(
    {
        "_sess",
        "_sess_options",
        "_inputs_meta",
        "_outputs_meta",
        "_overridable_initializers",
        "_input_meminfos",
        "_output_meminfos",
        "_input_epdevices",
        "_model_meta",
        "_profiling_start_time_ns",
    }
)
"""What ONNX Runtime's class keeps of its C session, each of which keeps that alive; older versions lack some."""

_STOCK_ATTRIBUTES: Final = HOLDING_ATTRIBUTES | {"_providers", "_provider_options"}
"""All that it keeps of it."""


class WholeArguments(NamedTuple):
    """What ONNX Runtime's constructor is given beside a model and its options."""

    providers: Sequence[Any] | None
    provider_options: Sequence[Any] | None
    disabled_optimizers: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningRequest:
    """What a session was given, and how it opens what stays whole."""

    options: PlanningOptions
    source: SessionSource
    data: bytes | None
    """The model, where it was given as bytes."""
    session_options: Any
    """The caller's, or None."""
    arguments: WholeArguments
    devices: tuple[Device, ...]
    reads_config: bool
    """Whether session options are to be read from the model's own metadata."""
    events: EventStream
    """What the session's observers are attached to."""
    owner: Any
    """The session that was given all this."""
    open_stock: Callable[[str | bytes, Any], Any]
    """Has ONNX Runtime's class open a path or bytes with these session options; returns the session of that class,
    which is the owner itself or another."""
    forget_stock: Callable[[], None]
    """Drops what that opened, and the options that it was opened with."""

    def beside(self, *, threads: int | None) -> OpeningRequest:
        """The same on so many threads, beside what the session has open, which is not dropped."""
        return replace(self, options=replace(self.options, threads=threads), forget_stock=lambda: None)


def open_whole(
    request: OpeningRequest,
    plan: Plan,
    *,
    model: Model | None,
    session_options: Any,
    threads: int | None = None,
    graph_path: str | None = None,
) -> Opened:
    """Leave a model to the base class; its options are the caller's, but for the threads that were planned.

    Args:
        model: what was loaded, if it was.
        session_options: to open it with; None for the runtime's defaults.
        threads: instead of those of our own options.
        graph_path: of a bundle's graph, instead of the model.

    Raises: what the runtime says, in its own class and, where our analysis knows better, in one of ours as well.
    """
    lean = contextlib.nullcontext if request.options.budget_bytes is None else lean_memory
    wanted = threads or request.options.threads
    with lean(session_options) as options, planned_threads(options, wanted, plan) as made:
        if has_pinned_threads(made):
            move_to_first_core()
        try:
            if graph_path is not None:
                stock = request.open_stock(graph_path, made)
            else:
                stock = request.source.open_whole(
                    model, request.session_options, lambda source: request.open_stock(source, made)
                )
        except ort.OPENING_EXCEPTIONS as error:
            ours = None if model is None else model.fault
            if ours is not None:  # it says better what is wrong, and where
                raise ort.both(type(ours), native_class(error))(ours.what, where=ours.where, fix=ours.fix) from error
            raise ort.open_failure(error) from error
    whole, is_owner = stock._sess, stock is request.owner
    is_direct = whole.get_providers() == ["CPUExecutionProvider"] and not request.options.is_watched
    input_names = tuple(argument.name for argument in whole.inputs_meta)
    output_names = [argument.name for argument in whole.outputs_meta]
    return Opened(
        state=SessionState.DIRECT if is_direct else SessionState.WHOLE,
        runner=WholeRunner(
            plan=plan,
            input_names=input_names,
            output_names=output_names,
            events=request.events,
            stock=ort.PinnedSession(request.owner, stock),
            direct=whole.run if is_direct else None,
            required=frozenset(input_names) if whole.overridable_initializers else None,
        ),
        attributes={**({} if is_owner else stock_attributes(stock)), "_output_names": output_names},
    )


def unjudged(reason: str, options: PlanningOptions) -> str:
    """The reason of a plan that is the only one there is, which says so where joules were to decide."""
    if options.objective not in Plan.ENERGY_OBJECTIVES:
        return reason
    return f'{reason}; objective="{options.objective}" is of no effect: there is no other plan to compare with'


def stock_attributes(stock: Any) -> dict[str, Any]:
    """What ONNX Runtime's class keeps of the C session of one of its sessions, by the names of its attributes."""
    return {name: value for name, value in vars(stock).items() if name in _STOCK_ATTRIBUTES}


def is_for_whole(run_options: Any, opened: Opened, source: SessionSource, *, has_arena: bool) -> bool:
    """Whether a run of a split model is left to the whole model's session.

    Args:
        has_arena: of that session.

    Raises: ConfigError where there is none, in a bundle.
    """
    if run_options is None:
        return False
    from parallax.engine import why_run_needs_whole

    obstacle = why_run_needs_whole(run_options, has_arena=has_arena)
    if obstacle is not None and opened.bundle is not None and source.files is None:
        raise ConfigError(
            f"this bundle of a split model cannot be run so: {obstacle}",
            where=opened.bundle.folder,
            fix='compile it with portable=True or with split="never", or open the model itself',
        )
    return obstacle is not None


def open_beside(
    opened: Opened,
    source: SessionSource,
    model: Model | None,
    session_options: Any,
    *,
    threads: int | None,
    arguments: WholeArguments,
) -> Any:
    """A C session of the whole model beside its segments, for what only such a one can do.

    Args:
        session_options: the caller's, or None.
        threads: of our own options.

    Raises:
        BundleError: there is but a bundle, which does not hold the model.
        ModelFileError, UnsupportedModelError: as ``SessionSource.open_whole``.
    """
    if opened.bundle is not None and source.files is None:
        raise BundleError(
            "this needs the whole model, which a bundle of a split model does not hold",
            where=opened.bundle.folder,
            fix="compile it with portable=True (--portable), or open the model itself",
        )
    with planned_threads(session_options, threads, None) as options:
        whole = source.open_whole(
            model,
            session_options,
            lambda given: ort.StockSession(
                given,
                options,
                arguments.providers,
                arguments.provider_options,
                disabled_optimizers=arguments.disabled_optimizers,
            ),
        )
    return whole._sess


def native_class(error: Exception) -> type[Exception]:
    """The runtime's own class of an error that may be of both worlds already."""
    if isinstance(error, UnicodeDecodeError):
        from onnxruntime.capi import onnxruntime_pybind11_state as C

        return C.InvalidGraph  # type: ignore[no-any-return]  # what it would have been, had it named nothing
    return next(kind for kind in type(error).__mro__ if kind in ort.RUNTIME_EXCEPTIONS)
