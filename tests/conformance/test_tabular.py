"""Models as tables of data have them: opened by default and split by force, they answer as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.model import load_model
from tests.conformance._onnx_suite import Outcome, Verdict, judge
from tests.conformance._small_models import SmallModel, small_models
from tests.conformance._tabular import TabularModel, converted, why_missing

FORCED = {"min_gain": 0, "threads": 2}
LEAST_CONVERTED = 100
"""Of 113 recipes: converters lag behind the libraries they convert from."""


def _outcome(session: onnxruntime.InferenceSession, feeds: Sequence[Any]) -> Outcome:
    try:
        return Outcome(outputs=tuple(tuple(session.run(None, dict(feed))) for feed in feeds))
    except Exception as error:
        return Outcome(error=error, stage="run")


def _differences(model: SmallModel | TabularModel) -> list[str]:
    """How ours differ from the runtime's outputs: bit for bit by default, within tolerance where the model is split."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    theirs = _outcome(
        onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"]), model.feeds
    )
    assert theirs.error is None, f"{model.name}: ONNX Runtime itself fails: {theirs.error}"
    found = []
    for mode, allowed, own in (
        ("default", (Verdict.IDENTICAL,), {"threads": 1}),
        ("default on two threads", (Verdict.IDENTICAL, Verdict.CLOSE), {"threads": 2}),
        ("split", (Verdict.IDENTICAL, Verdict.CLOSE), FORCED),
    ):
        session = parallax.InferenceSession(model.data, **own)
        if mode.startswith("default") and not session.plan.is_whole:
            found.append(f"{model.name}, {mode}: split unasked: {session.plan.provenance.reason}")
        verdict, difference = judge(theirs, _outcome(session, model.feeds))
        if verdict not in allowed:
            found.append(f"{model.name}, {mode}: {verdict} {difference}")
    return found


LARGE_NODES = 160
"""Splitting a model of more takes seconds each."""


def _small(*, large: bool) -> list[SmallModel]:
    return [model for model in small_models() if (load_model(model.data).survey.node_count > LARGE_NODES) == large]


def test_small_models_answer_as_the_runtime_does_and_stay_whole_unasked() -> None:
    assert not [line for model in _small(large=False) for line in _differences(model)]


def test_small_models_have_what_they_are_there_for() -> None:
    """Missing values, strings, mappings, many ends; and split by force they are."""
    models = {model.name: model for model in _small(large=False)}
    assert len(models) >= 18
    assert np.isnan(models["column by column, 8 columns"].feeds[1]["x"]).any()
    for name in ("strings to numbers", "classifier with ZipMap", "fifty inputs and outputs"):
        assert name in models
    for name in ("vote of 12 trees", "recommender, 26 embeddings", "two towers"):
        assert len(parallax.InferenceSession(models[name].data, **FORCED).plan.segments) > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_small_models_of_many_operators_answer_as_the_runtime_does_and_stay_whole_unasked() -> None:
    assert not [line for model in _small(large=True) for line in _differences(model)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(why_missing() is not None, reason=why_missing() or "")
def test_converted_models_answer_as_the_runtime_does_and_stay_whole_unasked() -> None:
    models, refused = converted()
    assert len(models) >= LEAST_CONVERTED, refused
    assert not [line for model in models for line in _differences(model)]
