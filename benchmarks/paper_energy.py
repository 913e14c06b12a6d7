"""Energy of the Parallax paper's models (arXiv 2512.11532) on its phones, **modelled**: no joule here was measured.

For each of five models and three phones: the CPU alone; greedy delegation; the paper's policy (``parallax-paper``) on
the CPU alone and with the accelerator; and ours. Runs are simulated as `paper_parallax_simulated.py` does it, and what
was busy for how long is turned into joules by the power block of the phone's profile, whose figures are bands. Shares
are computed with the same constants on both sides, at every corner of these bands. Any machine gives the same figures.

The paper reports energy for the CPU of a Pixel 6 alone, by Android Studio's profiler, which is an estimate itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import describe_machine, make_parser, say
from _figures import Figure
from _joules import Busy, share_of
from _paper import GREEDY_NOTE, MODELS, PHONES, load_converted
from _paper_simulated import CORES, PHONE, phone_costs
from _phones import Study, best_split
from _sections import Section, publish_sections

from parallax.backends.emulated import DeviceProfile, load_profile
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.cli._energy import power_of, touched_bytes
from parallax.energy import Band, PowerModel
from parallax.graph import CostModel
from parallax.model import Model, RowSplit
from parallax.partition.regions import RegionPlacer, RegionPlan, RegionRule
from parallax.schedule.placement import PaperPolicy, PlacementProblem, run_by_layers

FREE_BYTES = 2 << 30
"""Of a phone's memory that is taken to be free, for the paper's policy; its margin of 40% stays free of that."""

CPU, GREEDY, PAPER_CPU, PAPER, OURS = "CPU alone", "greedy", "paper's policy, CPU", "paper's policy", "ours"
POLICIES = (CPU, GREEDY, PAPER_CPU, PAPER, OURS)

REPORTED: Mapping[tuple[str, str], str] = {
    ("whisper-tiny-encoder", "pixel-6-gpu"): "-10.0% against ONNX Runtime, -10.7% against ExecuTorch",
    ("clip-text", "pixel-6-gpu"): "-18.3% against ONNX Runtime, -30.0% against ExecuTorch",
    ("swinv2-t", "pixel-6-gpu"): "+13.3% against ONNX Runtime, -14.1% against TFLite",
    ("yolov8n", "pixel-6-gpu"): "up to +47.0% against ExecuTorch",
    ("distilbert", "pixel-6-gpu"): "up to +92.2% against ExecuTorch",
}
"""The paper's energy of Parallax on the CPU of a Pixel 6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model on one phone."""

    model: str
    phone: str
    power: PowerModel
    runs: Mapping[str, Busy]
    """By policy."""

    def joules(self, policy: str) -> Band:
        return self.runs[policy].energy(self.power).total

    def share(self, policy: str, other: str) -> Band:
        """Of another policy's joules."""
        return share_of(self.runs[policy], self.runs[other], self.power)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "phone": self.phone,
            "reported_by_the_paper": REPORTED.get((self.model, self.phone)),
            "modelled": {
                policy: {
                    "milliseconds": run.makespan_ns / 1e6,
                    "core_milliseconds": run.core_ns / 1e6,
                    "device_milliseconds": run.device_ns / 1e6,
                    "touched_bytes": run.touched_bytes,
                    "joules": asdict(self.joules(policy)),
                    "share_of_cpu_alone": asdict(self.share(policy, CPU)),
                }
                for policy, run in self.runs.items()
            },
        }


def model_row(name: str, phone: str, model: Model) -> Row:
    """Every policy's run, simulated. Deterministic."""
    profile = load_profile(phone)
    study = Study.of(model, phone_costs(model.inferred(), profile), EmulatedBackend(profile, speed=1.0), PHONE)
    touched = touched_bytes(study.graph)
    cpu_only = study.regions(RegionRule.GREEDY).cpu_only_ns
    runs = {
        # ONNX Runtime and TFLite keep their threads busy from the beginning of a run to its end.
        CPU: Busy(makespan_ns=cpu_only, core_ns=CORES * cpu_only, touched_bytes=touched),
        GREEDY: greedy_run(study, touched),
        PAPER_CPU: paper_run(study, touched, with_device=False),
        PAPER: paper_run(study, touched, with_device=True),
    }
    runs[OURS] = ours_run(study, profile, runs[CPU])
    return Row(model=name, phone=phone, power=power_of(profile, cores=CORES), runs=runs)


def greedy_run(study: Study, touched: int) -> Busy:
    """One thing after the other, every tensor of a fragment through the host's memory, where a core copies it."""
    plan = study.regions(RegionRule.GREEDY)
    makespan_ns = study.hosted_ns(plan)
    device_ns = sum(region.compute_ns + region.launch_ns for region in plan.regions)
    kept_ns = sum(region.transfer_ns for region in plan.regions)
    moved_ns = makespan_ns - (plan.chosen_ns - kept_ns)
    on_cpu_ns = max(0, makespan_ns - device_ns - moved_ns)
    return Busy(
        makespan_ns=makespan_ns, core_ns=CORES * on_cpu_ns + moved_ns, device_ns=device_ns, touched_bytes=touched
    )


