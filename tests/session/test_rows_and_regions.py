"""Rows shared within a chain and regions elsewhere, in one plan: answers, with all that plans go with."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parallax
from parallax.bundle import read_bundle
from parallax.errors import PlanError
from parallax.schedule import CPU_BACKEND, Plan
from tests._threads import in_threads
from tests._tuning import let_the_last_win
from tests.model.test_rows import random_products
from tests.planner.test_row_search import ROWS, SIZE, STATED, chain_and_branches
from tests.session.test_devices import CPU, PHONE, expected, feeds

OPTIONS: dict[str, Any] = {
    "policy": "rows-and-regions",
    "providers": [(PHONE, STATED), CPU],
    "threads": 2,
    "min_gain": 0.01,
}
FIXED = bytes(chain_and_branches().SerializeToString())
OPEN = bytes(chain_and_branches("n").SerializeToString())


def check_plan(plan: Plan) -> None:
    """The chain's rows are shared, and what follows, whose product is one piece, is a region."""
    assert plan.rows_permille is not None
    assert plan.rows_whole == ("left",)
    assert {segment.backend for segment in plan.segments} == {PHONE, CPU_BACKEND}
    assert any("y" in segment.outputs for segment in plan.segments if segment.backend == PHONE)


def check_answers(session: parallax.InferenceSession, model: bytes, rows: int = ROWS, seeds: int = 2) -> None:
    for seed in range(seeds):
        answer = session.run(None, feeds(rows, seed))[0]
        np.testing.assert_allclose(answer, expected(model, feeds(rows, seed))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [None, "256MiB"])
def test_a_session_runs_both(budget: str | None) -> None:
    session = parallax.InferenceSession(FIXED, memory_budget=budget, **OPTIONS)
    check_plan(session.plan)
    check_answers(session, FIXED)
    assert "1 layer left whole" in " ".join(str(session.plan).split())
    read = Plan.from_json(session.plan.to_json())
    assert read == session.plan
    copied = pickle.loads(pickle.dumps(session))
    check_plan(copied.plan)
    check_answers(copied, FIXED)


def test_eight_threads_run_both() -> None:
    session = parallax.InferenceSession(FIXED, **OPTIONS)
    check_plan(session.plan)
    in_threads(8, lambda _: check_answers(session, FIXED))


def test_further_shapes_run_at_the_same_share_with_the_same_layers_whole() -> None:
    session = parallax.InferenceSession(OPEN, shapes={"x": (ROWS, SIZE)}, **OPTIONS)
    check_plan(session.plan)
    check_answers(session, OPEN)
    for rows in (448, 448, 448, 7, ROWS):
        check_answers(session, OPEN, rows)


def test_bundles_and_the_cache_keep_both(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(FIXED)
    bundle = parallax.compile(path, tmp_path / "m.plx", **OPTIONS)
    assert read_bundle(bundle).plan.rows_whole == ("left",)
    for options in ({}, {"memory_budget": "256MiB"}):
        session = parallax.InferenceSession(bundle, **options)
        check_plan(session.plan)
        check_answers(session, FIXED)
        in_threads(8, lambda _, own=session: check_answers(own, FIXED, seeds=1))
    for _ in range(2):
        kept = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path / "cache", **OPTIONS)
        check_plan(kept.plan)
        check_answers(kept, FIXED)
    assert len(list((tmp_path / "cache" / "bundles").iterdir())) == 1


def test_tuning_measures_both_and_later_sessions_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_the_last_win(monkeypatch)
    options: dict[str, Any] = {"providers": [(PHONE, {"speed": 1000}), CPU], "threads": 2, "cache_dir": tmp_path}
    session = parallax.InferenceSession(FIXED, tune=True, **options)
    plan = session.plan
    assert plan.rows_permille is not None
    label = plan.provenance.candidates[-1].label
    assert label.startswith(f"rows shared with {PHONE}, ")
    assert ("left whole" in label) is bool(plan.rows_whole)
    check_answers(session, FIXED)
    later = parallax.InferenceSession(FIXED, **options)
    assert later.plan == plan
    check_answers(later, FIXED)


def test_a_plan_with_layers_left_whole_is_swapped_in_for_its_own_model_alone() -> None:
    plan = parallax.InferenceSession(FIXED, **OPTIONS).plan
    session = parallax.InferenceSession(FIXED, **{**OPTIONS, "policy": "cpu"})
    assert session.plan.is_whole
    session.swap_plan(plan)
    check_plan(session.plan)
    check_answers(session, FIXED)
    other = parallax.InferenceSession(OPEN, **{**OPTIONS, "policy": "cpu"})
    with pytest.raises(PlanError):
        other.swap_plan(plan)
    assert onnxruntime.InferenceSession(FIXED, providers=[CPU]).get_outputs()[0].shape == [ROWS, SIZE]


@settings(max_examples=12, deadline=None)
@given(random_products(), st.sampled_from([0.3, 1, 5]))
def test_answers_are_right_for_random_graphs(drawn: tuple[onnx.ModelProto, set[str]], speed: float) -> None:
    model = bytes(drawn[0].SerializeToString())
    options = {**OPTIONS, "providers": [(PHONE, {**STATED, "speed": speed}), CPU]}
    fed = {"x": np.random.default_rng(0).normal(size=(1, 128, SIZE)).astype(np.float32)}
    (want,) = expected(model, fed)
    atol = 1e-4 * float(np.abs(want).max())
    with parallax.InferenceSession(model, **options) as session:
        for _ in range(2):
            np.testing.assert_allclose(session.run(None, fed)[0], want, rtol=1e-4, atol=atol)
