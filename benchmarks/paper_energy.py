"""Energy of the Parallax paper's models (arXiv 2512.11532) on its phones, **modelled**: no joule here was measured.

For each of five models and three phones: the CPU alone; greedy delegation; the paper's policy (``parallax-paper``) on
the CPU alone and with the accelerator; and ours, whose plans are made for time, or for joules (``objective="energy"``),
or for joules x seconds (``"edp"``). Runs are simulated as `paper_parallax_simulated.py` does it, and what
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
from _joules import usage_of_run
from _paper import GREEDY_NOTE, MODELS, PHONES, load_converted
from _paper_simulated import CORES, PHONE, phone_costs
from _phones import Study, best_split
from _sections import Section, publish_sections

from parallax.backends.emulated import DeviceProfile, load_profile
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.energy import Band, EnergyComparison, PowerModel, Usage
from parallax.graph import CostModel
from parallax.model import Model, RowSplit
from parallax.partition.regions import RegionPlacer, RegionPlan, RegionRule
from parallax.planner import power_of, touched_bytes
from parallax.schedule.placement import JudgedPlacement, PaperPolicy, PlacementProblem, run_by_layers

FREE_BYTES = 2 << 30
"""Of a phone's memory that is taken to be free, for the paper's policy; its margin of 40% stays free of that."""

CPU, GREEDY, PAPER_CPU, PAPER, OURS = "CPU alone", "greedy", "paper's policy, CPU", "paper's policy", "ours"
ENERGY, EDP = "ours, energy", "ours, edp"
POLICIES = (CPU, GREEDY, PAPER_CPU, PAPER, OURS, ENERGY, EDP)

YARDSTICKS = (CPU, GREEDY, OURS)
"""What plans for joules are not to exceed, at any constants within their bands."""

ENERGY_CORES = (CORES, 1)
"""Of the CPU's, how many a plan for joules may use; the CPU alone is tried on each number of them."""

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
    runs: Mapping[str, Usage]
    """By policy."""

    def joules(self, policy: str) -> Band:
        return self.runs[policy].energy(self.power).total

    def share(self, policy: str, other: str, *, with_delay: bool = False) -> Band:
        """Of another policy's joules, or joules x seconds."""
        return self.comparison(with_delay=with_delay).share_of(self.runs[policy], self.runs[other])

    def comparison(self, *, with_delay: bool) -> EnergyComparison:
        """With the yardsticks."""
        return comparison_of(self.runs, self.power, with_delay=with_delay)

    def most_above(self, policy: str) -> float:
        """What a plan for joules (or joules x seconds) costs at the worst constants, in shares of what the least
        yardstick costs there; at most 1 where it never exceeds one."""
        return self.comparison(with_delay=policy == EDP).most_share(self.runs[policy])

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "phone": self.phone,
            "reported_by_the_paper": REPORTED.get((self.model, self.phone)),
            "modelled": {
                policy: {
                    "milliseconds": run.makespan_ns / 1e6,
                    "core_milliseconds": run.core_ns / 1e6,
                    "device_milliseconds": sum(run.device_ns.values()) / 1e6,
                    "touched_bytes": run.touched_bytes,
                    "joules": asdict(self.joules(policy)),
                    "share_of_cpu_alone": asdict(self.share(policy, CPU)),
                    "joule_seconds": self.joules(policy).typical * run.makespan_ns / 1e9,
                }
                for policy, run in self.runs.items()
            },
            "most_share_of_the_least_yardstick": {policy: self.most_above(policy) for policy in (ENERGY, EDP)},
        }


def comparison_of(runs: Mapping[str, Usage], power: PowerModel, *, with_delay: bool) -> EnergyComparison:
    return EnergyComparison(power, [runs[policy] for policy in YARDSTICKS], with_delay=with_delay)


