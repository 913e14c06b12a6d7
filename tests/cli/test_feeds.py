from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax import zoo
from parallax.cli._feeds import batch_shapes, make_feeds, parse_shapes
from parallax.errors import ConfigError
from parallax.graph import TensorInfo

FLOAT, INT64, STRING, BOOL, BFLOAT16 = 1, 7, 8, 9, 16


def feed(*specifications: str, inputs: list[TensorInfo], seed: int = 0, **shapes: tuple[int, ...]):
    return make_feeds(specifications, inputs, shapes=shapes, seed=seed)


X = TensorInfo(name="x", dtype=FLOAT, shape=(2, 3))
IDS = TensorInfo(name="ids", dtype=INT64, shape=("batch", "sequence"))


@given(st.dictionaries(st.text("abcy_0", min_size=1, max_size=5), st.lists(st.integers(0, 2**63 - 1), max_size=5)))
def test_shapes_come_back_as_they_were_written(shapes: dict[str, list[int]]) -> None:
    for separator in (",", "x"):
        texts = [f"{name}={separator.join(map(str, sizes))}" for name, sizes in shapes.items()]
        assert parse_shapes(texts) == {name: tuple(sizes) for name, sizes in shapes.items()}


def test_random_values_depend_on_seed_and_name_only() -> None:
    first, _ = feed(inputs=[X])
    with_another, _ = feed("ids=1,2", inputs=[X, IDS], ids=(1, 2))
    other_seed, _ = feed(inputs=[X], seed=1)
    np.testing.assert_array_equal(first["x"], with_another["x"])
    assert not np.array_equal(first["x"], other_seed["x"])


def test_random_integers_stay_in_a_range_that_indices_and_masks_allow() -> None:
    feeds, _ = feed(inputs=[IDS], ids=(4, 500))
    assert feeds["ids"].dtype == np.int64
    assert set(np.unique(feeds["ids"])) == {0, 1}


def test_an_input_that_was_not_given_is_noted() -> None:
    _, notices = feed(inputs=[X])
    assert notices == ["input 'x' was not given: using random float32[2, 3]"]


def test_sizes_chosen_for_open_dimensions_are_noted_with_the_option_that_changes_them() -> None:
    feeds, notices = feed("ids=random", inputs=[IDS])
    assert feeds["ids"].shape == (1, 16)
    assert "--shape ids=1,16" in notices[0]


def test_an_image_of_open_size_is_224_wide() -> None:
    image = TensorInfo(name="image", dtype=FLOAT, shape=("n", 3, None, None))
    feeds, _ = feed(inputs=[image])
    assert feeds["image"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zeros", np.zeros((2, 3))),
        ("ones", np.ones((2, 3))),
        ("0.5", np.full((2, 3), 0.5)),
        ("nan", np.full((2, 3), np.nan)),
    ],
)
def test_constant_fills(text: str, expected: float) -> None:
    feeds, notices = feed(f"x={text}", inputs=[X])
    np.testing.assert_array_equal(feeds["x"], np.full((2, 3), expected, np.float32))
    assert notices == []


def test_numbers_fill_an_input_in_row_major_order() -> None:
    feeds, _ = feed("x=1,2,3,4,5,6", inputs=[X])
    np.testing.assert_array_equal(feeds["x"], [[1, 2, 3], [4, 5, 6]])


def test_numbers_give_an_open_vector_its_length() -> None:
    feeds, _ = feed("v=5,6,7", inputs=[TensorInfo(name="v", dtype=INT64, shape=("n",))])
    np.testing.assert_array_equal(feeds["v"], np.array([5, 6, 7], np.int64))


def test_a_scalar_takes_one_number() -> None:
    feeds, _ = feed("rate=16000", inputs=[TensorInfo(name="rate", dtype=INT64, shape=())])
    assert feeds["rate"].shape == ()
    assert feeds["rate"] == 16000


