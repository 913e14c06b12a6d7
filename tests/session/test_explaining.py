"""A session explains itself: in a text for people, and in one line of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import parallax
from tests.session._dropin import branches_model

MODEL = branches_model().SerializeToString()
CPU = "CPUExecutionProvider"
SPLIT = {"split": "always", "threads": 2}


def steps(session: parallax.InferenceSession) -> str:
    """What to try next, in one line."""
    text = session.explain()
    assert text.startswith(str(session.plan))
    assert all(len(line) <= 80 for line in text.splitlines())
    _, _, after = text.partition("what to try next:\n")
    assert after.startswith("* ")
    assert "parallax bench MODEL" in " ".join(after.split())
    return " ".join(after.split())


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"threads": 2}, "tune=True measures splits of this model"),
        ({"threads": 1}, "more than one core"),
        (SPLIT, "leaving out what forces the split"),
        ({"split": "never", "threads": 2}, "leaving out what keeps the model whole"),
        ({"policy": "sequential", "threads": 2}, "leaving out what keeps the model whole"),
        ({"threads": 2}, 'shapes={"x": (...)}'),
        ({"threads": 2}, "parallax.compile(model"),
    ],
    ids=str,
)
def test_it_says_what_to_try(keywords: Mapping[str, Any], says: str) -> None:
    assert says in steps(parallax.InferenceSession(MODEL, **keywords))


def test_known_shapes_are_not_asked_for_again() -> None:
    session = parallax.InferenceSession(MODEL, threads=2, shapes={"x": (2, 4)})
    assert "shapes=" not in steps(session)


def test_session_options_keep_a_model_whole_unless_it_is_asked_for() -> None:
    session = parallax.InferenceSession(MODEL, onnxruntime.SessionOptions(), threads=2)
    assert "with session options a model is split on demand only" in steps(session)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_not_there_is_the_first_thing_to_see_to() -> None:
    session = parallax.InferenceSession(MODEL, providers=["CUDAExecutionProvider", CPU])
    assert steps(session).startswith("* CUDAExecutionProvider was asked for and does not run")


def test_a_tuned_session_has_nothing_left_to_try_about_its_plan(tmp_path: Path) -> None:
    session = parallax.InferenceSession(MODEL, tune=True, threads=2, cache_dir=tmp_path, backends=())
    text = steps(session)
    if session.plan.provenance.is_conclusive:
        assert "nothing about the plan" in text
        assert "tune=True" not in text
    else:
        assert "again when the machine is idle" in text


def test_a_bundle_is_compiled_again_to_be_tuned(tmp_path: Path) -> None:
    session = parallax.InferenceSession(parallax.compile(MODEL, tmp_path / "m.plx", threads=2))
    assert "parallax.compile(..., tune=True) measures" in steps(session)
    assert "makes a bundle" not in steps(session)


def test_it_explains_after_it_is_closed() -> None:
    session = parallax.InferenceSession(MODEL, **SPLIT)
    session.close()
    assert "leaving out what forces the split" in steps(session)


@pytest.mark.parametrize("keywords", [{}, SPLIT], ids=["whole", "split"])
def test_the_log_has_one_line_per_session(
    keywords: Mapping[str, Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    with caplog.at_level(logging.INFO, logger="parallax"):
        sessions = [parallax.InferenceSession(source, **keywords) for source in (MODEL, tmp_path / "model.onnx")]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("opened ")]
    assert lines == [
        f"opened a model given as bytes: {sessions[0].plan.summary}",
        f"opened {tmp_path / 'model.onnx'}: {sessions[1].plan.summary}",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="parallax"):
        parallax.InferenceSession(MODEL, **keywords)
    assert not caplog.records
