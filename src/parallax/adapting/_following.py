"""A session that follows the machine: plans kept ready for other states, and the one in force changed between runs.

What is decided is decided by `parallax.adapt.Controller`, from the events of runs. Here is what that needs of the
world: a clock, a thread that makes plans and has them compiled, small regions to probe processors with. No run waits
for any of it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from parallax.adapt import (
    CPU_NARROW,
    CPU_WIDE,
    DEVICE_FACTORS,
    MOST_PLANS,
    Adaptation,
    Controller,
    HardwareState,
    KeptPlan,
    ReadyPlan,
    choose_portfolio,
    crowded_states,
    state_grid,
)
from parallax.adapting._background import WORK
from parallax.adapting._processor_probe import ProcessorProbe
from parallax.backends import Backend, open_backend
from parallax.backends.ort import cpu_backend
from parallax.engine import EventStream
from parallax.errors import ParallaxError
from parallax.events import Event, RunEnded, RunOutcome
from parallax.machine import free_memory_bytes
from parallax.planner import PlanRequest, expected_input_bytes, host_machine, plans_for_states
from parallax.schedule import Plan

if TYPE_CHECKING:
    from parallax.opening import Opened

logger = logging.getLogger(__name__)

_PAUSE_S: Final = 0.05
"""Between looks: runs that begin meanwhile are not watched, and cost nothing."""

_LOOK_S: Final = 1.0
"""Without runs, one looks so often whether the session is still there."""

_WATCHED: Final = 2
"""Runs that are watched at a time, or as many as are in flight at once: a change shows in two in a row."""

_FREE_SHARE: Final = 4
"""Without a memory budget, plans that are kept ready take at most this part of what is free: 1 / 4."""

_AS_GOOD_AS_GONE: Final = 64.0
"""A slow-down of a device for which a plan is kept ready that does without it."""

_NICENESS: Final = 10
"""Of the thread that makes plans, where threads can have their own (Linux)."""


class FollowingSession(Protocol):
    """The part of a session that can change its plan."""

    def planning_request(self) -> PlanRequest:
        """What the session's plan was the answer to. Raises: ParallaxError if the model cannot be read."""
        ...

    def prepare_plan(self, plan: Plan) -> Opened:
        """Compile another plan of the session's model, to be switched to later. Takes as long as opening one."""
        ...

    def use_prepared(self, opened: Opened, reason: str) -> None:
        """Go over to what was prepared, for all runs that begin from now on."""
        ...


