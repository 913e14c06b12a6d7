"""Runs without padding: feeds are cut to what their mask leaves, and outputs that keep the axis are filled up again.

That this changes no answer was proven on the model (`parallax.partition.padding`) for masks whose rows are ones and
then zeros. Each call's mask is looked at; with any other one the run goes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
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
    counts = _row_lengths(trimming, feeds)
    return None if counts is None else _cut(trimming, feeds, int(counts.max()), multiple=multiple)


def _row_lengths(trimming: Trimming, feeds: Any) -> _Array | None:
    """Tokens of each row; None where a row is other than ones and then zeros, or none has a zero."""
    mask = feeds.get(trimming.mask) if isinstance(feeds, Mapping) else None
    if not isinstance(mask, np.ndarray) or not mask.ndim or not mask.size or mask.dtype.kind not in "biuf":
        return None
    length = mask.shape[-1]
    rows = mask.reshape(-1, length)
    if rows[:, -1].all() or (trimming.longest is not None and length > trimming.longest):
        return None
    counts: _Array = np.count_nonzero(rows, axis=1)
    if not counts.all() or not np.array_equal(rows, np.arange(length) < counts[:, None]):
        return None
    return counts


def _cut(
    trimming: Trimming, feeds: Mapping[str, Any], kept: int, *, rows: Sequence[int] | None = None, multiple: int = 1
) -> Trimmed | None:
    """Feeds cut to so many places, and to these rows if any are named."""
    length = feeds[trimming.mask].shape[-1]
    kept = -(-max(kept, trimming.shortest) // multiple) * multiple
    if kept >= length and rows is None:
        return None
    made = dict(feeds) if rows is None else {name: array[rows] for name, array in feeds.items()}
    for entry in trimming.inputs:
        array = made.get(entry.name)
        if not isinstance(array, np.ndarray) or any(
            axis >= array.ndim or array.shape[axis] != length for axis in entry.axes
        ):
            return None
        made[entry.name] = np.ascontiguousarray(array[_places(array.ndim, entry.axes, kept)])
    return Trimmed(made, length)


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


# -- rows of unlike lengths in groups ---------------------------------------------------------------------------------


def _group_rows(trimming: Trimming, names: Sequence[str], feeds: Mapping[str, Any], counts: _Array) -> list[list[int]]:
    """The rows of feeds in groups that had better be run apart; [] where all had better be run together.

    Args:
        names: of all the model's inputs.
        counts: the tokens of each row.
    """
    if trimming.rows is None or feeds.keys() != set(names):
        return []
    if any(not isinstance(array, np.ndarray) or array.shape[:1] != counts.shape for array in feeds.values()):
        return []
    from parallax.partition.padding import divide_rows

    groups = divide_rows(counts.tolist())
    return groups if len(groups) > 1 else []


def _joined(groups: Sequence[Sequence[int]], outputs: Sequence[_Array], axis: int) -> _Array:
    """One output of all rows, in their order, of that of each group."""
    if axis < 0:
        return outputs[0]
    order = np.argsort(np.concatenate([np.asarray(group) for group in groups]))
    return np.take(np.concatenate(outputs, axis), order, axis)


# -- runners ----------------------------------------------------------------------------------------------------------


def _run(
    runner: Runner, trimming: Trimming, call: Callable[..., Any], output_names: Any, feeds: Any, *rest: Any
) -> Any:
    """What ``call``, which is how the runner runs feeds as they are, gives on all of these feeds.

    Args:
        rest: what else it is called with.
    """
    counts = _row_lengths(trimming, feeds)
    if counts is None:
        return call(output_names, feeds, *rest)
    names = output_names or runner.output_names

    def run_cut(trimmed: Trimmed | None) -> Any:
        if trimmed is None:
            return call(output_names, feeds, *rest)
        made = call(output_names, trimmed.feeds, *rest)
        return fill_outputs(trimming, names, made, trimmed.length) if trimming.outputs else made

    groups = _group_rows(trimming, runner.input_names, feeds, counts)
    if groups:
        parts = [_cut(trimming, feeds, int(counts[group].max()), rows=group) for group in groups]
        if None not in parts:
            made = [run_cut(part) for part in parts]
            axes = dict(zip(runner.output_names, trimming.rows or (), strict=True))
            return [
                _joined(groups, outputs, axes[name])
                for name, outputs in zip(names, zip(*made, strict=True), strict=True)
            ]
    return run_cut(_cut(trimming, feeds, int(counts.max())))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimmedWholeRunner(WholeRunner):
    """Has ONNX Runtime run the whole model, on feeds without padding."""

    trimming: Trimming

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        call = partial(WholeRunner.run, self)
        return _run(self, self.trimming, call, output_names, input_feed, run_options, memory)

    def run_async(
        self, output_names: Any, input_feed: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any
    ) -> None:
        trimming = self.trimming
        trimmed = trim_feeds(trimming, input_feed)
        if trimmed is None:
            WholeRunner.run_async(self, output_names, input_feed, callback, user_data, run_options)
            return
        names = output_names or self.output_names

        def ended(results: Any, data: Any, error: str) -> None:  # it holds the feeds, which nobody else does
            if not error:
                results = fill_outputs(trimming, names, results, trimmed.length)
            callback(results, data, error)

        WholeRunner.run_async(self, output_names, trimmed.feeds, ended, user_data, run_options)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimmedSplitRunner(SplitRunner):
    """Has the engine run a plan's segments, on feeds without padding."""

    trimming: Trimming

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        call = partial(SplitRunner.run, self)
        return _run(self, self.trimming, call, output_names, input_feed, run_options, memory)


def trimmed_runner(runner: Runner, trimming: Trimming) -> Runner:
    """A runner of the same plan and the same sessions that runs without padding.

    Runs by values that are not numpy arrays, and by IO binding, are left as they are.
    """
    given = {field.name: getattr(runner, field.name) for field in fields(runner)} | {"trimming": trimming}
    return TrimmedSplitRunner(**given) if isinstance(runner, SplitRunner) else TrimmedWholeRunner(**given)
