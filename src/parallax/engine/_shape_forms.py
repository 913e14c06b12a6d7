"""Which executor serves a run, where the plan's own is made for one shape of the inputs alone.

A model that is split by rows is split for one shape. Its runs in others take the whole model; a shape that comes again
gets an executor of its own, where that is allowed and predicted to gain. The latest of these are kept.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from parallax import _lazy
from parallax._record import dataclass
from parallax.errors import BudgetError, ParallaxError

if TYPE_CHECKING:
    from parallax.admission import SessionMemory
    from parallax.engine._executor import Executor
    from parallax.engine._runner import Estimator
    from parallax.engine._split_runner import SplitRunner
    from parallax.memory import Budget
    from parallax.schedule import Plan

logger = _lazy.logger(__name__)

FORMS: Final = 4
"""Executors for further shapes that are kept beside the plan's own; the one that was not used for longest goes."""

SIGNATURES: Final = 64
"""Shapes of inputs that are counted."""

WANTED_RUNS: Final = 2
"""From its so-manieth run on, a shape gets an executor of its own: most that come once do not come again."""

Shapes = Mapping[str, tuple[int, ...]]
"""By name of an input."""

Signature = tuple[tuple[int, ...], ...]
"""The shapes of the open inputs, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapeForm:
    """An executor for further shapes, with what its runs hold."""

    plan: Plan
    executor: Executor
    estimator: Estimator | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Seen:
    """What is known of one signature."""

    runs: int = 0
    form: SplitRunner | None = None
    is_refused: bool = False
    """It runs whole, now and later."""


class ShapeForms:
    """The executors of one model for shapes that its plan is not for. Thread-safe.

    Args:
        shapes: of the inputs that the model leaves open, as the plan's own executor is made for.
        make_whole: compiles the whole model, for any shapes.
        make_form: plans and compiles the model for these shapes; None where nothing is predicted to gain. None: all
            other shapes run whole.
        held_bytes: what the whole model holds as long as it is open, in terms of memory budgets.
        check_unsliced: where the plan computes parts in slices because of the budget: raises BudgetError with the
            budget in which the model would run whole at once, in all these shapes. None for other plans.
        declared: the runtime's session that describes the inputs as the model leaves them open.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        make_whole: Callable[[], ShapeForm],
        make_form: Callable[[Shapes], ShapeForm | None] | None,
        held_bytes: int,
        check_unsliced: Callable[[Budget, Sequence[Shapes]], None] | None = None,
        declared: Any,
    ) -> None:
        self._names = tuple(shapes)
        self._own: Signature = tuple(shapes.values())
        self._make_whole = make_whole
        self._make_form = make_form
        self._held_bytes = held_bytes
        self._check_unsliced = check_unsliced
        self.declared = declared
        self._lock = threading.Lock()
        self._whole_lock = threading.Lock()
        self._making = threading.Lock()  # held while a form is made
        self._whole: SplitRunner | None = None  # (whole lock)
        self._seen: OrderedDict[Signature, _Seen] = OrderedDict()  # (lock)

    def runner_for(self, values: Mapping[str, Any], runner: SplitRunner, memory: SessionMemory | None) -> SplitRunner:
        """The runner for a run that is fed this.

        Compiling a form takes as long as opening a model; meanwhile, runs of other threads take the whole model.

        Args:
            values: input name -> C OrtValue.
            runner: of the plan's own executor.
            memory: admits runs; None without a budget.

        Raises: BudgetError where the whole model's weights do not fit beside those that the plan holds and what one run
            takes, whether in the planned shapes or in these.
        """
        key = tuple([tuple(values[name].shape()) for name in self._names])
        if key == self._own:
            return runner
        with self._lock:
            seen = self._seen.setdefault(key, _Seen())
            self._seen.move_to_end(key)
            if len(self._seen) > SIGNATURES:
                self._seen.popitem(last=False)
            seen.runs += 1
            form = seen.form
            is_wanted = form is None and not seen.is_refused and seen.runs >= WANTED_RUNS
        if form is not None:
            return form
        if is_wanted and self._make_form is not None and self._making.acquire(blocking=False):
            try:
                made = self._made(key, seen, runner)
            finally:
                self._making.release()
            if made is not None:
                return made
        return self._whole_runner(runner, memory, values)

    def executors(self) -> Sequence[Executor]:
        """Return all executors but the plan's own."""
        with self._lock:
            runners = [seen.form for seen in self._seen.values()]
        return [runner.executor for runner in (*runners, self._whole) if runner is not None]

    def _made(self, key: Signature, seen: _Seen, runner: SplitRunner) -> SplitRunner | None:
        if seen.form is not None or seen.is_refused:
            return seen.form  # by another thread, meanwhile
        assert self._make_form is not None
        shapes = dict(zip(self._names, key, strict=True))
        try:
            form = self._make_form(shapes)
        except ParallaxError as error:
            logger.warning("shapes %s run whole, since no plan of their own can be made: %s", shapes, error)
            form = None
        if form is None:
            seen.is_refused = True
            return None
        made = runner.beside(form.executor, form.plan, form.estimator)
        with self._lock:
            seen.form = made
            kept = [other for other in self._seen.values() if other.form is not None]
            for other in kept[:-FORMS]:
                other.form, other.runs = None, 0
        logger.info("shapes %s have a plan of their own from now on: %s", shapes, form.plan.provenance.reason)
        return made

    def _whole_runner(
        self, runner: SplitRunner, memory: SessionMemory | None, values: Mapping[str, Any]
    ) -> SplitRunner:
        whole = self._whole
        if whole is not None:
            return whole
        with self._whole_lock:
            if self._whole is None:
                held = 0 if memory is None or memory.budget is None else self._held_bytes
                if held and memory is not None:
                    self._hold(held, runner, values, memory)
                logger.info("a run brought other shapes than the plan is for: the whole model is opened beside it")
                try:
                    form = self._make_whole()
                except BaseException:
                    if held and memory is not None:
                        memory.let_go(held)
                    raise
                if held and memory is not None:
                    weakref.finalize(form.executor, memory.let_go, held).atexit = False
                self._whole = runner.beside(form.executor, form.plan, form.estimator)
            return self._whole

    def _hold(self, held: int, runner: SplitRunner, values: Mapping[str, Any], memory: SessionMemory) -> None:
        """Count the whole model's weights, where a run in the planned shapes and one that is fed this fit beside them.

        Both must. Else a run in the planned shapes, which the budget was given for, would be refused for ever after
        one in others.
        """
        planned = dict(zip(self._names, self._own, strict=True))
        fed = {name: tuple(value.shape()) for name, value in values.items()}
        largest = max(runner.requirement(planned), runner.requirement(fed), key=lambda found: found.least_bytes)
        try:
            memory.hold(held, largest)
        except BudgetError:
            if self._check_unsliced is not None and memory.budget is not None:
                # In the budget that is enough by that, the plan would be another, of fewer slices: it leaves no room.
                self._check_unsliced(memory.budget, (planned, fed))
            raise