class Follower:
    """Follows the machine for one session, in a thread of its own, until it is stopped or the session is dropped.

    Args:
        session: is not kept alive by this.
        first: what the session has open.
        events: of the session's runs.
        allows_splits: whether plans of several segments may run.
        has_budget: whether what is prepared counts towards a memory budget of the session's.
        clock: seconds, on the clock of events.
    """

    def __init__(
        self,
        session: FollowingSession,
        first: Opened,
        *,
        events: EventStream,
        allows_splits: bool,
        has_budget: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session = weakref.ref(session)
        self._first: Opened | None = first
        self._events = events
        self._allows_splits = allows_splits
        self._has_budget = has_budget
        self._clock = clock
        self._lock = threading.Lock()
        self._request: PlanRequest | None = None
        self._controller: Controller | None = None  # (lock)
        self._opened: list[Opened] = []  # (lock) one per plan of the controller's
        self._left_out: list[str] = []  # (lock)
        self._watched = 0  # (lock) runs that ended since one looks
        self._probes: dict[str, ProcessorProbe | None] = {}  # the thread's own
        self._left: dict[str, float] = {}  # the thread's own: processors -> how slow they were when they were left
        self._has_nominal_probes = False  # the thread's own
        self._has_news = threading.Event()
        self._is_stopped = threading.Event()
        self._is_complete = False
        self._ended: str | None = None
        self._thread = threading.Thread(target=self._follow, name="parallax-adapt", daemon=True)

    def start(self) -> None:
        """Begin to make plans, and to watch."""
        WORK.add(self)
        self._thread.start()

    def stop(self, why: str) -> None:
        """Have it end; the plan in force stays so. What is being compiled is compiled to its end, and dropped."""
        if self._ended is None:
            self._ended = why
        self._is_stopped.set()
        self._has_news.set()
        self._events.remove(self._observe)

    def join(self, timeout_s: float) -> None:
        """Wait until its thread has ended."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    @property
    def is_stopped(self) -> bool:
        """Whether it follows nothing any more."""
        return self._is_stopped.is_set()

    @property
    def observer(self) -> Callable[[Event], None]:
        """What is attached to the session's events now and then."""
        return self._observe

    @property
    def adaptation(self) -> Adaptation:
        """What it knows and did."""
        with self._lock:
            controller = self._controller
            state = HardwareState() if controller is None else controller.state
            plans = () if controller is None else controller.plans
            return Adaptation(
                state=state,
                plans=tuple(
                    KeptPlan(
                        label=ready.label,
                        summary=ready.plan.summary.partition(": ")[0],
                        predicted_ms=ready.predict_ns(state, controller.machine) / 1e6,
                    )
                    for ready in plans
                    if controller is not None
                ),
                current=0 if controller is None else controller.current,
                switches=() if controller is None else tuple(controller.switches),
                runs=0 if controller is None else controller.runs,
                left_out=tuple(self._left_out),
                is_complete=self._is_complete,
                ended=self._ended,
            )

    def _observe(self, event: Event) -> None:
        """Watches runs until it has seen enough of them."""
        with self._lock:
            if self._controller is None:
                return
            run = self._controller.observe(event)
            if not isinstance(event, RunEnded) or event.parent is not None or event.outcome is not RunOutcome.DONE:
                return
            self._watched += 1
            is_enough = self._watched >= max(_WATCHED, 1 if run is None else run.concurrent)
        if is_enough:
            self._events.remove(self._observe)
            self._has_news.set()

    # -- the thread -------------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            self._make_plans()
            while not self._is_stopped.is_set():
                self._watch()
                self._await_news()
                if not self._is_stopped.is_set():
                    self._calibrate_probes()
                    self._decide()
                    if not self._is_trying():
                        self._probe()
                        if not self._is_suspicious():
                            self._is_stopped.wait(_PAUSE_S)
        except Exception as error:
            # A session that does not follow the machine is a session all the same.
            if not self._is_stopped.is_set():
                self.stop(f"{type(error).__name__}: {error}")
                logger.exception("a session does not follow the machine any more; it goes on with the plan in force")
        finally:
            self._first = self._request = None
            self._probes.clear()
            with self._lock:
                self._opened.clear()

    def _await_news(self) -> None:
        """Return when a run was watched, or there is nothing to watch any more.

        A session that is gone is found by looking: what is called when it goes may be called anywhere, and must not
        take locks.
        """
        while not self._has_news.wait(_LOOK_S):
            if self._session() is None:
                self.stop("the session is gone")
        self._has_news.clear()

    def _watch(self) -> None:
        """Look at the next runs."""
        with self._lock:
            self._watched = 0
            if self._controller is not None:
                self._controller.forget_runs()
        self._events.add(self._observe, what="observer of a session that follows the machine")
        if self._is_stopped.is_set():  # meanwhile
            self._events.remove(self._observe)

    def _make_plans(self) -> None:
        """Choose plans for states that may come, and have them compiled, the most useful first."""
        session, first = self._session(), self._first
        if session is None or first is None or first.plan is None:
            return
        with WORK.turn:
            request = self._request = session.planning_request()
        del session
        found = self._found(request, first.plan)
        if not found or self._is_stopped.is_set():
            return
        machine = host_machine(request.cores)
        with self._lock:
            self._controller = Controller(machine=machine)
        self._add(found[0], first)
        candidates = [
            found[0],
            *(
                plan.no_better_when_nominal(found[0], machine)
                for plan in found[1:]
                if self._allows_splits or len(plan.plan.segments) == 1
            ),
        ]
        states = _states(request, crowded=_names(request))
        chosen = choose_portfolio(
            [[plan.predict_ns(state, machine) for state in states] for plan in candidates],
            sizes_bytes=[request.model.weight_bytes] * len(candidates),
            bound_bytes=None if self._has_budget else free_memory_bytes() // _FREE_SHARE,
            most=MOST_PLANS,
        ).chosen
        for index in chosen[1:]:
            self._prepare(candidates[index])
        with self._lock:
            self._controller.compare_in_nominal()
        self._is_complete = not self._is_stopped.is_set()

    def _found(self, request: PlanRequest, first: Plan) -> list[ReadyPlan]:
        found: list[ReadyPlan] = []
        failures: list[Exception] = []

        def find() -> None:
            # In a thread of its own, since one that was made nice cannot be made less so, and what it starts inherits
            # that: threads of a plan that was compiled here would be slow.
            if sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            try:
                plans = plans_for_states(request, first, _states(request))
                while not self._is_stopped.is_set():
                    plan = _next(plans)
                    if plan is None:
                        return
                    found.append(plan)
            except Exception as error:
                failures.append(error)

        finding = threading.Thread(target=find, name="parallax-adapt-plan", daemon=True)
        finding.start()
        finding.join()
        if failures:
            raise failures[0]
        return found

    def _prepare(self, ready: ReadyPlan) -> None:
        session = self._session()
        if session is None or self._is_stopped.is_set():
            return
        try:
            with WORK.turn:
                opened = session.prepare_plan(ready.plan)
        except ParallaxError as error:
            with self._lock:
                self._left_out.append(f"{ready.label}: {error}")
            logger.info("a plan is not kept ready (%s): %s", ready.label, error)
            return
        self._add(ready, opened)

    def _add(self, ready: ReadyPlan, opened: Opened) -> None:
        assert opened.plan is not None
        assert self._request is not None
        with self._lock:
            assert self._controller is not None
            if len(opened.plan.segments) != len(ready.cost_ns):
                self._left_out.append(f"{ready.label}: it became another plan when it was compiled")
                return
            # Events name the plan as it was compiled, which may say more of each segment than the one it was made of.
            self._controller.add(
                ReadyPlan(
                    label=ready.label,
                    plan=opened.plan,
                    cost_ns=ready.cost_ns,
                    input_bytes=expected_input_bytes(self._request.model, opened.plan),
                )
            )
            self._opened.append(opened)

    def _decide(self) -> None:
        now = self._clock()
        with self._lock:
            controller = self._controller
            chosen = None if controller is None else controller.decide(now)
            if controller is None or chosen is None:
                return
            slow, hidden = controller.state, controller.hidden
            opened = self._opened[chosen]
            switch = controller.switched(chosen, now)
            newly_hidden = controller.hidden - hidden
        for processor in newly_hidden:
            self._left[processor] = slow.slowdown(processor)
        session = self._session()
        if session is None:
            return
        session.use_prepared(opened, f"{switch.after}: {switch.reason}")
        del session
        logger.info("the plan is %s now: %s", switch.after, switch.reason)

    def _is_trying(self) -> bool:
        with self._lock:
            return self._controller is not None and self._controller.is_trying

    def _is_suspicious(self) -> bool:
        with self._lock:
            return self._controller is not None and self._controller.is_suspicious

    def _calibrate_probes(self) -> None:
        """In the nominal state, once: note what probes of all processors take there, while all plans are ready."""
        if self._has_nominal_probes or not self._is_complete:
            return
        with self._lock:
            controller = self._controller
            if controller is None or not controller.is_nominal:
                return
            slowdowns = {name: controller.least_slowdown(name) or 1.0 for name in controller.processors}
        self._has_nominal_probes = True
        for processor, slowdown in slowdowns.items():
            try:
                with WORK.turn:
                    probe = self._probe_of(processor)
                    if probe is not None:
                        probe.calibrate_nominal(slowdown)
            except ParallaxError as error:
                logger.info("%s cannot be probed: %s", processor, error)

    def _probe(self) -> None:
        """Look at a processor that the plan in force does not use, if it is time to.

        What the plan used until it was left was known then: its probe is told by that first.
        """
        began = self._clock()
        with self._lock:
            controller = self._controller
            if controller is None:
                return
            self._left = {name: factor for name, factor in self._left.items() if name in controller.hidden}
            processor = next(iter(self._left), None) or controller.probe_due(began)
            if processor is None:
                return
            known, least = controller.state.slowdown(processor), controller.least_slowdown(processor)
        known = self._left.get(processor, known)
        ratio: float | None = None
        try:
            with WORK.turn:
                probe = self._probe_of(processor)
                began = self._clock()
                if probe is not None and (processor in self._left or not probe.is_calibrated):
                    ratio = probe.calibrate(known, least)
                elif probe is not None:
                    ratio = probe.ratio()
        except ParallaxError as error:
            logger.info("%s cannot be probed: %s", processor, error)
        self._left.pop(processor, None)
        ended = self._clock()
        with self._lock:
            controller.probed(processor, ratio, took_s=ended - began, now_s=ended)

    def _probe_of(self, processor: str) -> ProcessorProbe | None:
        """Made when first asked for; None where it cannot be."""
        if processor not in self._probes:
            self._probes[processor] = None
            try:
                self._probes[processor] = ProcessorProbe(*self._backend_of(processor))
            except ParallaxError as error:
                logger.info("%s cannot be probed: %s", processor, error)
        return self._probes[processor]

    def _backend_of(self, processor: str) -> tuple[Backend, int]:
        assert self._request is not None
        if processor in (CPU_NARROW, CPU_WIDE):
            return cpu_backend(), 1 if processor == CPU_NARROW else self._request.cores
        for device in self._request.devices.values():
            if device.backend.info.name == processor:
                return device.backend, 1
        return open_backend(processor), 1


def _states(request: PlanRequest, *, crowded: Sequence[str] = ()) -> tuple[HardwareState, ...]:
    """That plans are kept ready for.

    Args:
        crowded: devices that are slowed while others take the cores, too. To look for placements in all these states
            would take long, and finds nothing else.
    """
    factors = (*DEVICE_FACTORS, _AS_GOOD_AS_GONE)
    grid = state_grid(_names(request), device_factors=factors)
    return grid + (crowded_states(crowded, device_factors=factors) if request.cores > 1 else ())


def _names(request: PlanRequest) -> tuple[str, ...]:
    return tuple(device.backend.info.name for device in request.devices.values())


def _next(plans: Iterator[ReadyPlan]) -> ReadyPlan | None:
    with WORK.turn:
        return next(plans, None)
