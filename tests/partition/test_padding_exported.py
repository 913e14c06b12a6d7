"""Encoders as PyTorch exports them from transformers' classes (`tools/zoo/small_encoders.py`): trimmed, or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.engine import trim_feeds

FOLDER = Path(__file__).parent / "exported"
TRIMMED = ("bert", "roberta_sdpa", "mpnet_mean", "t5_mean")
SIZE = 40


def model(name: str) -> bytes:
    return gzip.decompress((FOLDER / f"{name}.onnx.gz").read_bytes())


@pytest.mark.parametrize("options", [{}, {"split": "always", "threads": 2}], ids=["default", "split"])
@pytest.mark.parametrize("name", TRIMMED)
def test_it_answers_as_with_its_padding(name: str, options: dict[str, object]) -> None:
    session = parallax.InferenceSession(model(name), padding="trim", **options)  # type: ignore[arg-type]
    runtime = onnxruntime.InferenceSession(model(name), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for lengths in ((7, 12, 1), (1,), (33, 2)):
        mask = (np.arange(SIZE) < np.array(lengths)[:, None]).astype(np.int64)
        feeds = {"input_ids": random.integers(3, 30, mask.shape), "attention_mask": mask}
        trimmed = trim_feeds(session.runners.current.trimming, feeds)
        assert trimmed is not None
        assert trimmed.feeds["input_ids"].shape[1] == max(lengths)
        (want,) = runtime.run(None, feeds)
        (unmasked,) = runtime.run(None, feeds | {"attention_mask": np.ones_like(mask)})
        assert np.abs(unmasked - want).max() > 1e-4, "the model is to look at its mask"
        np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-5, atol=1e-5)


def test_logits_of_each_token_are_refused() -> None:
    with pytest.raises(parallax.ConfigError, match="output 'y' keeps the axis 'sequence'"):
        parallax.InferenceSession(model("distilbert_tokens"), padding="trim")


def test_every_export_is_tried() -> None:
    assert {path.name.partition(".")[0] for path in FOLDER.iterdir()} == {*TRIMMED, "distilbert_tokens"}
