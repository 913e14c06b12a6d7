"""Pruned image classifiers as PyTorch exports them from transformers' classes (`tools/zoo/small_pruned.py`): slimmed to
equal outputs, or left as they are with the reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.model import load_model, slim_model

FOLDER = Path(__file__).parent / "exported"
SLIMMED = {
    "resnet_channels": (12, 2),
    "mobilenetv2_channels": (352, 32),
    "vit_heads": (72, 8),  # of each layer: two of four heads by query, key and value, and 12 neurons
}
"""File -> channels that go, and operators that lose them."""


def model(name: str) -> bytes:
    return gzip.decompress((FOLDER / f"{name}.onnx.gz").read_bytes())


def images(count: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(count).standard_normal((count, 3, 32, 32)).astype(np.float32)}


def assert_equal_outputs(name: str, **options: object) -> None:
    session = parallax.InferenceSession(model(name), slim=True, **options)  # type: ignore[arg-type]
    runtime = onnxruntime.InferenceSession(model(name), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (want,) = runtime.run(None, images(count))
        assert np.ptp(want) > 0.1, "the model is to answer something"
        np.testing.assert_allclose(session.run(None, images(count))[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("options", [{}, {"split": "always", "threads": 2}], ids=["default", "split"])
@pytest.mark.parametrize("name", SLIMMED)
def test_what_was_pruned_goes_and_it_answers_the_same(name: str, options: dict[str, object]) -> None:
    slimming = slim_model(load_model(model(name))).slimming
    assert slimming is not None
    assert (slimming.channels, len({removal.node for removal in slimming.removals})) == SLIMMED[name]
    assert not slimming.refusals
    assert_equal_outputs(name, **options)


def test_channels_that_their_batch_normalisation_shifts_stay_in_front_of_zero_padding() -> None:
    """Only convolutions were pruned. The exporter folds the shift into their bias: what is left of a channel is
    Relu(shift), which is 0 for some and not for others."""
    slimming = slim_model(load_model(model("resnet_convolutions"))).slimming
    assert slimming is not None
    assert 0 < slimming.channels < 12
    assert slimming.channels + sum(refusal.count for refusal in slimming.refusals) == 12
    assert all("zero padding stands before Conv" in refusal.why for refusal in slimming.refusals)
    assert_equal_outputs("resnet_convolutions")


def test_a_pad_whose_sizes_are_computed_is_refused() -> None:
    slimmed = slim_model(load_model(model("mobilenetv2_padded")))
    assert slimmed.slimming is not None
    assert not slimmed.slimming.removals
    assert "Pad '/model/mobilenet_v2/layer.0/conv_3x3/Pad' needs all of" in slimmed.slimming.summary
    assert slimmed.whole() == model("mobilenetv2_padded")
    assert_equal_outputs("mobilenetv2_padded")


def test_every_export_is_tried() -> None:
    names = {path.name.partition(".")[0] for path in FOLDER.iterdir()}
    assert names == {*SLIMMED, "resnet_convolutions", "mobilenetv2_padded"}
