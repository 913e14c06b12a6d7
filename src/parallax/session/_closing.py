"""What sessions have beyond ONNX Runtime's: an end (``close``, ``with``), runs that are awaited, and many requests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from parallax.engine import FORKS
from parallax.errors import SessionClosedError
from parallax.opening import CLOSED, HOLDING_ATTRIBUTES, SessionState, check_transition
from parallax.session._planned import SwappingSession

if TYPE_CHECKING:
    from parallax.backends.ort._types import Feeds, OutputNames
    from parallax.serving import Batcher

_OF_OURS: Final = (
    *("_source", "_loaded", "_look", "_estimator", "_declaration", "_memory"),
    *("_model_bytes", "_sess_options_initial"),
)
"""What a session keeps to open its model again, and to describe it."""

_NO_GENERATION: Final = -1
"""As if the session had been opened in another process: every run looks closer before it begins."""


class ClosableSession(SwappingSession):
    """What a session offers to end it, to await its runs, and to serve many callers."""

    _fork: int
    _lazy_lock: Any
    _captured_graph_bindings: dict[int, Any]

    def close(self) -> None:
        """Give back what the session holds: threads, memory, the files of its model.

        Runs that are in flight go on to their end, and what they hold is given back then. Afterwards ``plan`` and
        ``get_providers`` still answer; all else raises `SessionClosedError`. Closing once more does nothing.

        Example::

            with parallax.InferenceSession("model.onnx") as session:
                outputs = session.run(None, {"x": x})
        """
        is_of_parent = self._fork != FORKS.generation
        if is_of_parent:
            self._lazy_lock = threading.RLock()  # a thread of the parent may have held it
        with self._lazy_lock:
            if self.is_closed:
                return
            opened = self._opened
            if opened.plan is not None:
                self._plan = self.plan  # while what was opened can be asked
            if is_of_parent:
                # The threads that its end would wait for stayed in the parent.
                self._leave_follower_to_parent()
                FORKS.keep(*(self.__dict__.get(name) for name in HOLDING_ATTRIBUTES), opened)
            elif getattr(self, "_captured_graph_bindings", None):  # older runtimes have none
                self._release_captured_graphs()
            self._stop_following("the session was closed")
            self._prepared.clear()
            check_transition(opened, CLOSED)
            self._opened, self._fork = CLOSED, _NO_GENERATION
            self._runners.put(None)
            self._swapped = None
            self._former.clear()
            for name in HOLDING_ATTRIBUTES:
                self.__dict__.pop(name, None)
            self.__dict__.update(dict.fromkeys(_OF_OURS), _captured_graph_bindings={})
        was_split = opened.split is not None
        del opened
        _give_back(was_split=was_split)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._opened.state is SessionState.CLOSED

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def arun(self, output_names: OutputNames, input_feed: Feeds, run_options: Any = None) -> list[Any]:
        """Run as ``run`` does, for ``await``: other tasks of the loop go on while the model runs in another thread.

        A task that is cancelled stops waiting at once, and its run is told to stop (``RunOptions.terminate``): it ends
        after the operators in flight. Where ``run_options`` is given, it is that object which says so until the run has
        ended, to whatever other runs it was given as well.

        Returns, raises: as ``run``.

        Example::

            outputs = await asyncio.gather(session.arun(None, {"x": a}), session.arun(None, {"x": b}))
        """
        from parallax.session._awaiting import run_awaited

        self._check_open()
        return await run_awaited(self.run, output_names, input_feed, run_options)

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
                answers are trimmed. The model must take a mask that hides what is filled up: it is checked.
            examples: two requests of equal shapes and unlike values to check and measure with. Default: made up.

        Raises:
            ConfigError: an option does not fit; also where ``pad`` changes answers.
            InputError: an example does not fit the model.

        Example::

            with session.batcher(slo_ms=50) as batcher:
                futures = [batcher.submit({"x": array}) for array in arrays]
                outputs = [future.result() for future in futures]
        """
        from parallax.serving import BatcherOptions, make_batcher

        options = BatcherOptions(slo_ms=slo_ms, max_batch=max_batch, max_queue=max_queue, pad=pad, examples=examples)
        return make_batcher(self, options)

    def run_many(self, feeds: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
        """Run the model on many feeds; the answers come in their order, each as ``run(None, ...)`` gives it.

        What takes longer than a second is run as is measured to take least: side by side, or several together.

        Args:
            feeds: read as far as they can be run, so that a generator needs memory for some hundred at a time.

        Returns: per feeds a list of outputs. Raises: as ``run``, for the first feeds that fail.

        Example::

            outputs = session.run_many({"x": array} for array in arrays)
        """
        from parallax.options import check_many
        from parallax.serving import run_many

        check_many(feeds)
        return run_many(self, feeds)

    def _check_open(self) -> None:
        """Raises: SessionClosedError once the session is closed."""
        if self.is_closed:
            raise closed_error("this session")

    def _refuse_if_closed(self, name: str) -> None:
        """To be called for an attribute that is missing. Raises: SessionClosedError if it went when it was closed."""
        if name in HOLDING_ATTRIBUTES and self.is_closed:
            raise closed_error("this session")


def closed_error(what: str) -> SessionClosedError:
    """The error for the use of a session that is closed."""
    return SessionClosedError(f"{what} was closed", fix="open another one; close it after its last run")


def _give_back(*, was_split: bool) -> None:
    from parallax.backends.ort import shrink_shared_allocator
    from parallax.machine import trim_heap

    if was_split:
        from parallax.engine import lane_pool

        lane_pool().end_idle()
    shrink_shared_allocator()
    trim_heap()
