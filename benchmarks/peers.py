"""Several callers of one untuned session: throughput, tail and memory against the peers, each in a process of its own.

The callers are threads, each of which begins its next run when the last one has ended. ONNX Runtime has one session for
all of them, with one thread or with all; OpenVINO one compiled model, with its throughput or its latency hint, and a
request for each caller; ours is a session that follows its callers, on the model (``objective="throughput"``) and on a
bundle of it (``objective="auto"``). The processes take turns; those that have no turn wait. Then the load on ours goes
from one caller to eight and back.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import Report, describe_machine, make_parser, pick_models, publish, say
from _figures import Figure, counted
from _intervals import figure_of_medians, paired, rows_that_keep
from _orders import OrderedProcess
from _peer import OURS, OURS_BUNDLE, PEERS, RUNTIME_NARROW, RUNTIME_WIDE, VARIANTS

import parallax
from parallax import zoo
from parallax.cli import compare_outputs
from parallax.machine import available_cores

CALLERS = (1, 2, 4, 8)
LEAST_THROUGHPUT, MEAN_THROUGHPUT = 0.97, 1.05
MOST_TAIL, MOST_MEMORY = 1.1, 1.15
FOLLOW_S = 2.0
"""Within so many seconds throughput follows the load."""
BEFORE_S, CROWD_S, AFTER_S = 4.0, 8.0, 6.0
"""Of the load that goes from one caller to eight and back."""
IDLE_S = 33.0
"""After which a replica is gone."""
LEAST_FOLLOWED, MOST_LATER = 0.9, 1.1
"""A load is followed where throughput is at least this share of what it is when the load stays, and the latency of one
caller at most this factor of what it was before."""
TOLERANCE = 1e-3


class Peer:
    """A process with one variant.

    Raises: RuntimeError if it ends without being ready.
    """

    def __init__(self, variant: str, path: Path, feeds: Path, outputs: Path, *, threads: int) -> None:
        self.variant, self.outputs = variant, outputs
        self._process = OrderedProcess(variant, "_peer.py", variant, str(path), str(feeds), str(outputs), str(threads))
        self._process.read()  # that it is ready

    def load(self, phases: Sequence[tuple[int, float]]) -> dict[str, Any]:
        """See `_peer.run_load`."""
        return dict(self._process.ask(list(phases)))

    def close(self) -> None:
        """Have it end."""
        self._process.close()


def turn(peer: Peer, callers: int, *, lead_s: float, seconds: float) -> dict[str, float]:
    """One turn: runs a second, the 99th percentile of a run in ms, and private memory, after a lead without figures."""
    made = peer.load([(callers, lead_s + seconds)])
    inside = [
        took for end, took in zip(made["ends_s"], made["taken_s"], strict=True) if lead_s <= end < lead_s + seconds
    ]
    if made["failed"]:
        raise RuntimeError(f"{peer.variant}: {made['failed'][0]}")
    ordered = sorted(inside)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else math.nan
    return {"rate": len(inside) / seconds, "p99_ms": 1e3 * p99, "private_bytes": made["private_bytes"] or 0}


def furthest(outputs: Path, wanted: Path) -> float:
    """The largest difference, as a share of the largest magnitude; infinite where only one of them has a NaN."""
    with np.load(outputs) as mine, np.load(wanted) as theirs:
        return compare_outputs(mine, theirs).relative


def measure(name: str, *, rounds: int, lead_s: float, seconds: float, threads: int) -> dict[str, Any]:
    """All variants on one model."""
    row: dict[str, Any] = {"model": name, "turns": {}, "left_out": {}, "differences": {}}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        feeds, model = home / "feeds.npz", Path(zoo.load(name))
        np.savez(feeds, **zoo.example_inputs(name))  # type: ignore[arg-type]  # no array is called "allow_pickle"
        bundle = parallax.compile(model, home / "model.plx", threads=threads, split="never")
        peers: list[Peer] = []
        try:
            for variant in VARIANTS:
                path = bundle if variant == OURS_BUNDLE else model
                try:
                    peers.append(Peer(variant, path, feeds, home / f"{len(peers)}.npz", threads=threads))
                except RuntimeError as error:
                    row["left_out"][variant] = str(error)
                    say(f"  {error}")
            for peer in peers:
                row["differences"][peer.variant] = furthest(peer.outputs, peers[0].outputs)
                peer.load([(max(CALLERS), 4.0)])  # ours finds out what suits the model; the others are warm
            row["turns"] = {peer.variant: {count: [] for count in CALLERS} for peer in peers}
            for number in range(rounds):
                for count in CALLERS:
                    for shift in range(len(peers)):
                        peer = peers[(number + shift) % len(peers)]
                        row["turns"][peer.variant][count].append(turn(peer, count, lead_s=lead_s, seconds=seconds))
            row["loads"] = {peer.variant: changing_load(peer) for peer in peers if peer.variant not in PEERS}
        finally:
            for peer in peers:
                peer.close()
    for variant, by_count in row["turns"].items():
        rates = ", ".join(f"{statistics.median(each['rate'] for each in by_count[count]):.1f}" for count in CALLERS)
        say(f"  {name}: {variant}: {rates} runs a second with {CALLERS} callers")
    return row


def changing_load(peer: Peer) -> dict[str, Any]:
    """One caller, eight, and one again; then nothing, until what was made for callers has gone."""
    most = max(CALLERS)
    time.sleep(IDLE_S)
    before = peer.load([(1, 1.0)])
    time.sleep(1.0)
    made = peer.load([(1, BEFORE_S), (most, CROWD_S), (1, AFTER_S)])
    time.sleep(IDLE_S)
    after = peer.load([(1, 1.0)])
    ends, taken = np.array(made["ends_s"]), np.array(made["taken_s"])

    def latency_ms(begin: float, end: float) -> float:
        inside = taken[(ends >= begin) & (ends < end)]
        return 1e3 * float(np.median(inside)) if len(inside) else math.nan

    crowd = BEFORE_S + FOLLOW_S, BEFORE_S + CROWD_S
    return {
        "rate": float(((ends >= crowd[0]) & (ends < crowd[1])).sum() / (crowd[1] - crowd[0])),
        "before_ms": latency_ms(1.0, BEFORE_S),
        "after_ms": latency_ms(BEFORE_S + CROWD_S + FOLLOW_S, BEFORE_S + CROWD_S + AFTER_S),
        "failed": len(made["failed"]),
        "runs": len(ends),
        "private_before": before["private_bytes"] or 0,
        "private_after": after["private_bytes"] or 0,
        "threads_before": before["threads"],
        "threads_after": after["threads"],
        "plan": made["plan"],
    }


# -- figures ------------------------------------------------------------------------------------------------------


def samples(row: Mapping[str, Any], variant: str, count: int, key: str) -> list[float]:
    """Of all rounds."""
    return [each[key] for each in row["turns"][variant][count]]


def best_of(row: Mapping[str, Any], count: int, key: str, peers: Sequence[str] = PEERS) -> list[float]:
    """Of the peer that is best at this number of callers."""
    candidates = [samples(row, peer, count, key) for peer in peers if peer in row["turns"]]
    return max(candidates, key=statistics.median) if key == "rate" else min(candidates, key=statistics.median)


def figures_of(results: Sequence[Mapping[str, Any]], ours: str, prefix: str, label: str) -> list[Figure]:
    """Of one of our variants."""
    rows = [row for row in results if ours in row["turns"]]
    throughput: dict[str, Figure] = {}
    tails: dict[str, Figure] = {}
    memory: dict[str, Figure] = {}
    ratios = []
    for row in rows:
        for count in CALLERS:
            place = f"{row['model']} with {count}"
            mine = paired(samples(row, ours, count, "rate"), best_of(row, count, "rate"))
            ratios.append([mine])
            throughput[place] = figure_of_medians(
                f"{prefix}.throughput.{row['model']}.{count}",
                f"{row['model']}, {count} callers of {label}: runs a second, relative to the best peer's",
                [[mine]],
                bound=LEAST_THROUGHPUT,
                at_least=True,
                headline=False,
            )
            tails[place] = figure_of_medians(
                f"{prefix}.p99.{row['model']}.{count}",
                f"{row['model']}, {count} callers of {label}: 99th percentile of a run, relative to the best peer's",
                [[paired(samples(row, ours, count, "p99_ms"), best_of(row, count, "p99_ms"))]],
                bound=MOST_TAIL,
                headline=False,
            )
        most = max(CALLERS)
        memory[row["model"]] = figure_of_medians(
            f"{prefix}.memory.{row['model']}",
            f"{row['model']}, {most} callers of {label}: private memory of the process, relative to that of ONNX "
            "Runtime with one session on one thread",
            [[paired(samples(row, ours, most, "private_bytes"), samples(row, RUNTIME_NARROW, most, "private_bytes"))]],
            bound=MOST_MEMORY,
            headline=False,
        )
    if not rows:
        return []
    figures = [*throughput.values(), *tails.values(), *memory.values()]
    figures += [
        figure_of_medians(
            f"{prefix}.runtime.{name}",
            f"{label}: {what} with 1, 2, 4 and 8 callers, relative to the better of ONNX Runtime with one thread and "
            "with all, whose kernels both use, geometric mean",
            [
                [paired(samples(row, ours, count, key), best_of(row, count, key, (RUNTIME_NARROW, RUNTIME_WIDE)))]
                for row in rows
                for count in CALLERS
            ],
        )
        for name, key, what in (("rate", "rate", "runs a second"), ("p99", "p99_ms", "99th percentile of a run"))
    ]
    figures += [
        rows_that_keep(
            f"{prefix}.throughput",
            f"{label}: of {len(throughput)} models and numbers of callers (1, 2, 4, 8), those with at least "
            f"{LEAST_THROUGHPUT} of the best peer's runs a second",
            throughput,
        ),
        figure_of_medians(
            f"{prefix}.throughput.mean",
            f"{label}: runs a second with 1, 2, 4 and 8 callers, relative to the best peer's, geometric mean",
            ratios,
            bound=MEAN_THROUGHPUT,
            at_least=True,
        ),
        rows_that_keep(
            f"{prefix}.p99",
            f"{label}: of these, those whose 99th percentile is at most {MOST_TAIL} of the best peer's",
            tails,
        ),
        rows_that_keep(
            f"{prefix}.memory",
            f"{label}: of {len(memory)} models, those whose process holds at most {MOST_MEMORY} of ONNX Runtime's",
            memory,
        ),
    ]
    return figures + load_figures(rows, ours, prefix, label)


def load_figures(rows: Sequence[Mapping[str, Any]], ours: str, prefix: str, label: str) -> list[Figure]:
    """Of the load that changes."""
    loads = {row["model"]: row["loads"][ours] for row in rows}
    steady = {row["model"]: statistics.median(samples(row, ours, max(CALLERS), "rate")) for row in rows}
    late = [
        model
        for model, load in loads.items()
        if load["rate"] < LEAST_FOLLOWED * steady[model] or load["after_ms"] > MOST_LATER * load["before_ms"]
    ]
    left = [
        model
        for model, load in loads.items()
        if load["private_after"] > 1.05 * load["private_before"] or load["threads_after"] > load["threads_before"] + 1
    ]
    return [
        counted(
            f"{prefix}.load.followed",
            f"{label}: of {len(loads)} models, those that do not follow 1, 8 and 1 callers within {FOLLOW_S:g} s",
            len(late),
            bound=0,
            note=", ".join(late),
        ),
        counted(
            f"{prefix}.load.failed",
            f"{label}: runs that fail while the load changes, of {sum(load['runs'] for load in loads.values())}",
            sum(load["failed"] for load in loads.values()),
            bound=0,
            headline=False,
        ),
        counted(
            f"{prefix}.load.left",
            f"{label}: of {len(loads)} models, those with memory or threads left from callers {IDLE_S:g} s later",
            len(left),
            bound=0,
            note=", ".join(left),
            headline=False,
        ),
    ]


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each model and variant."""
    table = []
    for row in results:
        for variant in row["turns"]:
            rates = [statistics.median(samples(row, variant, count, "rate")) for count in CALLERS]
            tails = [statistics.median(samples(row, variant, count, "p99_ms")) for count in CALLERS]
            private = statistics.median(samples(row, variant, max(CALLERS), "private_bytes")) / 2**20
            table.append(
                [
                    row["model"],
                    variant,
                    *(f"{rate:.1f}" for rate in rates),
                    *(f"{tail:.1f}" for tail in tails),
                    f"{private:.0f}",
                    row["loads"][variant]["plan"] if variant in row["loads"] else "",
                ]
            )
    return table


