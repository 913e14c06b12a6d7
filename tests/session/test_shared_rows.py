"""Rows shared by a device and the CPU, together with shapes, open dimensions, budgets, threads and copies."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.errors import BudgetError, PlanError
from parallax.schedule import CPU_BACKEND, Plan
from tests._threads import in_threads
from tests._tuning import let_the_last_win
from tests.session.test_devices import CPU, PHONE, SIZE, chain, expected, feeds

ON_PHONE: dict[str, Any] = {"providers": [(PHONE, {"speed": 1000})], "threads": 2}


@pytest.fixture(autouse=True)
def rows_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, whatever else the machine is doing: plans with rows shared come last."""
    let_the_last_win(monkeypatch)


def check_answers(session: parallax.InferenceSession, model: bytes, rows: int, seeds: int = 2) -> None:
    for seed in range(seeds):
        answer = session.run(None, feeds(rows, seed))[0]
        np.testing.assert_allclose(answer, expected(model, feeds(rows, seed))[0], rtol=1e-5, atol=1e-5)


def check_shares(plan: Plan) -> None:
    assert plan.rows_permille is not None
    assert {segment.backend for segment in plan.segments} == {PHONE, CPU_BACKEND}


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        ("n", {"calibration": feeds(512)}),
        ("n", {"shapes": {"x": (512, SIZE)}}),
        (512, {"shapes": {"x": (512, SIZE)}}),
        (512, {"memory_budget": "1GiB"}),
        ("n", {"memory_budget": "1GiB", "calibration": feeds(512)}),
        ("n", {"memory_budget": "1GiB", "shapes": {"x": (512, SIZE)}}),
    ],
    ids=["open", "planned shapes", "shapes of the model", "budget", "open, budget", "planned shapes, budget"],
)
def test_rows_are_shared_with_shapes_open_dimensions_and_budgets(
    rows: int | str, more: dict[str, Any], tmp_path: Path
) -> None:
    model = chain(2, rows=rows)
    session = parallax.InferenceSession(model, tune=True, cache_dir=tmp_path, **ON_PHONE, **more)
    check_shares(session.plan)
    check_answers(session, model, 512)
    assert session.memory().run_peak_bytes
    stock = onnxruntime.InferenceSession(model, providers=[CPU])
    assert [one.shape for one in session.get_inputs()] == [one.shape for one in stock.get_inputs()]
    assert [one.shape for one in session.get_outputs()] == [one.shape for one in stock.get_outputs()]
    # Later sessions know, without measuring; copies and further shapes answer alike.
    without = {name: value for name, value in more.items() if name != "calibration"}
    later = parallax.InferenceSession(model, cache_dir=tmp_path, **ON_PHONE, **without)
    assert later.plan == session.plan
    copied = pickle.loads(pickle.dumps(later))
    check_shares(copied.plan)
    for other in (later, copied):
        check_answers(other, model, 512, seeds=1)
        if rows == "n":
            for further in (1, 7, 100, 512, 100):
                check_answers(other, model, further)
    session.trim()
    check_answers(session, model, 512, seeds=1)


def test_shapes_that_come_again_get_forms_of_their_own_and_the_latest_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = chain(2, rows="n")
    session = parallax.InferenceSession(model, tune=True, cache_dir=tmp_path, calibration=feeds(512), **ON_PHONE)
    check_shares(session.plan)
    own = "have a plan of their own"
    with caplog.at_level(logging.INFO, "parallax"):
        check_answers(session, model, 384, seeds=1)
        assert own not in caplog.text, "what comes once runs whole"
        check_answers(session, model, 384, seeds=2)
        assert caplog.text.count(own) == 1
        for rows in (256, 320, 448, 576, 640):
            check_answers(session, model, rows, seeds=3)
        assert caplog.text.count(own) == 6
        # Fewer rows than are ever split: they run whole, however often they come.
        check_answers(session, model, 4, seeds=4)
        assert caplog.text.count(own) == 6
        check_answers(session, model, 640, seeds=1)
        assert caplog.text.count(own) == 6, "kept"
        check_answers(session, model, 384, seeds=3)
        assert caplog.text.count(own) == 7, "the oldest went, and is made again"
    session.trim()
    check_answers(session, model, 640, seeds=1)


