"""Every benchmark in turn, from one commit, within a stated time; each step's results are written as it ends.

The steps, their arguments and the minutes that each is given stand in `STEPS`. What they give up to fit into the time
(fewer rounds, a shorter soak) is in their commands, which the results name. A step that takes longer than half as much
again is stopped, and the rest goes on; the end says which steps did not do. `python tools/readme_figures.py` puts the
figures into the texts afterwards.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _common import RESULTS, say
from _figures import commit_hash

HERE = Path(__file__).parent
PATIENCE = 1.5
SERVED = ("mobilenetv3-s", "resnet18", "distilbert", "yolov8n")
"""Models of the zoo that several callers are served with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One benchmark."""

    script: str
    arguments: tuple[str, ...] = ()
    minutes: float
    """That it is expected to take on two idle cores."""
    needs_quiet: bool = True
    """Whether other work on the machine spoils it; the others count bytes, or simulate."""


STEPS: tuple[Step, ...] = (
    Step(script="overhead.py", minutes=0.5),
    Step(script="opening.py", arguments=("--rounds", "9"), minutes=2),
    Step(script="planning.py", minutes=2),
    Step(script="latency.py", arguments=("--runs", "12", "--no-streams"), minutes=24),
    Step(script="cold_start.py", arguments=("--rounds", "3"), minutes=7),
    Step(script="start.py", arguments=("--rounds", "7"), minutes=5),
    Step(script="simulation.py", arguments=("--models", "paper", "--runs", "10"), minutes=5),
    Step(script="cpu_backends.py", arguments=("--runs", "12"), minutes=9),
    Step(script="paper_parallax.py", arguments=("--minutes", "30"), minutes=31),
    Step(script="sparsity.py", arguments=("--rounds", "9"), minutes=4),
    Step(script="batcher.py", arguments=("--seconds", "12", "--rounds", "6"), minutes=22),
    Step(script="peers.py", arguments=("--models", *SERVED, "--seconds", "0.8", "--lead", "0.7"), minutes=27),
    Step(script="adapt.py", minutes=19),
    Step(script="decision_time.py", arguments=("--minutes", "30"), minutes=31),
    Step(script="memory.py", minutes=12, needs_quiet=False),
    Step(script="narrow_budgets.py", minutes=5),
    Step(script="soak.py", arguments=("--minutes", "4"), minutes=4.2, needs_quiet=False),
    Step(script="paper_parallax_simulated.py", minutes=8, needs_quiet=False),
    Step(script="paper_energy.py", minutes=5, needs_quiet=False),
    Step(script="paper_sparoa.py", minutes=25, needs_quiet=False),
    Step(script="right_answers.py", minutes=15, needs_quiet=False),
    Step(script="inspect_sample.py", minutes=0.3, needs_quiet=False),
)


def run(step: Step, output: Path) -> str:
    """Do a step; returns what went wrong, or ""."""
    command = [sys.executable, str(HERE / step.script), *step.arguments]
    command += ["--output", str(output / Path(step.script).with_suffix(".md"))]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=PATIENCE * step.minutes * 60, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {PATIENCE * step.minutes:.0f} minutes"
    return "" if done.returncode == 0 else f"exit code {done.returncode}"


def chosen(arguments: argparse.Namespace) -> Sequence[Step]:
    steps = [step for step in STEPS if not arguments.only or Path(step.script).stem in arguments.only]
    if arguments.quiet_only:
        steps = [step for step in steps if step.needs_quiet]
    if arguments.others_only:
        steps = [step for step in steps if not step.needs_quiet]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [Path(step.script).stem for step in STEPS]
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write results to")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--quiet-only", action="store_true", help="those that need the machine to themselves")
    parser.add_argument("--others-only", action="store_true", help="those that do not")
    parser.add_argument("--list", action="store_true", help="say what would run, and for how long")
    arguments = parser.parse_args()
    steps = chosen(arguments)
    if arguments.list:
        for step in steps:
            print(f"{step.minutes:5.1f} min  {step.script} {' '.join(step.arguments)}")
        print(f"{sum(step.minutes for step in steps):5.1f} min in all")
        return
    commit = commit_hash()
    if commit.endswith("+"):
        say("the sources were changed since the last commit: the results will say so")
    failed = {}
    for step in steps:
        say(f"== {step.script} {' '.join(step.arguments)}: about {step.minutes:g} minutes")
        begin = time.monotonic()
        wrong = run(step, arguments.output)
        say(f"== {step.script}: {wrong or 'done'}, {(time.monotonic() - begin) / 60:.1f} minutes")
        if wrong:
            failed[step.script] = wrong
    if failed:
        sys.exit("; ".join(f"{script}: {wrong}" for script, wrong in failed.items()))


if __name__ == "__main__":
    main()