def model_row(name: str, phone: str, model: Model) -> Row:
    """Every policy's run, simulated. Deterministic."""
    profile = load_profile(phone)
    study = Study.of(model, phone_costs(model.inferred(), profile), EmulatedBackend(profile, speed=1.0), PHONE)
    touched = touched_bytes(study.graph)
    power = power_of(profile, cores=CORES)
    runs = {
        CPU: cpu_run(study, CORES, touched),
        GREEDY: greedy_run(study, touched),
        PAPER_CPU: paper_run(study, touched, with_device=False),
        PAPER: paper_run(study, touched, with_device=True),
    }
    ours = OursOf(study, profile)
    runs[OURS] = ours.quickest_run(runs[CPU])
    for policy in (ENERGY, EDP):
        comparison = comparison_of(runs, power, with_delay=policy == EDP)
        runs[policy] = ours.run_by(comparison, [runs[yardstick] for yardstick in YARDSTICKS])
    return Row(model=name, phone=phone, power=power, runs=runs)


def cpu_run(study: Study, cores: int, touched: int) -> Usage:
    """The CPU alone: ONNX Runtime and TFLite keep their threads busy from the beginning of a run to its end."""
    ns = sum(study.costs.node_ns(cores)) if cores < CORES else study.regions(RegionRule.GREEDY).cpu_only_ns
    return Usage(makespan_ns=ns, core_ns=cores * ns, touched_bytes=touched)


def greedy_run(study: Study, touched: int) -> Usage:
    """One thing after the other, every tensor of a fragment through the host's memory, where a core copies it."""
    plan = study.regions(RegionRule.GREEDY)
    makespan_ns = study.hosted_ns(plan)
    device_ns = sum(region.compute_ns + region.launch_ns for region in plan.regions)
    kept_ns = sum(region.transfer_ns for region in plan.regions)
    moved_ns = makespan_ns - (plan.chosen_ns - kept_ns)
    on_cpu_ns = max(0, makespan_ns - device_ns - moved_ns)
    return Usage(
        makespan_ns=makespan_ns,
        core_ns=CORES * on_cpu_ns + moved_ns,
        device_ns={study.backend.info.name: device_ns},
        touched_bytes=touched,
    )


def paper_run(study: Study, touched: int, *, with_device: bool) -> Usage:
    """As ``policy="parallax-paper"`` would run it."""
    policy = PaperPolicy(free_bytes=FREE_BYTES)
    problem = PlacementProblem(
        graph=study.graph, groups=study.groups, devices=(study.device_costs,), costs=study.costs, machine=study.machine
    )
    regions = policy.regions(problem) if with_device else nothing(study)
    made = run_by_layers(problem, regions, policy, budget_bytes=int(FREE_BYTES * (1 - policy.margin)))
    device = study.backend.info.name
    return usage_of_run(made.run, device, transfer_ns=transfers(regions), touched_bytes=touched)


def nothing(study: Study) -> RegionPlan:
    """Everything on the CPU."""
    return RegionPlacer(study.graph, study.groups, study.device_costs).place(regions=[])