def paper_run(study: Study, touched: int, *, with_device: bool) -> Busy:
    """As ``policy="parallax-paper"`` would run it."""
    policy = PaperPolicy(free_bytes=FREE_BYTES)
    problem = PlacementProblem(
        graph=study.graph, groups=study.units, devices=(study.offer,), costs=study.costs, machine=study.machine
    )
    regions = policy.regions(problem) if with_device else nothing(study)
    made = run_by_layers(problem, regions, policy, budget_bytes=int(FREE_BYTES * (1 - policy.margin)))
    return Busy.of_run(made.run, transfer_ns=transfers(regions), touched_bytes=touched)


def nothing(study: Study) -> RegionPlan:
    """Everything on the CPU."""
    return RegionPlacer(study.graph, study.units, study.offer).place(regions=[])


def ours_run(study: Study, profile: DeviceProfile, cpu: Busy) -> Busy:
    """Regions beside the CPU, on a model whose rows are shared where that is predicted to be quicker."""

    def split_costs(made: RowSplit) -> CostModel:
        return phone_costs(made.model.inferred(), profile)

    alone = study.coexecution(flips=0)
    found = [(study, alone.best)]
    split = best_split(study, split_costs, alone)
    if split is not None:
        found.append((split.study, split.found.best))
    of, best = min(found, key=lambda entry: entry[1].makespan_ns)
    if best.makespan_ns >= cpu.makespan_ns:
        return cpu
    return Busy.of_run(best.run, transfer_ns=transfers(best.plan), touched_bytes=touched_bytes(of.graph))


def transfers(plan: RegionPlan) -> int:
    """Of a placement, in ns."""
    return sum(region.transfer_ns for region in plan.regions)


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Energy of each policy as a share of the CPU's, geometric means; the interval is that of the constants."""
    made = []
    for policy, other in ((OURS, CPU), (OURS, GREEDY), (OURS, PAPER), (PAPER_CPU, CPU), (PAPER, CPU), (GREEDY, CPU)):
        shares = [row.share(policy, other) for row in rows]
        low, typical, high = (
            math.exp(sum(math.log(getattr(share, end)) for share in shares) / len(shares))
            for end in ("low", "typical", "high")
        )
        key = f"{key_of(policy)}_of_{key_of(other)}"
        made.append(
            Figure(
                name=f"paper_energy.{key}",
                what=f"modelled, energy of {policy}, share of that of {other}, geometric mean of {len(rows)} rows; the "
                "interval is that of the constants",
                value=typical,
                unit="ratio",
                interval=(low, high),
                headline=False,
            )
        )
    return made


def key_of(policy: str) -> str:
    return policy.replace("'s policy", "").replace(", ", "_").replace(" ", "_").lower()


def section(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        shares = [row.share(policy, CPU) for policy in POLICIES[1:]]
        cells.append(
            [
                row.model,
                row.phone,
                *(shown_joules(row.joules(policy)) for policy in POLICIES),
                *(shown_change(share) for share in shares),
                f"{row.runs[OURS].makespan_ns / row.runs[CPU].makespan_ns - 1:+.0%}",
                REPORTED.get((row.model, row.phone), ""),
            ]
        )
    return Section(
        title="Modelled: joules of a run",
        method=(
            "Millijoules of a run of the whole phone, its screen included, modelled: typical (low to high), by the "
            f"power block of the phone's profile. Simulated on {CORES} equal cores that together are as fast as the "
            "phone's, and draw what those draw."
        ),
        columns=[
            "model",
            "phone",
            *(f"{policy}, mJ, modelled" for policy in POLICIES),
            *(f"{policy} against the CPU alone, modelled" for policy in POLICIES[1:]),
            "ours: time against the CPU alone, simulated",
            "the paper, Parallax on the CPU",
        ],
        rows=cells,
        data={"is_modelled": True, "results": [row.to_json() for row in rows]},
        figures=figures_of(rows),
        remarks=[
            GREEDY_NOTE,
            "shares have the same constants on both sides; their band is that of all corners of the constants' bands",
            "the paper's figures are of its exports of the models, on the CPU of a Pixel 6, by Android Studio's "
            "profiler, which estimates; the columns to put beside them are those of the paper's policy on the CPU",
            "operators' bytes are counted as if no cache held them; the band of the joules per byte allows for caches",
        ],
    )


def shown_joules(joules: Band) -> str:
    low, typical, high = (f"{1e3 * value:.3g}" for value in (joules.low, joules.typical, joules.high))
    return f"{typical} ({low} to {high})"


def shown_change(share: Band) -> str:
    return f"{share.typical - 1:+.0%} ({share.low - 1:+.0%} to {share.high - 1:+.0%})"


def main() -> None:
    parser = make_parser(__doc__, "paper_energy")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--phones", nargs="+", default=list(PHONES), metavar="PROFILE")
    arguments = parser.parse_args()
    machine = describe_machine()
    rows = []
    for name in arguments.models:
        model = load_converted(name)
        for phone in arguments.phones:
            say(f"{name} on {phone}")
            rows.append(model_row(name, phone, model))
    title = "Energy of the Parallax paper's models on emulated phones, modelled"
    publish_sections(title, {"energy": section(rows)}, Path(arguments.output), machine, json_copy=None)


if __name__ == "__main__":
    main()
