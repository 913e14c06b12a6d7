"""A session's plan, shown: what runs where and why, in a record, in words and in one line of the log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from parallax import _lazy
from parallax.opening import Opened, SessionState
from parallax.session._base import SessionBase

if TYPE_CHECKING:
    from parallax.opening import OpenedBundle
    from parallax.options import AskedProviders, Device, PlanningOptions
    from parallax.schedule import Plan

logger = _lazy.logger(__name__)


class PlannedSession(SessionBase):
    """What a session says of its plan."""

    _opened: Opened
    _opened_bundle: OpenedBundle | None
    _plan: Plan | None
    """As it came true; None until somebody asks."""
    _asked_providers: AskedProviders
    _devices: tuple[Device, ...]
    _parallax_options: PlanningOptions
    _model_path: str | None
    _sess_options_initial: Any

    @property
    def plan(self) -> Plan:
        """What runs where, on how many threads, and why; one segment means that the model is not split."""
        plan = self._plan
        if plan is None:
            plan = self._plan = self._plan_that_runs()
        return plan

    def explain(self) -> str:
        """What ``print(session.plan)`` shows, and what to try next, for people: lines of at most 80 characters.

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

    def _plan_that_runs(self) -> Plan:
        from parallax.opening import plan_that_runs, threads_of

        opened = self._opened
        assert opened.plan is not None
        assert opened.runner is not None
        refused: frozenset[int] = frozenset()
        if opened.split is not None:
            from parallax.engine import refused_segments

            refused = refused_segments(opened.split.sessions)
        return plan_that_runs(
            opened.plan,
            self._asked_providers,
            devices=[device.name for device in self._devices],
            providers=self._providers[len(self._devices) :],
            threads=None if opened.split is not None else threads_of(opened.runner.sessions[0]),
            refused=refused,
        )

    def _announce(self) -> None:
        """One line of the log about what was opened, if anybody listens."""
        logging = sys.modules.get("logging")  # who listens has loaded it
        if logging is not None and logger.isEnabledFor(logging.INFO):
            name = self._model_path or "a model given as bytes"
            logger.info("opened %s: %s", name, self.plan.summary)
