from __future__ import annotations

import numpy as np
import pytest

from parallax import zoo
from parallax.errors import ConfigError

every_model = pytest.mark.parametrize("name", zoo.names())


@every_model
def test_inputs_match_the_card(name: str) -> None:
    card = zoo.info(name)
    arrays = zoo.example_inputs(name)
    assert list(arrays) == [entry.name for entry in card.inputs]
    for entry in card.inputs:
        array = arrays[entry.name]
        assert array.shape == entry.typical_shape
        assert array.dtype == np.dtype(entry.dtype)
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()


@every_model
def test_inputs_follow_the_seed(name: str) -> None:
    first, again, other = (zoo.example_inputs(name, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@every_model
def test_every_dynamic_dim_can_be_chosen(name: str) -> None:
    for dim in zoo.info(name).dynamic_dims:
        arrays = zoo.example_inputs(name, **{dim.name: 3})
        for entry in zoo.info(name).inputs:
            for axis, size in enumerate(entry.shape):
                if size == dim.name:
                    assert arrays[entry.name].shape[axis] == 3


def test_tokens_are_ids_between_the_markers() -> None:
    tokens = zoo.example_inputs("distilbert", batch=4, sequence=200)["input_ids"]
    assert (tokens >= 0).all()
    assert (tokens < 30522).all()
    assert (tokens[:, 0] == 101).all()
    assert (tokens[:, -1] == 102).all()


def test_clip_end_marker_is_the_largest_id_of_each_row() -> None:
    tokens = zoo.example_inputs("clip-text", batch=4, sequence=20)["input_ids"]
    assert (tokens.argmax(axis=1) == 19).all()


def test_masks_hide_nothing() -> None:
    assert (zoo.example_inputs("distilbert")["attention_mask"] == 1).all()


def test_images_are_pixels_normalised_as_the_model_expects() -> None:
    plain = zoo.example_inputs("yolov8n")["images"]
    assert float(plain.min()) >= 0.0
    assert float(plain.max()) <= 1.0
    normalised = zoo.example_inputs("resnet18")["image"]
    assert float(normalised.min()) == pytest.approx((0.0 - 0.485) / 0.229, abs=0.1)


def test_seeds_reach_both_branches_of_the_control_flow_model() -> None:
    signs = {bool(zoo.example_inputs("lstm-if-loop", seed=seed)["features"].mean() > 0) for seed in range(4)}
    assert signs == {True, False}


def test_unknown_dim_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"no dynamic dimension 'length'.*batch, sequence"):
        zoo.example_inputs("distilbert", length=3)
    with pytest.raises(ConfigError, match=r"no dynamic dimension 'batch'.*every shape of this model is static"):
        zoo.example_inputs("resnet18", batch=2)


@pytest.mark.parametrize("size", [0, -1, 513])
def test_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"sequence={size} does not fit.*between 1 and 512"):
        zoo.example_inputs("distilbert", sequence=size)
