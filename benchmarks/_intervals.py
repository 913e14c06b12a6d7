"""Intervals of what is measured in rounds: of one median, and of means over several rows of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from _figures import Figure, Verdict

from parallax.cli import LEAST_SAMPLES, LEVEL
from parallax.cli import median_interval as median_interval

DRAWS = 2000
LEAST_PER_ROW = 3
"""For statistics over several rows, which average what is uncertain in each."""

Statistic = Callable[[np.ndarray], np.ndarray]

Runs = Sequence[Sequence[float]]
"""Samples of each run: rounds within a run share a process and a tuning."""


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios, round by round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def geometric_mean(medians: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.asarray(np.exp(np.log(medians).mean(axis=-1)))


def mean_reduction(medians: np.ndarray) -> np.ndarray:
    """1 - the mean ratio, over the last axis."""
    return np.asarray(1 - medians.mean(axis=-1))


def figure_of_medians(
    name: str,
    what: str,
    rows: Sequence[Runs],
    statistic: Statistic = geometric_mean,
    *,
    unit: str = "ratio",
    **more: Any,
) -> Figure:
    """A figure: the statistic of the rows' medians, with its interval; see `interval_of`."""
    medians = np.array([[median_of(runs) for runs in rows]])
    value = float(statistic(medians)[0])
    return Figure(name=name, what=what, value=value, unit=unit, interval=interval_of(rows, statistic), **more)


def rows_that_keep(name: str, what: str, rows: Mapping[str, Figure], *, note: str = "", **more: Any) -> Figure:
    """How many rows of a table keep their bound, out of all of them, which is the bound.

    The interval runs from those that are shown to keep it to those that are not shown to miss it.
    """
    by_verdict = {verdict: [row for row, figure in rows.items() if figure.verdict is verdict] for verdict in Verdict}
    met, unknown = len(by_verdict[Verdict.MET]), len(by_verdict[Verdict.NOT_SHOWN])
    parts = [note] if note else []
    parts += [
        f"{verdict}: {', '.join(by_verdict[verdict])}"
        for verdict in (Verdict.MISSED, Verdict.NOT_SHOWN)
        if by_verdict[verdict]
    ]
    return Figure(
        name=name,
        what=what,
        value=met,
        unit="count",
        interval=(met, met + unknown),
        bound=len(rows),
        at_least=True,
        note="; ".join(parts),
        **more,
    )


def median_of(runs: Runs) -> float:
    """Of the samples of all runs."""
    return statistics.median(sample for run in runs for sample in run)


def interval_of(rows: Sequence[Runs], statistic: Statistic, *, seed: int = 0) -> tuple[float, float] | None:
    """The 95% interval of a statistic of the rows' medians, by a bootstrap in two steps; None with too few samples.

    Within each row runs are drawn anew, and of each drawn run its samples: what differs from tuning to tuning counts.
    The rows are what they are, and not drawn.

    Args:
        statistic: from medians of shape (draws, rows) to one value per draw.
    """
    least = LEAST_SAMPLES if len(rows) == 1 else LEAST_PER_ROW
    if not rows or any(sum(map(len, runs)) < least for runs in rows):
        return None
    generator = np.random.default_rng(seed)
    medians = np.stack([_drawn_medians(runs, generator) for runs in rows], axis=1)
    low, high = np.quantile(statistic(medians), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_over_rows(
    values: Sequence[float], families: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean of one value per row, and its 95% interval by a bootstrap that draws the rows anew.

    Rows of one family (the states of one model on one device, say) are alike, and drawn together. The interval is None
    with fewer than `LEAST_SAMPLES` families.

    Args:
        values: above 0.
        families: of each row, what it belongs to.
    """
    logs = np.log(np.array(values))
    number = {family: index for index, family in enumerate(dict.fromkeys(families))}
    members = np.array([number[family] for family in families])
    value = float(np.exp(logs.mean()))
    if len(number) < LEAST_SAMPLES:
        return value, None
    sums, sizes = np.bincount(members, weights=logs), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(number), size=(DRAWS, len(number)))
    means = np.exp(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, (float(low), float(high))


def _drawn_medians(runs: Runs, generator: np.random.Generator) -> np.ndarray:
    """Of shape (DRAWS,)."""
    length = max(map(len, runs))
    chosen = generator.integers(len(runs), size=(DRAWS, len(runs)))
    lengths = np.array([len(run) for run in runs])
    padded = np.array([[*run, *[math.nan] * (length - len(run))] for run in runs])
    places = np.floor(generator.random((DRAWS, len(runs), length)) * lengths[chosen][:, :, None]).astype(int)
    drawn = padded[chosen[:, :, None], places]
    return np.asarray(np.median(drawn.reshape(DRAWS, -1), axis=1))