@pytest.mark.parametrize("budget", [None, "1GiB"])
def test_eight_threads_share_rows_in_several_shapes(budget: str | None, tmp_path: Path) -> None:
    model = chain(2, rows="n")
    session = parallax.InferenceSession(
        model,
        tune=True,
        cache_dir=tmp_path,
        calibration=feeds(512),
        memory_budget=budget,
        **ON_PHONE,
    )
    check_shares(session.plan)
    answers = {rows: expected(model, feeds(rows, rows))[0] for rows in (512, 384, 256, 9)}

    def work(number: int) -> None:
        for step in range(8):
            rows = list(answers)[(number + step) % len(answers)]
            np.testing.assert_allclose(session.run(None, feeds(rows, rows))[0], answers[rows], rtol=1e-5, atol=1e-5)

    in_threads(8, work)


def test_a_budget_counts_the_whole_model_beside_shared_rows(tmp_path: Path) -> None:
    model = chain(2, rows="n")
    options: dict[str, Any] = {"cache_dir": tmp_path, **ON_PHONE}
    free = parallax.InferenceSession(model, tune=True, calibration=feeds(512), memory_budget="1GiB", **options)
    least = free.memory().least_budget_bytes
    assert least is not None
    tight = parallax.InferenceSession(model, memory_budget=least, **options)
    check_shares(tight.plan)
    check_answers(tight, model, 512)
    with pytest.raises(BudgetError, match="weights that are held twice"):
        tight.run(None, feeds(100))
    check_answers(tight, model, 512)


def test_a_plan_by_rows_can_be_swapped_in_and_shapes_of_another_model_cannot(tmp_path: Path) -> None:
    model = chain(2, rows="n")
    tuned = parallax.InferenceSession(model, tune=True, cache_dir=tmp_path, calibration=feeds(512), **ON_PHONE)
    plan = Plan.from_json(tuned.plan.to_json())
    session = parallax.InferenceSession(model, cache_dir=tmp_path / "other", min_gain=0.9, **ON_PHONE)
    assert session.plan.rows_permille is None
    session.swap_plan(plan)
    check_shares(session.plan)
    check_answers(session, model, 512)
    check_answers(session, model, 33)
    other = parallax.InferenceSession(chain(2, rows=512), cache_dir=tmp_path / "other", **ON_PHONE)
    with pytest.raises(PlanError):
        other.swap_plan(plan)


@pytest.mark.parametrize(
    ("rows", "more"),
    [(512, {}), ("n", {"shapes": {"x": (512, SIZE)}}), ("n", {"shapes": {"x": (512, SIZE)}, "memory_budget": "1GiB"})],
    ids=["fixed", "planned shapes", "planned shapes, budget"],
)
def test_a_policy_shares_rows_unmeasured(rows: int | str, more: dict[str, Any]) -> None:
    model = chain(4, rows=rows)
    # The processor's speed is stated: that of this machine, measured, decides what gains.
    phone = {"speed": 3, "host_flops": 100e9}
    options: dict[str, Any] = {"policy": "shard-rows", "providers": [(PHONE, phone)], "threads": 2}
    session = parallax.InferenceSession(model, **options, **more)
    check_shares(session.plan)
    assert session.plan.provenance.source == "tables"
    check_answers(session, model, 512)
    if rows == "n":
        for further in (100, 100, 7):
            check_answers(session, model, further, seeds=1)
    # Where nothing is predicted to gain, the processor does it all.
    slow = {**options, "providers": [(PHONE, phone | {"speed": 0.1})]}
    assert parallax.InferenceSession(model, **slow, **more).plan.is_whole
