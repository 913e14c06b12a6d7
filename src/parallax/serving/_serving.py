"""Sessions behind a batcher: what of a model runs together, on how many threads, and how many at once.

All is measured when the batcher is made. The session itself serves a request that comes alone; a second session on one
thread serves as many side by side as there are cores; and where a batch takes less time per request, sessions on the
model with its batch axis open serve several together. What gains nothing is closed again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from parallax import _lazy
from parallax.errors import BackendError, ConfigError, ParallaxError, UnsupportedModelError
from parallax.options import CPU_PROVIDERS
from parallax.schedule import CPU_BACKEND
from parallax.serving._batcher import Batcher, check_limits
from parallax.serving._check import why_rows_differ
from parallax.serving._companions import Companions
from parallax.serving._examples import example_feeds
from parallax.serving._many import run_in_order
from parallax.serving._measure import LEAST_GAIN, best_size, measure_setting, request_s
from parallax.serving._padding import Padding, find_padding
from parallax.serving._requests import RequestReader
from parallax.serving._rows import join_rows, split_rows_of
from parallax.serving.policy import Setting, Sizing

if TYPE_CHECKING:
    from parallax.model import BatchAxis

logger = _lazy.logger(__name__)

Arrays = Mapping[str, Any]
Answer = list[Any]

_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Of batches that are tried; a device gets sessions for these alone."""

_UNKNOWN: Final = ((1, 1e-4),)
"""What a batch is said to take where nothing could be measured: the first runs tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherOptions:
    """What a batcher was asked to be; see ``InferenceSession.batcher``."""

    slo_ms: float | None = None
    max_batch: int = 32
    max_queue: int | None = None
    pad: Mapping[str, float] | None = None
    examples: Sequence[Arrays] | None = None
    sizing: Sizing = Sizing.FITTED
    window_ms: float = 0.0
    is_to_stay: bool = True
    """Whether a bundle may be compiled in the background, so that the batcher shares weights with its session."""


def make_batcher(session: Any, options: BatcherOptions) -> Batcher:
    """A batcher on a session. Takes about a second, and more for large models.

    Raises:
        ConfigError: an option does not fit.
        InputError: an example does not fit the model.
    """
    check_limits(slo_ms=options.slo_ms, max_batch=options.max_batch, max_queue=options.max_queue)
    runner, reader = prepare(session, options)
    try:
        return Batcher(
            runner,
            reader,
            slo_ms=options.slo_ms,
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            sizing=options.sizing,
            window_ms=options.window_ms,
        )
    except BaseException:
        runner.close()
        raise


def run_many(session: Any, feeds: Iterable[Arrays]) -> list[Answer]:
    """Answer many requests; see ``InferenceSession.run_many``."""
    return run_in_order(
        feeds,
        run=lambda fed: session.run(None, fed),
        open_batcher=lambda: make_batcher(session, BatcherOptions(is_to_stay=False)),
    )


@dataclass(slots=True)
class _Way:
    """Sessions for one setting."""

    threads: int
    lanes: int
    alone: Any
    """Runs one request."""
    joined: Any = None
    """Runs any number; None where only ``ladder`` does, or nothing."""
    ladder: dict[int, Any] = field(default_factory=dict)
    """Number of requests -> the session for just so many."""
    measured: tuple[tuple[int, float], ...] = ()

    @property
    def can_join(self) -> bool:
        return self.joined is not None or bool(self.ladder)

    def stop_joining(self) -> None:
        """Drop what runs several requests, and what was measured of it."""
        self.joined, self.ladder = None, {}
        self.measured = self.measured[:1]


class SessionRunner:
    """Runs the requests of a batcher on sessions; see `parallax.serving.BatchRunner`."""

    def __init__(
        self,
        session: Any,
        ways: Sequence[_Way],
        axis: BatchAxis | None,
        companions: Companions,
        *,
        settings: Sequence[Setting] = (),
        reason: str = "",
        elements: int = 0,
    ) -> None:
        self._session = session
        self._ways = list(ways)
        self._axis = axis
        self._companions = companions
        self.reason = reason
        self.elements = elements
        self.settings = tuple(settings)

    def check_open(self) -> None:
        """Raises: SessionClosedError once the session is closed."""
        self._session._check_open()

    def run_one(self, setting: int, arrays: Arrays) -> Answer:
        """The answer to one request."""
        self.check_open()
        answer: Answer = self._ways[setting].alone.run(None, arrays)
        return answer

    def run_together(self, setting: int, requests: Sequence[Arrays]) -> list[Answer]:
        """The answers to several."""
        self.check_open()
        way, axis = self._ways[setting], self._axis
        assert axis is not None
        session, size = way.joined, len(requests)
        if session is None:
            size = min((entry for entry in way.ladder if entry >= size), default=0)
            if not size:
                raise BackendError(f"no session was opened for {len(requests)} requests")
            session = way.ladder[size]
        outputs = session.run(None, join_rows(requests, axis, size=size))
        return split_rows_of(outputs, axis, requests=len(requests), size=size)

    @property
    def holds_weights(self) -> bool:
        """Whether sessions that run side by side, on the session's own model, have weights of their own."""
        return any(way.lanes > 1 and way.alone._opened.mapped_bundle is None for way in self._ways)

    def share_weights(self) -> None:
        """Put sessions on a bundle in their place, if there is one by now. Runs in flight end on the session before."""
        for way in tuple(self._ways):
            shared = self._companions.open_shared(threads=1) if way.lanes > 1 else None
            if shared is not None:
                if way.joined is way.alone:
                    way.joined = shared
                way.alone = shared

    def close(self) -> None:
        """Drop the sessions, and their files."""
        self._ways.clear()
        self._companions.close()