def main() -> None:
    parser = make_parser(__doc__, "peers")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME", help="zoo models; paper, all")
    parser.add_argument("--rounds", type=int, default=6, help="in which the variants take turns")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn")
    parser.add_argument("--lead", type=float, default=1.0, help="seconds of a turn before figures are taken")
    parser.add_argument("--threads", type=int, default=available_cores())
    arguments = parser.parse_args()
    machine = describe_machine()
    results = []
    for name in pick_models(arguments.models):
        say(f"{name}:")
        results.append(
            measure(
                name,
                rounds=arguments.rounds,
                lead_s=arguments.lead,
                seconds=arguments.seconds,
                threads=arguments.threads,
            )
        )
    figures = figures_of(results, OURS, "peers", 'a session with objective="throughput"')
    figures += figures_of(results, OURS_BUNDLE, "peers.bundle", 'a bundle with objective="auto"')
    wrong = [
        f"{row['model']}: {variant}"
        for row in results
        for variant, difference in row["differences"].items()
        if not difference <= TOLERANCE
    ]
    figures.append(
        counted(
            "peers.wrong",
            f"outputs of the runtimes that differ from each other by more than {TOLERANCE:g} of their magnitude",
            len(wrong),
            bound=0,
            note=", ".join(wrong),
            headline=False,
        )
    )
    publish(
        Report(
            title="Several callers of one session",
            method=(
                f"Threads that call without a pause, on {arguments.threads} cores; medians over {arguments.rounds} "
                f"turns of {arguments.seconds:g} s, in which the processes take turns. The best peer is the one that "
                "is best for that model and number of callers. Memory is private memory after a turn with eight."
            ),
            columns=[
                "model",
                "runtime",
                *(f"runs/s, {count} callers" for count in CALLERS),
                *(f"p99 ms, {count}" for count in CALLERS),
                "private MiB",
                "plan",
            ],
            rows=rows_of(results),
            data={"results": results},
            figures=figures,
            remarks=[
                f"{row['model']}: {variant} is left out: {why}"
                for row in results
                for variant, why in row["left_out"].items()
            ],
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
