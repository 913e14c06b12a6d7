"""A model in a memory control group that is too small for its weights."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import ms, say
from _fresh import DEFAULT, MAPPED, OURS, Child, ChildError, Order, prepare, save_feeds
from _memory_figures import LIMIT_MIB, limited_figures
from _sections import Section

import parallax
from parallax import zoo

MIB = 2**20
RUNTIME_LIMIT_MIB, LIMITED_RUNS = 300, 50
CGROUPS = Path("/sys/fs/cgroup/memory")


def limited(name: str) -> Section:
    obstacle = why_no_limits()
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    remarks = []
    if obstacle is not None:
        remarks.append(f"Skipped: {obstacle}.")
        say(f"limited: skipped, {obstacle}")
    else:
        say(f"limited: {name}")
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            path = Path(zoo.load(name))
            bundle = parallax.compile(path, folder / "limited.plx", memory_limit=f"{LIMIT_MIB}MiB")
            whole = parallax.compile(path, folder / "uncut.plx")
            feeds = save_feeds(zoo.example_inputs(name), folder)

            def order(variant: str, opened: Path, number: int) -> Order:
                return Order(
                    variant=variant,
                    path=str(opened),
                    feeds=feeds,
                    least_runs=LIMITED_RUNS,
                    outputs=str(folder / f"{number}.npz"),
                )

            mapped = Path(prepare(path, folder)[MAPPED])
            attempts: list[tuple[str, str, Path, int | None]] = [
                ("ONNX Runtime", DEFAULT, path, None),
                ("ONNX Runtime", DEFAULT, path, RUNTIME_LIMIT_MIB),
                (MAPPED, MAPPED, mapped, None),
                (MAPPED, MAPPED, mapped, LIMIT_MIB),
                ("Parallax, uncut", OURS, whole, None),
                (f"Parallax, for {LIMIT_MIB} MiB", OURS, bundle, LIMIT_MIB),
            ]
            for number, (label, variant, opened, limit) in enumerate(attempts):
                try:
                    with memory_group(limit) as prefix:
                        child = Child(order(variant, opened, number), prefix=prefix)
                        child.start()
                        outcome = child.outcome()
                        child.end()
                except ChildError as error:
                    rows.append([label, str(limit or "none"), "", str(error)])
                    results.append({"label": label, "limit_mib": limit, "failed": str(error)})
                    continue
                with np.load(folder / "0.npz") as expected, np.load(folder / f"{number}.npz") as actual:
                    worst = max(float(np.max(np.abs(actual[key] - expected[key]))) for key in expected.files)
                rows.append([label, str(limit or "none"), ms(outcome.steady_ns), f"outputs within {worst:.1e}"])
                results.append(
                    {
                        "label": label,
                        "limit_mib": limit,
                        "steady_ns": outcome.steady_ns,
                        "samples_ns": outcome.steady_samples_ns,
                        "error": worst,
                    }
                )
    return Section(
        title=f"{name} in {LIMIT_MIB} MiB",
        method=(
            f"{LIMITED_RUNS} runs in a memory control group, which counts the pages of mapped files as well; "
            "ms of the median run; outputs against ONNX Runtime's without a limit."
        ),
        columns=["", "limit (MiB)", "run", ""],
        rows=rows,
        data={"model": name, "results": results, "skipped": obstacle},
        figures=limited_figures(name, results),
        remarks=remarks,
    )


def why_no_limits() -> str | None:
    """Why no memory control group can be made here, or None."""
    if not CGROUPS.is_dir():
        return f"there is no {CGROUPS} (version 1 control groups)"
    if not os.access(CGROUPS, os.W_OK):
        return f"{CGROUPS} cannot be written"
    return None


@contextlib.contextmanager
def memory_group(limit_mib: int | None) -> Iterator[Sequence[str]]:
    """A command that runs the rest of its arguments in a memory control group with that limit; () for none."""
    if limit_mib is None:
        yield ()
        return
    group = CGROUPS / f"parallax-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_mib * MIB))
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        # What is left of its page cache goes with it; its process has ended.
        group.rmdir()
