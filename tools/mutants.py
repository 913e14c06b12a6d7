"""Mutation testing: change the package in small ways, one at a time, and list the changes that no test notices.

    make mutants MODULES="memory/_budget engine/_work" MUTANTS_MINUTES=20

mutmut makes the mutants and runs, for each, those of the given tests that reach it. It works on a copy of the sources
under build/mutants/, so that nothing of yours is touched. What survives and is no fault of the tests is explained in
docs/mutation.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "mutants"

TESTS = {
    "graph/": ("tests/graph",),
    "memory/_budget": ("tests/memory/test_budget.py", "tests/memory/test_device_memory.py"),
    "memory/_fit": ("tests/memory/test_planners.py", "tests/memory/test_reuse_edges.py"),
    "memory/": ("tests/memory",),
    "engine/_work": ("tests/engine/test_work.py",),
    "engine/_view_ops": ("tests/engine/test_view_ops.py",),
    "engine/_shape_functions": ("tests/engine/test_shape_functions.py",),
    "engine/": ("tests/engine",),
    "planner/_measuring": ("tests/session/test_tuning.py", "tests/session/test_tuning_decisions.py"),
    "planner/_tuning": ("tests/session/test_tuning.py", "tests/session/test_tuning_decisions.py"),
    "planner/_candidates": ("tests/session/test_least_gain.py", "tests/session/test_default_policy.py"),
    "planner/_tables": (
        "tests/session/test_least_gain.py",
        "tests/session/test_default_policy.py",
        "tests/session/test_devices.py",
    ),
    "planner/_small": ("tests/session/test_least_gain.py", "tests/session/test_default_policy.py"),
    "schedule/": ("tests/schedule",),
    "partition/": ("tests/partition",),
}
"""What is run for the mutants of a module: the first entry that its name begins with."""

DEFAULT = ("memory/_budget", "memory/_fit", "graph/_sizes", "engine/_work", "planner/_measuring")


def main() -> int:
    """Run it, and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(DEFAULT), help="such as memory/_budget, below src/parallax")
    parser.add_argument("--minutes", type=float, default=20, help="what has not run by then is told as not run")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    tests = sorted({test for module in arguments.modules for test in tests_of(module)})
    prepare(arguments.modules, tests)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(arguments.jobs)]
    print(f"Mutants of {', '.join(arguments.modules)}; tests: {', '.join(tests)}", flush=True)
    try:
        # mutmut redraws one line of progress for ever; what came out is asked for afterwards.
        done = subprocess.run(command, cwd=COPY, timeout=60 * arguments.minutes, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        print(f"The {arguments.minutes:g} minutes are over.")
    else:
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
            return done.returncode
    report()
    return 0


def tests_of(module: str) -> Sequence[str]:
    """The tests for a module. Raises: SystemExit if it does not exist, or none are known for it."""
    if not (ROOT / "src" / "parallax" / f"{module}.py").is_file():
        raise SystemExit(f"there is no src/parallax/{module}.py")
    for prefix, tests in TESTS.items():
        if module.startswith(prefix):
            return tests
    raise SystemExit(f"tools/mutants.py does not say which tests are for {module}: add them to TESTS")


def prepare(modules: Sequence[str], tests: Sequence[str]) -> None:
    """Copy what is needed, with the settings of this run."""
    shutil.rmtree(COPY, ignore_errors=True)
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, COPY / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", COPY)
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/parallax/{module}.py" for module in modules],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
    }
    lines = ["[mutmut]", *(f"{key} =\n    " + "\n    ".join(values) for key, values in settings.items())]
    (COPY / "setup.cfg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def report() -> None:
    """Print the counts, and of each survivor what was changed."""
    found: dict[str, list[str]] = {}
    for line in _mutmut("results", "--all", "true").splitlines():
        name, separator, outcome = line.strip().rpartition(": ")
        if separator:
            found.setdefault(outcome, []).append(name)
    for outcome, names in sorted(found.items()):
        print(f"{len(names):6} {outcome}")
    for outcome in ("survived", "no tests"):
        for name in found.get(outcome, ()):
            shown = [line for line in _mutmut("show", name).splitlines() if line.startswith(("+", "-"))]
            changed = [line for line in shown if not line.startswith(("+++", "---"))]
            print(f"\n{name} ({outcome})", *changed, sep="\n")


def _mutmut(*arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
