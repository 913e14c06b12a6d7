"""A session's plan: shown in a record, in words and in the log; exchanged by hand, or as the machine changes."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallax import _lazy
from parallax.errors import ConfigError
from parallax.opening import Opened, SessionState, stock_attributes
from parallax.session._base import SessionBase

if TYPE_CHECKING:
    from parallax.adapt import Adaptation
    from parallax.adapting import CallerFollower, Follower
    from parallax.engine import CountedRunner, Runner, RunnerHandle
    from parallax.opening import OpenedBundle, Sharing
    from parallax.options import AskedProviders, Device, PlanningOptions
    from parallax.planner import PlanRequest
    from parallax.schedule import Plan

logger = _lazy.logger(__name__)


class PlannedSession(SessionBase):
    """What a session says of its plan."""

    _opened: Opened
    _opened_bundle: OpenedBundle | None
    _plan: Plan | None
    """As it came true; None until somebody asks."""
    _not_following: str | None
    _callers: CallerFollower | None = None
    """What follows the callers, where that was asked for and can be done."""
    _not_serving: str | None = None
    """Why callers are not followed as ``objective=`` asks for; None where they are, or it does not."""
    _shown: tuple[bool, str, Plan] | None = None
    """While callers are followed: whether the wide form was shown last, what was said of callers, and the plan."""
    _asked_providers: AskedProviders
    _devices: tuple[Device, ...]
    _parallax_options: PlanningOptions
    _model_path: str | None
    _sess_options_initial: Any

    @property
    def plan(self) -> Plan:
        """Says what runs where, on how many threads, and why; one segment means that the model is not split."""
        callers, plan = self._callers, self._plan
        if callers is not None:
            return self._plan_of_callers(callers)
        if plan is None:
            plan = self._plan = self._plan_that_runs()
        return plan

    def _plan_of_callers(self, callers: CallerFollower) -> Plan:
        """Which form is in force changes, in a thread that waits for nobody here: so what was shown is compared."""
        narrow, note = callers.narrow, callers.note
        shown = self._shown
        if shown is None or shown[:2] != (narrow is None, note):
            shown = self._shown = (narrow is None, note, self._plan_that_runs(narrow, note))
        return shown[2]

    def explain(self) -> str:
        """Return what ``print(session.plan)`` shows, and what to try next, for people: lines of at most 80 characters.

        Example::

            print(session.explain())
        """
        from parallax.opening import explain, open_inputs

        is_closed = self._opened.state is SessionState.CLOSED
        return explain(
            self.plan,
            self._parallax_options,
            is_bundle=self._opened_bundle is not None,
            is_on_cpu=not self._devices,
            has_session_options=self._sess_options_initial is not None,
            open_inputs=() if is_closed else open_inputs(self.get_inputs()),
            fallen_back=self._asked_providers.missing(self._providers),
        )

    def _plan_that_runs(self, narrow: Runner | None = None, served: str = "") -> Plan:
        """``narrow``: what is in force in place of what was opened. ``served``: what there is to say of callers."""
        from parallax.opening import options_of_no_effect, plan_that_runs, slimming_note, threads_of

        opened = self._opened
        runner = narrow or opened.runner
        assert runner is not None
        refused: frozenset[int] = frozenset()
        if opened.split is not None:
            from parallax.engine import refused_segments

            refused = refused_segments(opened.split.sessions)
        notes = [served] if served else []
        notes += options_of_no_effect(self._opening_request(self._open_separately), opened)
        if opened.trimming is not None:
            notes.append(opened.trimming.describe())
        if self._not_following is not None:
            notes.append(f"adapt=True is of no effect: {self._not_following}")
        if self._not_serving is not None:
            notes.append(f'objective="{self._parallax_options.objective}" is of no effect: {self._not_serving}')
        if self._parallax_options.slim and self._opened_bundle is None:
            notes.append(slimming_note(self._loaded))
        return plan_that_runs(
            runner.plan,
            self._asked_providers,
            devices=[device.name for device in self._devices],
            providers=self._providers[len(self._devices) :],
            threads=None if opened.split is not None else threads_of(runner.sessions[0]),
            refused=refused,
            note="; ".join(notes),
        )

    def _announce(self) -> None:
        """One line of the log about what was opened, if anybody listens."""
        logging = sys.modules.get("logging")  # who listens has loaded it
        if logging is not None and logger.isEnabledFor(logging.INFO):
            name = self._model_path or "a model given as bytes"
            logger.info("opened %s: %s", name, self.plan.summary)


class SwappingSession(PlannedSession):
    """What a session offers to switch to other plans."""

    _swap_lock: Any
    _swapped: tuple[Plan, str] | None = None
    """The plan that was swapped in last by hand, and why; None where the one that the session was opened with is in
    force, or what follows the machine chose another."""
    _follower: Follower | None = None
    _not_following: str | None = None
    """Why ``adapt=True`` is of no effect; None where it is, or was not asked for."""

    @property
    def runners(self) -> RunnerHandle:
        """What holds the runner in force. To change it, use `swap_plan`, which also changes what the session shows."""
        return self._runners

    def swap_plan(self, plan: Plan, *, reason: str = "") -> None:
        """Switch to another plan of the same model without a pause.

        The plan is compiled in this thread, while others run on. Runs that begin from then on run it; runs in flight
        end on the one before, whose memory goes when the last of them has ended. Until then both hold their weights,
        which a memory budget counts. Observers get an event (`parallax.events.PlanSwapped`).

        A forked child goes on with the plan; ``set_providers`` and a pickled copy plan anew. A session that follows the
        machine (``adapt=True``) does so no more: the plan is the caller's from then on.

        Args:
            plan: of this model, in the shapes that the session plans for: ``plan`` of another session, or what
                `parallax.planner.plan_model` or ``Plan.from_json`` returned.
            reason: why, in words, for observers.

        Raises:
            PlanError: it is of another model or for other shapes, or cannot run.
            ConfigError: this session cannot change its plan: it is of a bundle, or options or providers keep its model
                whole.
            BudgetError: it does not fit the memory budget, or not beside the plan in force.
            BackendError: the runtime refuses a part of the model.

        Example::

            session = parallax.InferenceSession("model.onnx")
            other = parallax.InferenceSession("model.onnx", split="always")
            session.swap_plan(other.plan, reason="the machine has more cores now")
        """
        from parallax.options import check_plan, check_reason

        check_plan(plan)
        check_reason(reason)
        self._reopen_if_forked()
        with self._swap_lock:
            before, memory = self._opened, self._memory
            opened, held = self._open_beside(before, plan, ends_following=True)
            if memory is not None and opened.budget is not None:
                memory.count_runtime(opened.budget.runtime_bytes)
                ended = weakref.finalize(before.runner, memory.let_go, held)
                ended.atexit = False
            self._exchange(before, opened, reason)
            self._swapped = (plan, reason)

    def prepare_plan(self, plan: Plan) -> Opened:
        """Compile another plan of the same model, to be switched to later, at once, with `use_prepared`.

        It holds weights of its own, which a memory budget counts, until nobody holds it any more. Others run on
        meanwhile.

        Raises: as `swap_plan`.
        """
        from parallax.options import check_plan

        check_plan(plan)
        self._reopen_if_forked()
        with self._swap_lock:
            before, memory = self._opened, self._memory
            opened, held = self._open_beside(before, plan)
            if memory is not None and held:
                ended = weakref.finalize(opened.runner, memory.let_go, held)
                ended.atexit = False
            with self._lazy_lock:
                if self._opened is not before:
                    raise _opened_anew()
                assert opened.runner is not None
                self._prepared.add(opened.runner)
        return opened

    def use_prepared(self, opened: Opened, reason: str) -> None:
        """Switch to what `prepare_plan` returned, as `swap_plan` does.

        Raises: ConfigError if the session was closed or opened anew since, or this is nothing that was prepared.
        """
        from parallax.options import check_reason

        check_reason(reason)
        if not isinstance(opened, Opened):
            raise ConfigError(f"opened={opened!r:.80} was not prepared", fix="give what prepare_plan returned")
        with self._swap_lock:
            before = self._opened
            if opened.runner not in self._prepared:
                raise _opened_anew()
            if opened is not before:
                if self._callers is not None:
                    self._stop_following("another plan was put in force by hand")
                self._exchange(before, opened, reason)
                if opened.plan is not None and (self._follower is None or self._follower.is_stopped):
                    self._swapped = (opened.plan, reason)
                if before.split is not None:
                    before.split.executor.trim()

    def _open_beside(self, before: Opened, plan: Plan, *, ends_following: bool = False) -> tuple[Opened, int]:
        """What a plan is compiled to, beside what is open, and the bytes that the budget counts for it from now on."""
        from parallax.opening import open_prepared, prepare_plan

        memory = self._memory
        request = self._opening_request(self._open_separately)
        prepared = prepare_plan(request, before, self._model, plan)
        if ends_following:
            self._stop_following("another plan was swapped in by hand")
            self._use_wide("another plan is being compiled")
        held = 0
        if memory is not None and prepared.budget is not None:
            held = prepared.budget.weight_bytes
            memory.hold(held, prepared.requirement)
        try:
            return open_prepared(request, prepared, before), held
        except BaseException:
            if memory is not None:
                memory.let_go(held)
            raise

    def _exchange(self, before: Opened, opened: Opened, reason: str) -> None:
        """Have this session run, and show, what was opened in place of what it had open before.

        Raises: ConfigError if it has something else open by now.
        """
        assert opened.runner is not None
        with self._lazy_lock:
            if self._opened is not before:
                raise _opened_anew()
            whole = self.__dict__.get("_sess")
            if whole is not None:
                self._former.add(whole)
            self._show(opened)
            self._opened = opened
            if opened.split is not None and before.split is None:
                del self._sess  # as in a session that was opened split
        self._runners.swap(opened.runner, reason=reason)

    # -- following the callers --------------------------------------------------------------------------

    def open_narrow(self, most_growth: float | None) -> CountedRunner:
        """Open the model once more, on one thread, for callers side by side: see `parallax.adapting.CallerFollower`.

        It holds weights of its own, which a memory budget counts until nobody holds it; those of a bundle are shared.

        Raises: BudgetError: there is no room for it; ConfigError: the session was closed or opened anew meanwhile.
        """
        from parallax.engine import CountedRunner, SideBySideRunner
        from parallax.opening import narrow_weight_bytes, open_narrow
        from parallax.options import session_cores

        with self._swap_lock:
            before, memory = self._opened, self._memory
            if not isinstance(before.runner, CountedRunner):
                raise _opened_anew()
            request = self._opening_request(self._open_separately)
            held = narrow_weight_bytes(before, self._look or self._loaded, request, most_growth=most_growth)
            if memory is not None:
                memory.hold(held, self._expected_requirement())
            try:
                opened = open_narrow(request, before, opened_bundle=self._opened_bundle, model=self._loaded)
            except BaseException:
                if memory is not None:
                    memory.let_go(held)
                raise
            cores = session_cores(self._parallax_options, None)
            runner = SideBySideRunner.beside(before.runner, opened, cores=cores)
            if memory is not None:
                weakref.finalize(runner, memory.let_go, held).atexit = False
            with self._lazy_lock:
                if self._opened is not before:
                    raise _opened_anew()
                self._prepared.add(runner)
        return runner

    def sharing(self) -> Sharing:
        """Say how further sessions on the model share its weights. Raises: ConfigError: the session was closed."""
        from parallax.opening import Sharing

        if self._opened.runner is None:
            raise _opened_anew()
        request, providers = self._opening_request(self._open_separately), self._providers[len(self._devices) :]
        return Sharing(self._opened, request, self._look or self._loaded, tuple(providers))

    def share_weights(self, before: Runner, bundle: OpenedBundle) -> CountedRunner:
        """Switch from ``before`` to a bundle of the model, by the same plan, so that further sessions share weights.

        Returns: what runs then. Raises: ParallaxError: it cannot be done; says why.
        """
        from parallax.engine import CountedRunner
        from parallax.opening import open_shared

        with self._swap_lock:
            opened = self._opened
            if opened.runner is not before:
                raise _opened_anew()
            shared = open_shared(self._opening_request(self._open_separately), opened, bundle)
            self._exchange(opened, shared, "the model's weights are mapped, to be shared")
        assert isinstance(shared.runner, CountedRunner)
        return shared.runner

    def use_runner(self, before: Runner, after: Runner, reason: str) -> bool:
        """Put one in force if the other is; returns whether it was. Runs in flight end on the one before."""
        return self._runners.swap_if(before, after, reason=reason)

    def _follow_callers(self) -> None:
        opened, options = self._opened, self._parallax_options
        self._not_serving = self.sharing().why_not_narrow()
        if self._not_serving is not None:
            return
        from parallax.adapting import CallerFollower
        from parallax.engine import CallCount, CountedRunner, WholeRunner
        from parallax.options import session_cores

        assert isinstance(opened.runner, WholeRunner)
        wide = CountedRunner.of(opened.runner, CallCount())
        self._opened = replace(opened, runner=wide)
        self._runners.put(wide)
        self._callers = CallerFollower(self, wide, objective=options.objective, cores=session_cores(options, None))

    def _use_wide(self, reason: str) -> None:
        """Put what is open in force again, if a narrow form of it is."""
        wide, current = self._opened.runner, self._runners.current
        if wide is not None and current is not None and current is not wide:
            self._runners.swap_if(current, wide, reason=reason)

    # -- following the machine --------------------------------------------------------------------------

    @property
    def adaptation(self) -> Adaptation | None:
        """Says what a session with ``adapt=True`` knows of the machine, which plans it has ready, what it switched and
        why, as of now. ``print`` shows it, ``to_json`` gives it to programs. None without ``adapt``.

        Example::

            session = parallax.InferenceSession("model.onnx", adapt=True)
            print(session.adaptation)
        """
        if self._opened.state is not SessionState.CLOSED:
            self._reopen_if_forked()
        if self._follower is not None:
            return self._follower.adaptation
        if not self._parallax_options.adapt:
            return None
        from parallax.adapt import Adaptation, HardwareState

        ended = self._not_following or "nothing is open"
        return Adaptation(state=HardwareState(), plans=(), current=0, switches=(), runs=0, ended=ended)

    def planning_request(self) -> PlanRequest:
        """What the session's plan is the answer to.

        Raises: ConfigError if there is no model to plan for; as `parallax.backends.open_backend`.
        """
        from parallax.opening import planning_request

        return planning_request(self._opening_request(self._open_separately), self._model)

    def _follow(self) -> None:
        """Begin to follow the machine, or the callers, if that was asked for and can be done."""
        if self._parallax_options.objective in ("auto", "throughput"):
            self._follow_callers()
        if not self._parallax_options.adapt:
            return
        from parallax.opening import why_not_following

        first = self._opened
        self._not_following = why_not_following(first, self._model, self._opening_request(self._open_separately))
        if self._not_following is not None:
            return
        from parallax.adapting import Follower

        if first.split is None:
            # What another plan will overwrite, so that this one can be gone back to.
            own = stock_attributes(self)
            own["_providers"] = self._providers[len(self._devices) :]
            first = self._opened = replace(first, attributes={**own, **first.attributes})
        assert first.runner is not None
        self._prepared.add(first.runner)
        self._follower = Follower(
            self,
            first,
            events=self._observers.events,
            allows_splits=not self._parallax_options.is_kept_whole,
            has_budget=self._parallax_options.budget_bytes is not None,
        )
        self._follower.start()

    def _stop_following(self, why: str) -> None:
        """What is prepared is let go of."""
        with self._lazy_lock:
            if self._callers is not None:
                self._callers.stop(why)
                self._callers, self._not_serving = None, why
            if self._follower is not None:
                self._follower.stop(why)
                self._prepared.clear()

    def _leave_follower_to_parent(self) -> None:
        """In a forked child: its thread is not here, and what it prepared would wait for threads that are gone too."""
        from parallax.engine import FORKS

        self._observers.events.renew()
        follower, self._follower = self._follower, None
        callers, self._callers = self._callers, None
        if callers is not None:
            FORKS.keep(callers, *self._prepared)
        if follower is not None:
            self._observers.events.remove(follower.observer)
            FORKS.keep(follower, *self._prepared)
            self._prepared = weakref.WeakSet()


def _opened_anew() -> ConfigError:
    return ConfigError(
        "this session was closed, or opened anew, since that plan was prepared", fix="prepare it again, if it is open"
    )