class OursOf:
    """Regions beside the CPU, on a model whose rows are shared where that is better."""

    def __init__(self, study: Study, profile: DeviceProfile) -> None:
        def split_costs(made: RowSplit) -> CostModel:
            return phone_costs(made.model.inferred(), profile)

        alone = study.coexecution(flips=0)
        self._quickest = [usage_of(study, alone.best, touched_bytes(study.graph))]
        self._ways = [Way(study=study, touched_bytes=touched_bytes(study.graph))]
        split = best_split(study, split_costs, alone)
        if split is not None:
            way = Way(
                study=split.study,
                touched_bytes=touched_bytes(split.study.graph),
                split=split.split,
                sides=split.sides,
            )
            self._ways.append(way)
            self._quickest.append(usage_of(way.study, split.found.best, way.touched_bytes))

    def quickest_run(self, cpu: Usage) -> Usage:
        """Of the plan that is made for time."""
        return min((cpu, *self._quickest), key=lambda usage: usage.makespan_ns)

    def run_by(self, comparison: EnergyComparison, yardsticks: Sequence[Usage]) -> Usage:
        """Of the plan that is made for joules: the best of the yardsticks, the CPU alone and what placers find."""
        whole, *_ = self._ways
        found = [*yardsticks, *(cpu_run(whole.study, cores, whole.touched_bytes) for cores in ENERGY_CORES[1:])]
        for way in self._ways:
            found += [way.run_by(comparison, cores) for cores in ENERGY_CORES]
        return min(found, key=comparison.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A model as it is, or split by rows, to be placed."""

    study: Study
    touched_bytes: int
    split: RowSplit | None = None
    sides: Mapping[str, int] | None = None

    def run_by(self, comparison: EnergyComparison, cores: int) -> Usage:
        """Of what the default placers find for joules on so many cores."""

        def rank(judged: JudgedPlacement) -> tuple[float, ...]:
            return comparison.rank(usage_of(self.study, judged, self.touched_bytes))

        found = self.study.coexecution(flips=0, split=self.split, sides=self.sides, rank=rank, cores=cores)
        return usage_of(self.study, found.best, self.touched_bytes)


def usage_of(study: Study, judged: JudgedPlacement, touched: int) -> Usage:
    """What a placement keeps busy."""
    device = study.backend.info.name
    return usage_of_run(judged.run, device, transfer_ns=transfers(judged.plan), touched_bytes=touched)


def transfers(plan: RegionPlan) -> int:
    """Of a placement, in ns."""
    return sum(region.transfer_ns for region in plan.regions)


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Energy of each policy as a share of the CPU's, geometric means; the interval is that of the constants."""
    made = []
    pairs = [(OURS, CPU), (OURS, GREEDY), (OURS, PAPER), (PAPER_CPU, CPU), (PAPER, CPU), (GREEDY, CPU)]
    pairs += [(policy, other) for policy in (ENERGY, EDP) for other in YARDSTICKS]
    for policy, other in pairs:
        with_delay = policy == EDP
        shares = [row.share(policy, other, with_delay=with_delay) for row in rows]
        low, typical, high = (
            math.exp(sum(math.log(getattr(share, end)) for share in shares) / len(shares))
            for end in ("low", "typical", "high")
        )
        key = f"{key_of(policy)}_of_{key_of(other)}"
        made.append(
            Figure(
                name=f"paper_energy.{key}",
                what=f"modelled, {'energy x delay' if with_delay else 'energy'} of {policy}, share of that of {other}, "
                f"geometric mean of {len(rows)} rows; the interval is that of the constants",
                value=typical,
                unit="ratio",
                interval=(low, high),
                headline=False,
            )
        )
    for policy in (ENERGY, EDP):
        never = sum(row.most_above(policy) <= 1 for row in rows)
        made.append(
            Figure(
                name=f"paper_energy.{key_of(policy)}_never_above",
                what=f"modelled: of {len(rows)} rows, those where {policy} is above none of {', '.join(YARDSTICKS)} at "
                "any constants within their bands; in the others nothing that was found is",
                value=float(never),
                interval=(float(never), float(never)),
                unit="count",
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
                *(f"{row.runs[p].makespan_ns / row.runs[CPU].makespan_ns - 1:+.0%}" for p in (OURS, ENERGY, EDP)),
                *(shown_most(row.most_above(policy)) for policy in (ENERGY, EDP)),
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
            *(f"{policy}: time against the CPU alone, simulated" for policy in (OURS, ENERGY, EDP)),
            "ours, energy: most above the least of the yardsticks, at the worst constants",
            "ours, edp: likewise, joules x seconds",
            "the paper, Parallax on the CPU",
        ],
        rows=cells,
        data={"is_modelled": True, "results": [row.to_json() for row in rows]},
        figures=figures_of(rows),
        remarks=[
            GREEDY_NOTE,
            f"yardsticks: {', '.join(YARDSTICKS)}. 'never': at no constants within their bands does the plan take more "
            "than any of them; else by so much at the worst, and nothing that was found exceeds them by less",
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


def shown_most(most: float) -> str:
    return "never" if most <= 1 else f"{most - 1:+.0%}"


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