def _setting(way: _Way) -> Setting:
    if way.ladder:
        sizes: tuple[int, ...] = (1, *sorted(way.ladder))
    else:
        sizes = () if way.joined is not None else (1,)
    return Setting(
        threads=way.threads, lanes=way.lanes, measured=way.measured, sizes=sizes, best_size=best_size(way.measured)
    )


def prepare(session: Any, options: BatcherOptions) -> tuple[SessionRunner, RequestReader]:
    """Open and measure what a batcher on ``session`` needs. Raises: as `make_batcher`."""
    session._check_open()
    companions = Companions(session)
    try:
        return _Preparation(session, companions, options).prepare()
    except BaseException:
        companions.close()
        raise


class _Preparation:
    """One batcher in the making."""

    def __init__(self, session: Any, companions: Companions, options: BatcherOptions) -> None:
        self._session = session
        self._companions = companions
        self._options = options
        self._slo_s = None if options.slo_ms is None else options.slo_ms / 1e3
        self._inputs = session.get_inputs()
        self._optional = session.get_overridable_initializers()
        self._axis: BatchAxis | None = None
        self._reason = ""
        self._opened: Path | None = None
        """The model with its batch axis open, where the session's own has one of 1."""
        self._padding: Padding | None = None
        self._pad_fault = ""

    def prepare(self) -> tuple[SessionRunner, RequestReader]:
        examples = self._examples()
        wide = _Way(threads=self._session.plan.cores, lanes=1, alone=self._session)
        ways, elements = [wide], 0
        if examples is None:
            wide.measured = _UNKNOWN
        else:
            self._find_axis(examples)
            if self._options.pad is not None:
                self._padding = self._stated_padding(self._options.pad)
            ways = self._measured(wide, examples)
            elements = sum(array.size for array in examples[0].values())
        if self._pad_fault:
            raise ConfigError(
                f"pad= changes answers: {self._pad_fault}",
                fix="feed a mask that hides what is filled up, and name it in pad=; or leave pad= out",
            )
        runner = SessionRunner(
            self._session,
            ways,
            self._axis,
            self._companions,
            settings=[_setting(way) for way in ways],
            reason=self._reason,
            elements=elements,
        )
        follower = self._session._callers
        if follower is not None and self._options.is_to_stay and runner.holds_weights:
            later = weakref.WeakMethod(runner.share_weights)
            follower.share(lambda: _call(later()))
        trimming = getattr(self._session.runners.current, "trimming", None)
        reader = RequestReader(self._inputs, self._optional, axis=self._axis, padding=self._padding, trimming=trimming)
        return runner, reader

    # -- examples -----------------------------------------------------------------------------------------------------

    def _examples(self) -> list[Arrays] | None:
        """Two unlike requests that the model runs on; None where none were given and none can be made up."""
        given = self._options.examples
        if given is not None:
            return self._given_examples(given)
        try:
            made: list[Arrays] = [
                example_feeds(self._inputs, seed=seed, shapes=self._companions.shapes) for seed in (1, 2)
            ]
            for feeds in made:
                self._session.run(None, feeds)
        except Exception as error:  # whatever the runtime raises for feeds that make no sense to the model
            self._say_why(f"the model does not run on made-up requests ({error}); give two with examples=")
            return None
        return made

    def _given_examples(self, given: Sequence[Arrays]) -> list[Arrays]:
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or len(given) < 2:
            raise ConfigError(
                f"examples={given!r:.80} holds fewer than two requests", fix="give [{name: array}, {name: array}]"
            )
        reader = RequestReader(self._inputs, self._optional, axis=None)
        read = [reader.read(feeds) for feeds in given[:2]]
        if read[0].shapes.key != read[1].shapes.key:
            raise ConfigError("the first two examples have unlike shapes", fix="give two of equal shapes")
        return [request.arrays for request in read]

    # -- the batch axis -----------------------------------------------------------------------------------------------

    def _find_axis(self, examples: Sequence[Arrays]) -> None:
        """Set the axis, and the model that has it open; or the reason why there is none."""
        if self._options.max_batch == 1:
            self._say_why("max_batch=1")
            return
        if self._companions.why_no_model:
            self._say_why(self._companions.why_no_model)
            return
        from parallax.model import NoBatchAxis, find_batch_axis, open_batch_axis

        is_open = not any(isinstance(entry.shape[0], int) for entry in self._inputs if entry.shape)
        if not is_open and self._companions.why_none:
            self._say_why(f"its batch axis would have to be opened, and {self._companions.why_none}")
            return
        shapes = {name: (1, *array.shape[1:]) for name, array in examples[0].items() if array.ndim}
        try:
            model = self._companions.read_model()
            if not is_open:
                model = open_batch_axis(model)
            axis = find_batch_axis(model, shapes)
            if not is_open:
                self._opened = self._companions.saved(model)
            self._axis = axis
        except UnsupportedModelError as error:
            self._say_why(error.what)
        except (ParallaxError, NoBatchAxis, OSError) as error:
            self._say_why(str(error))

    def _say_why(self, reason: str) -> None:
        self._axis = None
        self._reason = reason
        logger.info("a batcher runs requests one by one: %s", reason)

    # -- what is quickest ---------------------------------------------------------------------------------------------

    @property
    def _is_on_cpu(self) -> bool:
        """Whether nothing of the model runs elsewhere, so that threads are all that runs share."""
        on_cpu = all(segment.backend == CPU_BACKEND for segment in self._session.plan.segments)
        return on_cpu and set(self._session.get_providers()) <= CPU_PROVIDERS

    def _measured(self, wide: _Way, examples: Sequence[Arrays]) -> list[_Way]:
        """The ways worth keeping, measured."""
        wide.measured = self._measure(wide, examples, sizes=(1,))
        ways = [wide]
        narrow = self._narrow()
        if narrow is not None:
            narrow.measured = self._measure(narrow, examples, sizes=(1,))
            ways.append(narrow)
        if self._axis is not None:
            reason = self._open_joined(ways, examples)
            if reason is not None:
                for way in ways:
                    way.stop_joining()
                self._say_why(reason)
        costs = [request_s(way.measured, way.lanes) for way in ways]
        return ways[:1] if costs[-1] > (1 - LEAST_GAIN) * costs[0] else ways

    def _narrow(self) -> _Way | None:
        """Side by side, each on one thread; None where that makes no sense, or cannot be opened."""
        cores = self._session.plan.cores
        if cores < 2 or self._companions.why_none or not self._is_on_cpu:
            return None
        if self._companions.is_bundle and not self._session.plan.is_whole:
            return None  # the plan of a bundle is fixed
        try:
            return _Way(threads=1, lanes=cores, alone=self._companions.open(threads=1))
        except ParallaxError as error:
            logger.info("no session on one thread can be opened beside: %s", error)
            return None

    def _open_joined(self, ways: Sequence[_Way], examples: Sequence[Arrays]) -> str | None:
        """Open what runs requests together, check it, and measure it.

        Returns: why requests are not run together; None where they are.
        """
        sizes = tuple(size for size in _SIZES if size <= self._options.max_batch)
        try:
            for way in ways:
                if self._is_on_cpu:
                    way.joined = self._joined(way)
                else:
                    self._fill_ladder(way, examples, sizes[1:])
                reason = self._why_apart(way, examples) if way.can_join else None
                if reason is not None:
                    return reason
                if way is ways[0] and way.can_join and self._options.pad is not None:
                    self._try_padding(way, examples)
                if way.joined is not None:
                    way.measured += self._measure(way, examples, sizes=sizes[1:])
                if best_size(way.measured) == 1 and way is not ways[0]:
                    way.stop_joining()
                elif best_size(way.measured) == 1:
                    # On more lanes, where cores are busy anyhow, there is less to gain.
                    points = ", ".join(f"{size}: {1e3 * taken:.2f} ms" for size, taken in way.measured)
                    return f"a batch takes no less time per request (by its size: {points})"
        except Exception as error:  # whatever a session on the rewritten model, or a run of it, ends with
            logger.debug("a batch cannot be run", exc_info=True)
            return f"a batch cannot be run: {error}"
        return None

    def _joined(self, way: _Way) -> Any:
        if self._opened is None:
            return way.alone
        return self._companions.open_model(self._opened, threads=1 if way.lanes > 1 else None)

    def _fill_ladder(self, way: _Way, examples: Sequence[Arrays], sizes: Sequence[int]) -> None:
        """Open a session for each size, as devices are planned for shapes, as long as the larger one gains."""
        if self._companions.why_none:
            return
        source = self._opened
        if source is None:
            source = self._companions.saved(self._companions.read_model())
        for size in sizes:
            shapes = {name: (size * array.shape[0], *array.shape[1:]) for name, array in examples[0].items()}
            way.ladder[size] = self._companions.open_model(source, shapes=shapes)
            way.measured += self._measure(way, examples, sizes=(size,))
            if best_size(way.measured) != size:
                del way.ladder[size]
                break

    def _why_apart(self, way: _Way, examples: Sequence[Arrays]) -> str | None:
        """Check it on unlike requests; the reason why requests are not answered together as they are alone, or None."""
        runner = self._runner_of([way])
        return why_rows_differ(
            examples[0],
            examples[1],
            alone=lambda feeds: self._session.run(None, feeds),
            together=lambda requests: runner.run_together(0, requests),
        )

    def _runner_of(self, ways: Sequence[_Way]) -> SessionRunner:
        return SessionRunner(self._session, ways, self._axis, self._companions)

    def _measure(self, way: _Way, examples: Sequence[Arrays], *, sizes: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """Time batches of these sizes, as long as each gains over the one before it, and could end in time."""
        runner = self._runner_of([way])

        def run(size: int) -> None:
            if size == 1:
                runner.run_one(0, examples[0])
            else:
                runner.run_together(0, [examples[number % 2] for number in range(size)])

        return measure_setting(run, lanes=way.lanes, sizes=sizes, after=way.measured, most_s=self._slo_s)

    # -- padding ------------------------------------------------------------------------------------------------------

    def _stated_padding(self, pad: Mapping[str, float]) -> Padding | None:
        """What ``pad=`` means; None where nothing is run together. Raises: ConfigError if it does not say enough."""
        axes = {entry.name: 0 for entry in self._inputs}
        padding = find_padding(pad, self._inputs, self._session.get_outputs(), batch_axes=axes)
        return None if self._axis is None else padding

    def _try_padding(self, way: _Way, examples: Sequence[Arrays]) -> None:
        """Fill up one of two requests, and see whether the answers stay what they are."""
        padding = self._padding
        assert padding is not None
        short = {name: _shortened(array, padding.inputs.get(name, ())) for name, array in examples[1].items()}
        runner = self._runner_of([way])

        def together(requests: Sequence[Arrays]) -> list[Answer]:
            answers = runner.run_together(0, padding.filled(requests))
            return [padding.cut_back(answer, fed) for answer, fed in zip(answers, requests, strict=True)]

        reason = why_rows_differ(
            examples[0], short, alone=lambda feeds: self._session.run(None, feeds), together=together
        )
        self._pad_fault = reason or ""


def _shortened(array: Any, axes: Sequence[tuple[int, str]]) -> Any:
    part = [slice(None)] * array.ndim
    for axis, _ in axes:
        part[axis] = slice(max(1, array.shape[axis] * 2 // 3))
    return array[tuple(part)]


def _call(method: Callable[[], object] | None) -> None:
    """Call a method whose object still exists; None stands for one whose object does not."""
    if method is not None:
        method()
