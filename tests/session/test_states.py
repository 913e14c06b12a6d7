"""How a session runs its model is a state, and only some follow others."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.engine import TraceRecorder
from parallax.opening._state import CLOSED, NOT_OPEN, Opened, SessionState, check_transition
from tests.session._dropin import branches_answer, branches_model, ramp

MODEL = branches_model().SerializeToString()
CPU = "CPUExecutionProvider"
PHONE = "emulated:pixel-6-gpu"
SPLIT: dict[str, Any] = {"threads": 2, "split": "always"}


class Told(parallax.InferenceSession):
    """Keeps the states that it goes through."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.states: list[SessionState] = []
        super().__init__(*args, **kwargs)

    def _enter(self, opened: Opened) -> None:
        super()._enter(opened)
        self.states.append(opened.state)


KEYWORDS: dict[SessionState, dict[str, Any]] = {
    SessionState.WHOLE: {"split": "never", "idle_trim_s": 60},
    SessionState.DIRECT: {"split": "never"},
    SessionState.SPLIT: SPLIT,
}


def in_state(state: SessionState) -> Opened:
    if state is SessionState.OPENING:
        return NOT_OPEN
    if state is SessionState.CLOSED:
        return CLOSED
    opened = parallax.InferenceSession(MODEL, **KEYWORDS[state])._opened
    assert opened.state is state
    return opened


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SessionState, repeat=2)))
def test_what_is_open_is_closed_before_something_else_is_opened(before: SessionState, after: SessionState) -> None:
    if before is not SessionState.CLOSED and (after is SessionState.CLOSED or SessionState.OPENING in (before, after)):
        check_transition(in_state(before), in_state(after))
    else:
        with pytest.raises(parallax.InternalError, match=f"from '{before.value}' to '{after.value}'"):
            check_transition(in_state(before), in_state(after))


@pytest.mark.parametrize(("state", "other"), list(itertools.product(SessionState, repeat=2)))
def test_a_state_has_what_it_runs(state: SessionState, other: SessionState) -> None:
    runner = in_state(other).runner
    without = (SessionState.OPENING, SessionState.CLOSED)
    if state is other or (state in without and other in without):
        assert Opened(state=state, runner=runner).runner is runner
    else:
        with pytest.raises(parallax.InternalError, match=f"in state '{state.value}'"):
            Opened(state=state, runner=runner)


@pytest.mark.parametrize(
    ("keywords", "state"),
    [
        ({"split": "never"}, SessionState.DIRECT),
        ({"split": "never", "trace": TraceRecorder()}, SessionState.DIRECT),
        ({"split": "never", "observers": [print]}, SessionState.DIRECT),
        ({"split": "never", "memory_budget": "1GiB"}, SessionState.WHOLE),
        ({"split": "never", "idle_trim_s": 60}, SessionState.WHOLE),
        (SPLIT, SessionState.SPLIT),
    ],
)
def test_each_way_to_run_has_its_state(keywords: dict[str, Any], state: SessionState) -> None:
    session = Told(MODEL, **keywords)
    assert session.states == [SessionState.OPENING, state]
    x = ramp(2, 4)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)
    session.set_providers([CPU])
    assert session.states[2:] == [SessionState.OPENING, SessionState.OPENING, state]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)


def test_bundles_have_the_states_of_models(tmp_path: Path) -> None:
    whole = parallax.compile(MODEL, tmp_path / "whole.plx", threads=2, split="never")
    split = parallax.compile(MODEL, tmp_path / "split.plx", **SPLIT)
    assert Told(whole, threads=2).states == [SessionState.OPENING, SessionState.DIRECT]
    assert Told(split, threads=2).states == [SessionState.OPENING, SessionState.SPLIT]


@pytest.mark.parametrize("before", [{}, {"providers": [PHONE, CPU]}], ids=str)
@pytest.mark.parametrize(
    ("providers", "options", "error"),
    [
        ([CPU], [{}, {}], ValueError),
        ([CPU], ["a"], ValueError),
        ([(CPU, 5)], None, ValueError),
        (5, None, TypeError),
        (["emulated:no-such-phone"], None, parallax.ConfigError),
    ],
    ids=str,
)
def test_providers_that_cannot_be_had_leave_the_session_as_it_was(
    before: dict[str, Any], providers: Any, options: Any, error: type[Exception]
) -> None:
    session = Told(MODEL, **SPLIT, **before)
    plan, shown = session.plan, session.get_providers()
    x = ramp(2, 4)
    with pytest.raises(error):
        session.set_providers(providers, options)
    assert session._opened.state is SessionState.SPLIT
    assert (session.plan, session.get_providers()) == (plan, shown)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)
    session.set_providers([CPU])
    assert session._opened.state is SessionState.SPLIT
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)


def test_a_plan_that_was_swapped_in_stays_where_providers_cannot_be_had() -> None:
    session = Told(MODEL, **SPLIT)
    session.swap_plan(parallax.InferenceSession(MODEL, split="never", threads=2).plan)
    with pytest.raises(ValueError, match="same length"):
        session.set_providers([CPU], [{}, {}])
    assert session.plan.is_whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_opens_again_what_had_threads() -> None:
    session = Told(MODEL, **SPLIT)
    x = ramp(2, 4)
    session.run(None, {"x": x})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            answer = session.run(None, {"x": x})[0]
            is_right = np.allclose(answer, branches_answer(x), rtol=1e-6, atol=1e-6)
            is_new = session.states[2:] == [SessionState.OPENING, SessionState.SPLIT]
            code = 0 if is_right and is_new else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert session.states == [SessionState.OPENING, SessionState.SPLIT]
