"""The state of a `parallax bench` that is under way, and the report made of it whenever the bench ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from parallax.cli._baselines import Difference, compare_outputs, runtime_baselines
from parallax.cli._bench_opening import Opened, Running
from parallax.cli._bench_report import OURS, TOLERANCE, Bench, Compared, describe_bench, is_ours, render_bench
from parallax.cli._bench_rounds import BenchPlan, End, Measured, counted
from parallax.cli._bench_unfinished import FirstRuns, describe_first_runs, render_first_runs
from parallax.cli._console import Screen
from parallax.cli._document import document_text
from parallax.cli._energy import BenchEnergy, EnergySource, RowEnergy, energy_of
from parallax.cli._exits import INTERRUPTED_EXIT, say
from parallax.cli._limit import Limit, describe_unmeasured, say_inconclusive, tell_nothing
from parallax.cli._open import Subject
from parallax.cli._timing import Round
from parallax.schedule import Plan
from parallax.session import InferenceSession


@dataclass(slots=True, kw_only=True)
class Course:
    """What is known so far. The main thread fills it in; when the time is over, another thread may `conclude`."""

    limit: Limit
    screen: Screen
    how: BenchPlan
    save: Path | None
    cores: int
    slims: bool
    model: str
    subject: Subject | None = None
    source: EnergySource | None = None
    others_cores: float = 0.0
    """Cores that other programs still used when waiting for them had ended."""
    tunes: bool = False
    """Whether the best plan is searched for."""
    session: InferenceSession | None = None
    ours: Sequence[Any] = ()
    """Outputs of our session's first run."""
    policies: Mapping[str, Running] = field(default_factory=dict)
    opened: Opened = field(default_factory=Opened)
    opening_s: float | None = None
    """Seconds from the start of the command until all sessions were opened; None before."""
    calls: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """What is timed, by label; empty until that is known."""
    runs_ns: dict[str, list[float]] = field(default_factory=dict)
    """Durations of all runs before the first round ended, by label: untimed runs too."""
    rounds: list[Round] = field(default_factory=list)
    """Those that have ended."""
    wanted: int = 0
    metered: dict[str, RowEnergy] = field(default_factory=dict)

    def log(self, label: str, runs_ns: Sequence[float]) -> None:
        """Note durations of runs, in ns, for `FirstRuns`; not needed any more once a round has ended."""
        if not self.rounds:
            self.runs_ns.setdefault(label, []).extend(runs_ns)

    def conclude(self, ended_by: End) -> int:
        """Print the report of what is known, and save it if ``save`` is set; returns the exit status."""
        self.screen.end_progress()
        if self.subject is None or self.session is None or not self.runs_ns:
            return tell_nothing(
                self.limit, self.model, as_json=self.screen.as_json, others=self._others(), tunes=self.tunes
            )
        rounds = list(self.rounds)
        compared = self._compared(self.subject, self.session)
        if rounds:
            self._tell(describe_bench(self._bench(compared, counted(rounds, ended_by))), render_bench)
            return _status(compared.differences) or _status_of(ended_by)
        first = FirstRuns(
            compared=compared,
            runs_ns=self._first_runs(),
            opening_s=self.opening_s,
            others_cores=self.others_cores,
        )
        report = describe_first_runs(
            first, describe_unmeasured(self.limit, self.model, others=self._others(), tunes=self.tunes)
        )
        self._tell(report, render_first_runs)
        return _status(compared.differences) or say_inconclusive(report)

    def _compared(self, subject: Subject, session: InferenceSession) -> Compared:
        return Compared(
            subject=subject,
            session=session,
            how=self.how,
            cores=self.cores,
            wanted=self.wanted,
            differences=self._differences(session),
            failed=dict(self.opened.failed),
            left_out=dict(self.opened.left_out),
        )

    def _first_runs(self) -> dict[str, list[float]]:
        """Durations in ns of all runs so far, by label, in the order of the table."""
        runs_ns = {OURS: list(self.runs_ns[OURS])}
        for label, running in dict(self.opened.running).items():
            runs_ns[label] = [1e9 * running.run_s, *self.runs_ns.get(label, ())]
        return runs_ns

    def _tell(self, report: Mapping[str, Any], render: Callable[[Mapping[str, Any], Console], None]) -> None:
        if self.save is not None:
            self.save.write_text(document_text(report), encoding="utf-8")
        self.screen.show(report, lambda console: render(report, console))

    def _others(self) -> str:
        if not self.others_cores:
            return ""
        return f"other programs used {self.others_cores:.1f} of {self.cores} cores"

    def _differences(self, session: InferenceSession) -> dict[str, Difference]:
        """How baselines' outputs differ from ours: those of timed ones or, until these are chosen, of all that ran."""
        names = [entry.name for entry in session.get_outputs()]
        ours = dict(zip(names, self.ours, strict=True))
        return {
            label: compare_outputs(ours, dict(zip(names, running.outputs, strict=True)))
            for label, running in dict(self.opened.running).items()
            if label in self.calls or not self.calls
        }

    def _bench(self, compared: Compared, measured: Measured) -> Bench:
        policies = {label: running.session.plan for label, running in self.policies.items()}
        plans = {OURS: compared.session.plan, **policies}
        return Bench(
            compared=compared,
            measured=measured,
            elapsed_s=self.limit.elapsed_s,
            max_time_s=self.limit.seconds,
            policies={label: plan for label, plan in policies.items() if label in self.calls},
            energy=self._energy(compared.subject, measured.rounds, plans),
        )

    def _energy(self, subject: Subject, rounds: Sequence[Round], plans: Mapping[str, Plan]) -> BenchEnergy | None:
        if self.source is None:
            return None
        threads = {baseline.label: baseline.threads for baseline in runtime_baselines(self.cores)}
        metered = dict(self.metered)
        return energy_of(self.source, metered, subject, rounds, plans=plans, threads=threads, slim=self.slims)


def _status(differences: Mapping[str, Difference]) -> int:
    """1, and a line that says why, where outputs differ: ours from all of ONNX Runtime's, or a policy's from ours."""
    baselines = [difference for label, difference in differences.items() if not is_ours(label)]
    if baselines and not any(difference.within(TOLERANCE) for difference in baselines):
        say("error: outputs differ from ONNX Runtime's beyond tolerance; please report this model")
        return 1
    for label, difference in differences.items():
        if is_ours(label) and not difference.within(TOLERANCE):
            say(f"error: outputs of {label} differ from ours beyond tolerance; please report this model")
            return 1
    return 0


def _status_of(ended_by: End) -> int:
    if ended_by is not End.INTERRUPT:
        return 0
    say("interrupted")
    return INTERRUPTED_EXIT
