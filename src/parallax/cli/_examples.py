"""Examples to look at a model with: those of a file, or random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallax.cli._feeds import check_array, load_npz, make_feeds
from parallax.errors import InputError
from parallax.model import Model
from parallax.options import check_calibration_names

Example = dict[str, Any]
"""Feeds of one run: input name -> array."""


def read_examples(path: Path, model: Model, *, most: int | None = None) -> list[Example]:
    """The examples of an archive: arrays by the names of the inputs, as ``calibration=`` takes them.

    Arrays of one dimension more than their inputs hold several examples, which the first dimension counts.

    Args:
        most: of so many the first ones are taken; None takes all.

    Raises:
        ConfigError: an array is for no input, or an input has none.
        InputError: the file cannot be read, an array does not fit its input, or the numbers of examples differ.
    """
    arrays = load_npz(path)
    check_calibration_names(arrays, model)
    known = {info.name: info for info in (*model.graph.inputs, *model.graph.overridable)}
    counts = {name: _count(value, known[name].shape) for name, value in arrays.items()}
    numbers = set(counts.values())
    if len(numbers) > 1:
        told = ", ".join(f"{name!r}: {'one' if count is None else count}" for name, count in counts.items())
        raise InputError(
            f"the arrays hold different numbers of examples ({told})",
            where=str(path),
            fix="give all inputs one array each, or all of them arrays whose first dimension counts the same examples",
        )
    number = next(iter(numbers), None)
    if number == 0:
        raise InputError("the arrays hold no example", where=str(path), fix="write one at least")
    examples = [arrays]
    if number is not None:
        examples = [{name: array[place, ...] for name, array in arrays.items()} for place in range(number)]
    for name, value in examples[0].items():
        check_array(known[name], value)
    return examples if most is None else examples[:most]


def _count(value: Any, declared: Sequence[object] | None) -> int | None:
    """How many examples an array holds; None for one that is an example itself."""
    return len(value) if declared is not None and value.ndim == len(declared) + 1 else None


def random_examples(
    model: Model, number: int, *, shapes: Mapping[str, tuple[int, ...]], zoo_name: str | None
) -> tuple[list[Example], list[str]]:
    """So many examples, as `parallax tune` makes up inputs, each with a seed of its own; and notices on what was made
    up, those of the first."""
    examples: list[Example] = []
    told: list[str] = []
    for seed in range(number):
        feeds, notices = make_feeds(
            (), model.graph.inputs, optional=model.graph.overridable, shapes=shapes, seed=seed, zoo_name=zoo_name
        )
        examples.append(feeds)
        told = told or notices
    return examples, told
