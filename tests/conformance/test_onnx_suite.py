"""ONNX's backend test suite, case by case: Parallax does what ONNX Runtime does, whole and split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest

import parallax
from tests.conformance._onnx_suite import (
    EXCUSED,
    KINDS,
    MODES,
    Case,
    Mode,
    Outcome,
    Verdict,
    examine,
    judge,
    load_cases,
    passes,
    run_case,
    shard_of,
    why_excluded,
)

NODE_SHARDS = 8
_MODES = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def _hold_to_onnxruntime(cases: Sequence[Case], mode: Mode) -> int:
    """Fail with every difference there is, not only the first; return how many cases ONNX Runtime passes."""
    differences, passed = [], 0
    for case in cases:
        result = examine(case, parallax.InferenceSession, [mode])
        ours = result.modes[mode.name]
        excused = (case.id, mode.name) in EXCUSED
        if ours.verdict is Verdict.DIFFERENT:
            differences.append(f"{case.id}: {ours.difference}")
        elif not result.complaint:
            passed += 1
            if ours.passes and excused:
                differences.append(f"{case.id}: needs no excuse any more")
            elif not ours.passes and not excused:
                differences.append(f"{case.id}: close to ONNX Runtime's, but not what the suite expects")
    assert not differences, "\n".join([f"{len(differences)} of {len(cases)} cases differ:", *differences])
    return passed


@_MODES
@pytest.mark.parametrize("shard", range(NODE_SHARDS))
def test_operators_do_what_onnxruntimes_do(mode: Mode, shard: int) -> None:
    cases = [case for case in load_cases("node") if shard_of(case, NODE_SHARDS) == shard]
    # Refusing alike counts for nothing: a harness that fed nonsense would see both sides refuse everything.
    assert _hold_to_onnxruntime(cases, mode) > 0.7 * len(cases)


@_MODES
# The oldest runtime that is allowed reads 16 of the 23 simple ones: the suite is newer.
@pytest.mark.parametrize(("kind", "least"), [("simple", 0.6), ("pytorch-converted", 0.7), ("pytorch-operator", 0.6)])
def test_small_models_do_what_onnxruntimes_do(mode: Mode, kind: str, least: float) -> None:
    cases = load_cases(kind)
    assert _hold_to_onnxruntime(cases, mode) > least * len(cases)


# One chain of hundreds of MiB of weights each, in which there is nothing to cut.
_HEAVY = ("test_bvlc_alexnet", "test_vgg19", "test_zfnet512")


@_MODES
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in _HEAVY else [])
        for case in load_cases("light")
    ],
)
def test_whole_networks_do_what_onnxruntimes_do(mode: Mode, case: Case) -> None:
    assert _hold_to_onnxruntime([case], mode) == 1


def test_every_kind_of_case_is_tested() -> None:
    assert set(KINDS) == {"node", "simple", "light", "pytorch-converted", "pytorch-operator"}
    for kind in KINDS:
        assert load_cases(kind)


@pytest.mark.parametrize(
    "name",
    [
        "node/test_attention_4d_expanded",
        "node/test_layer_normalization_2d_axis0_expanded",
        "light/test_squeezenet",
        "light/test_densenet121",
    ],
)
def test_forced_splitting_does_split(name: str) -> None:
    (case,) = [case for case in load_cases(name.split("/")[0]) if case.id == name]
    split = next(mode for mode in MODES if mode.name == "split")
    assert examine(case, parallax.InferenceSession, [split]).modes["split"].segments > 1


@pytest.mark.parametrize("name", ["test_if", "test_loop11", "test_scan9_sum", "test_affine_grid_2d_expanded"])
def test_forced_splitting_lifts_bodies(name: str) -> None:
    (case,) = [case for case in load_cases("node") if case.name == name]
    session = parallax.InferenceSession(case.read_model().SerializeToString(), min_gain=0, threads=2)
    assert any(segment.bodies for segment in session.plan.segments)


# --- The judge, judged ------------------------------------------------------------------------------


def _outcome(*outputs: object) -> Outcome:
    return Outcome(outputs=(outputs,))


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (_outcome(ONES.copy()), Verdict.IDENTICAL),
        (_outcome(ONES + np.float32(1e-6)), Verdict.CLOSE),
        (_outcome(ONES + np.float32(1e-3)), Verdict.DIFFERENT),
        (_outcome(ONES.astype(np.float64)), Verdict.DIFFERENT),
        (_outcome(ONES[None]), Verdict.DIFFERENT),
        (_outcome([ONES]), Verdict.DIFFERENT),
        (_outcome(ONES, ONES), Verdict.DIFFERENT),
        (_outcome(None), Verdict.DIFFERENT),
        (_outcome(np.full(3, np.nan, np.float32)), Verdict.DIFFERENT),
        (Outcome(error=ValueError("no"), stage="run"), Verdict.DIFFERENT),
    ],
    ids=["same", "last-place", "off", "type", "shape", "list", "count", "None", "nan", "error"],
)
def test_the_judge_tells_equal_from_different(ours: Outcome, verdict: Verdict) -> None:
    assert judge(_outcome(ONES), ours)[0] is verdict


def test_whole_numbers_and_text_are_equal_or_different_never_close() -> None:
    whole, text = np.array([10**6]), np.array(["a", "b"], dtype=object)
    assert judge(_outcome(whole, text), _outcome(whole.copy(), text.copy()))[0] is Verdict.IDENTICAL
    assert judge(_outcome(whole), _outcome(whole + 1))[0] is Verdict.DIFFERENT
    assert judge(_outcome(text), _outcome(text[::-1]))[0] is Verdict.DIFFERENT


def test_refusals_are_alike_when_the_class_is() -> None:
    both = type("Both", (parallax.ParallaxError, ValueError), {})
    theirs = Outcome(error=ValueError("no"), stage="open")
    assert judge(theirs, Outcome(error=both("no"), stage="open"))[0] is Verdict.REFUSED_ALIKE
    assert judge(theirs, Outcome(error=parallax.ParallaxError("no"), stage="open"))[0] is Verdict.DIFFERENT
    assert judge(theirs, _outcome(ONES))[0] is Verdict.DIFFERENT


def test_reasons_come_from_onnxruntimes_own_words() -> None:
    (case,) = [case for case in load_cases("node") if case.name == "test_adam"]
    model = case.read_model()
    data = case.read_data(model)
    complaint = passes(case, data, run_case(onnxruntime.InferenceSession, model, data))
    assert why_excluded(complaint).startswith("training operator")
