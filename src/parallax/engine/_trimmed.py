"""Runs without padding: feeds are cut to what their mask leaves, and outputs that keep the axis are filled up again.

That this changes no answer was proven on the model (`parallax.partition.padding`) for masks whose rows are ones and
then zeros. Each call's mask is looked at; with any other one the run goes on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from parallax._record import dataclass
from parallax.engine._runner import Runner, WholeRunner
from parallax.engine._split_runner import SplitRunner

if TYPE_CHECKING:
    from parallax.admission import SessionMemory
    from parallax.partition.padding import PaddedOutput, Trimming

_Array = np.ndarray[Any, Any]


class Trimmed(NamedTuple):
    """Feeds that were cut."""

    feeds: Mapping[str, Any]
    length: int
    """Of the sequence, before."""


def trim_feeds(trimming: Trimming, feeds: Any, *, multiple: int = 1) -> Trimmed | None:
    """The feeds without what the mask hides in every row; None where nothing can be cut, or is sure to be padding.

    Takes some ten microseconds. Arrays are views where they can be; nothing of ``feeds`` is changed.

    Args:
        feeds: as the caller gave them. Whatever is wrong with them is left to the run to say.
        multiple: the length that is left is rounded up to a multiple of this.
    """
    if not isinstance(feeds, Mapping):
        return None
    mask = feeds.get(trimming.mask)
    if not isinstance(mask, np.ndarray) or not mask.ndim or not mask.size:
        return None
    length = mask.shape[-1]
    if trimming.longest is not None and length > trimming.longest:
        return None
    kept = _kept(mask.reshape(-1, length))
    if kept is None:
        return None
    kept = -(-max(kept, trimming.shortest) // multiple) * multiple
    if kept >= length:
        return None
    made = dict(feeds)
    for entry in trimming.inputs:
        array = feeds.get(entry.name)
        if not isinstance(array, np.ndarray) or any(
            axis >= array.ndim or array.shape[axis] != length for axis in entry.axes
        ):
            return None
        made[entry.name] = np.ascontiguousarray(array[_places(array.ndim, entry.axes, kept)])
    return Trimmed(made, length)


def _kept(rows: _Array) -> int | None:
    """Places of the longest row; None where nothing is padded, or a row is other than ones and then zeros."""
    if rows.dtype.kind not in "biuf" or rows[:, -1].any():
        return None
    counts = np.count_nonzero(rows, axis=1)
    if not counts.all():
        return None
    is_one = np.arange(rows.shape[1]) < counts[:, None]
    return int(counts.max()) if np.array_equal(rows, is_one) else None


def _places(rank: int, axes: Sequence[int], count: int) -> tuple[slice, ...]:
    """The first so many along these axes, and all along the others."""
    return tuple(slice(count) if axis in axes else slice(None) for axis in range(rank))


def fill_outputs(trimming: Trimming, names: Sequence[str], outputs: Sequence[Any], length: int) -> list[Any]:
    """Outputs of a run on trimmed feeds as the full run gives them.

    Args:
        names: of the outputs, in their order.
        length: of the sequence in full.
    """
    padded = {entry.name: entry for entry in trimming.outputs}
    return [
        _filled(padded[name], output, length) if name in padded else output
        for name, output in zip(names, outputs, strict=True)
    ]


def _filled(entry: PaddedOutput, output: _Array, length: int) -> _Array:
    sizes = tuple(length if axis in entry.axes else size for axis, size in enumerate(output.shape))
    full = np.full(sizes, float(entry.value), output.dtype)
    full[tuple(slice(size) for size in output.shape)] = output
    return full


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimmedWholeRunner(WholeRunner):
    """Has ONNX Runtime run the whole model, on feeds without padding."""

    trimming: Trimming

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        trimmed = trim_feeds(self.trimming, input_feed)
        if trimmed is None:
            return WholeRunner.run(self, output_names, input_feed, run_options, memory)
        made = WholeRunner.run(self, output_names, trimmed.feeds, run_options, memory)
        return self._full(output_names, made, trimmed.length)

    def run_async(
        self, output_names: Any, input_feed: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any
    ) -> None:
        trimmed = trim_feeds(self.trimming, input_feed)
        if trimmed is None:
            WholeRunner.run_async(self, output_names, input_feed, callback, user_data, run_options)
            return

        def ended(results: Any, data: Any, error: str) -> None:  # it holds the feeds, which nobody else does
            callback(results if error else self._full(output_names, results, trimmed.length), data, error)

        WholeRunner.run_async(self, output_names, trimmed.feeds, ended, user_data, run_options)

    def _full(self, output_names: Any, made: Any, length: int) -> Any:
        if not self.trimming.outputs:
            return made
        return fill_outputs(self.trimming, output_names or self.output_names, made, length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimmedSplitRunner(SplitRunner):
    """Has the engine run a plan's segments, on feeds without padding."""

    trimming: Trimming

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        trimmed = trim_feeds(self.trimming, input_feed)
        if trimmed is None:
            return SplitRunner.run(self, output_names, input_feed, run_options, memory)
        made = SplitRunner.run(self, output_names, trimmed.feeds, run_options, memory)
        return fill_outputs(self.trimming, output_names or self.output_names, made, trimmed.length)


def trimmed_runner(runner: Runner, trimming: Trimming) -> Runner:
    """A runner of the same plan and the same sessions that runs without padding.

    Runs by values that are not numpy arrays, and by IO binding, are left as they are.
    """
    given = {field.name: getattr(runner, field.name) for field in fields(runner)} | {"trimming": trimming}
    return TrimmedSplitRunner(**given) if isinstance(runner, SplitRunner) else TrimmedWholeRunner(**given)
