"""What the tables of `memory.py` stand for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _figures import Figure, counted
from _fresh import DEFAULT, MAPPED, ORT_FORMAT, OURS
from _intervals import figure_of_medians, median_interval, paired

PRIVATE_TARGET = 0.3
LIMIT_MIB, LIMITED_TARGET = 150, 2.5


def private_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Ours and each of ONNX Runtime's settings against its default, and ours against what is mapped by hand."""
    samples = {(row["model"], row["variant"]): row["peak_samples"] for row in results if "failed" not in row}
    models = list(dict.fromkeys(row["model"] for row in results))

    def mean(name: str, what: str, ours: str, theirs: str, **more: Any) -> Figure | None:
        shared = [model for model in models if (model, ours) in samples and (model, theirs) in samples]
        if not shared:
            return None
        rows = [[paired(samples[model, ours], samples[model, theirs])] for model in shared]
        return figure_of_medians(name, f"{what}, geometric mean over {len(shared)} models", rows, **more)

    found = [
        mean(
            "memory.private",
            "private memory of a bundle at peak, share of ONNX Runtime's default",
            OURS,
            DEFAULT,
            bound=PRIVATE_TARGET,
        ),
        mean(
            "memory.private_of_mapped",
            "private memory of a bundle at peak, against ONNX Runtime with packed weights mapped by hand (same bits), "
            "where it runs at all",
            OURS,
            MAPPED,
            bound=1.0,
        ),
        mean(
            "memory.private_of_ort_format",
            "private memory of a bundle at peak, against ONNX Runtime with an ORT format model mapped by hand (other "
            "kernels, so other last digits and slower runs)",
            OURS,
            ORT_FORMAT,
            bound=1.0,
        ),
    ]
    found += [
        mean(
            f"memory.private.{name}",
            f"private memory at peak of {variant}, share of ONNX Runtime's default",
            variant,
            DEFAULT,
            headline=False,
        )
        for name, variant in (("mapped", MAPPED), ("ort_format", ORT_FORMAT))
    ]
    return [figure for figure in found if figure is not None]


def budget_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """How many budgets were kept, with the same bits, and how many of one caller's were refused."""
    given = [row for row in results if "budget" in row]
    alone = [row for row in given if row["callers"] == 1 and row["share"] < 1]
    good = sum(row["peak"] <= row["budget"] and row["same_bits"] for row in given)
    refused = sum(bool(row["note"]) for row in alone)
    return [
        counted(
            "memory.budgets",
            f"of {len(given)} sessions with a memory budget, those whose measured peak stays within it, with the bits "
            "of a run without one",
            good,
            bound=len(given),
            at_least=True,
        ),
        counted(
            "memory.budgets_refused",
            f"of {len(alone)} budgets of one caller below all that its run wants, those refused, and not narrowed",
            refused,
            note="the least that would do was measured in their stead",
        ),
    ]


def limited_figures(name: str, results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Ours in the limit against ours without, and against packed weights mapped by hand in the same limit."""
    samples = {(row["label"], row["limit_mib"]): row["samples_ns"] for row in results if "failed" not in row}
    ended = {(row["label"], row["limit_mib"]): row["failed"] for row in results if "failed" in row}
    ours = samples.get((f"Parallax, for {LIMIT_MIB} MiB", LIMIT_MIB))
    compared = (
        ("memory.limited", "share of its time without a limit", ("Parallax, uncut", None), LIMITED_TARGET),
        (
            "memory.limited_of_mapped",
            "share of the time of ONNX Runtime with packed weights mapped by hand in the same limit",
            (MAPPED, LIMIT_MIB),
            1.0,
        ),
    )
    figures = []
    for figure, what, key, bound in compared:
        if ours is None or key not in samples:
            continue  # there is nothing to compare; the note below says how it ended
        value, interval = quotient(ours, samples[key])
        figures.append(
            Figure(
                name=figure,
                what=f"{name} in a control group of {LIMIT_MIB} MiB: {what}",
                value=value,
                unit="ratio",
                interval=interval,
                bound=bound,
                note="; ".join(f"{label} in {limit} MiB {how}" for (label, limit), how in ended.items()),
            )
        )
    if ours is None and results:
        what = f"{name} in a control group of {LIMIT_MIB} MiB: sessions on a bundle made for it that run to the end"
        figures.append(counted("memory.limited", what, 0, bound=1, at_least=True))
    return figures


def quotient(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Of two medians of samples that do not belong together, with an interval that covers both medians' intervals."""
    mine, others = median_interval(ours), median_interval(theirs)
    value = statistics.median(ours) / statistics.median(theirs)
    return value, None if mine is None or others is None else (mine[0] / others[1], mine[1] / others[0])