def test_the_name_may_be_left_out_where_there_is_one_input(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a=b.npy", array)
    feeds, _ = feed(str(tmp_path / "a=b.npy"), inputs=[X])
    np.testing.assert_array_equal(feeds["x"], array)


def test_an_archive_feeds_every_array_in_it_by_name(tmp_path: Path) -> None:
    arrays = {"x": np.ones((2, 3), np.float32), "ids": np.ones((1, 2), np.int64)}
    np.savez(tmp_path / "all.npz", **arrays)
    feeds, notices = feed(str(tmp_path / "all.npz"), inputs=[X, IDS])
    assert feeds.keys() == arrays.keys()
    assert notices == []


def test_an_archive_with_one_array_feeds_any_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", np.ones((2, 3), np.float32))
    feeds, _ = feed(f"x={tmp_path / 'one.npz'}", inputs=[X])
    assert feeds["x"].sum() == 6


def test_inputs_with_a_default_are_fed_only_when_named() -> None:
    scale = TensorInfo(name="scale", dtype=FLOAT, shape=())
    left_out, _ = make_feeds((), [X], optional=[scale], shapes={}, seed=0)
    named, _ = make_feeds(("scale=2",), [X], optional=[scale], shapes={}, seed=0)
    assert list(left_out) == ["x"]
    assert list(named) == ["x", "scale"]


def test_strings_and_booleans_can_be_made() -> None:
    feeds, _ = feed(
        inputs=[TensorInfo(name="s", dtype=STRING, shape=(2,)), TensorInfo(name="b", dtype=BOOL, shape=(64,))]
    )
    assert feeds["s"].tolist() == ["parallax", "parallax"]
    assert feeds["b"].dtype == np.bool_


def test_types_that_numpy_lacks_are_refused_by_name() -> None:
    with pytest.raises(Exception, match="'half' is of type bfloat16"):
        feed(inputs=[TensorInfo(name="half", dtype=BFLOAT16, shape=(1,))])


def test_sequences_are_refused_by_name() -> None:
    with pytest.raises(Exception, match=r"'many' is of type sequence\(float32\)"):
        feed(inputs=[TensorInfo(name="many", kind="sequence", dtype=FLOAT)])


IMAGE = TensorInfo(name="image", dtype=FLOAT, shape=("batch", 3, "height", 8))
MASK = TensorInfo(name="mask", dtype=INT64, shape=("batch",))
TABLE = TensorInfo(name="table", dtype=FLOAT, shape=("entries", 4))


def test_a_batch_is_the_first_dimension_wherever_its_symbol_stands() -> None:
    shapes = batch_shapes([IMAGE, TABLE, MASK], 5, given={}, zoo_name=None)
    assert shapes == {"image": (5, 3, 224, 8), "mask": (5,)}


def test_a_batch_and_a_shape_may_agree_and_must_not_differ() -> None:
    assert batch_shapes([IMAGE], 2, given={"image": (2, 3, 16, 8)}, zoo_name=None) == {"image": (2, 3, 16, 8)}
    with pytest.raises(ConfigError, match="--batch 2, and input 'image' has shape"):
        batch_shapes([IMAGE], 2, given={"image": (4, 3, 16, 8)}, zoo_name=None)


def test_a_batch_that_the_model_fixes_is_refused_unless_it_is_that_one() -> None:
    fixed = TensorInfo(name="x", dtype=FLOAT, shape=(1, 4))
    with pytest.raises(ConfigError, match=r"the model fixes the size of its batch \(input 'x' is \[1, 4\]\)"):
        batch_shapes([fixed], 2, given={}, zoo_name=None)
    assert batch_shapes([fixed], 1, given={}, zoo_name=None) == {}


def test_other_open_sizes_of_a_zoo_model_are_its_usual_ones() -> None:
    (entry,) = (entry for entry in zoo.info("distilbert").inputs if entry.name == "input_ids")
    info = TensorInfo(name="input_ids", dtype=INT64, shape=entry.shape)
    shapes = batch_shapes([info], 3, given={}, zoo_name="distilbert")
    assert shapes == {"input_ids": (3, *entry.typical_shape[1:])}
