"""A placer that asks a solver, CP-SAT of OR-Tools, for the best placement there is: a reference for small models.

OR-Tools wants another protobuf than the rest, so it has an environment of its own, and its answers come from a
process that is started with that environment's Python and ended with the question.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from parallax.errors import BackendError, ConfigError, MissingExtraError
from parallax.planner import _exact_worker
from parallax.schedule.placement import Placement, PlacementProblem
from parallax.schedule.placement._exact_search import ExactSearch
from parallax.schedule.placement._judge import Judge

PYTHON_VARIABLE: Final = "PARALLAX_EXACT_PYTHON"
"""An environment variable that names the Python with OR-Tools."""

ENVIRONMENT: Final = ".venv-exact"
"""The environment that ``make exact`` makes, beside the one that Parallax runs in."""

OLDEST: Final = (9, 15)

_REMEDY: Final = (
    'run "make exact" in the repository, or make an environment with "pip install \'ortools>=9.15\'" and name its '
    f"Python in {PYTHON_VARIABLE}"
)


def find_exact_python() -> str:
    """The Python that has OR-Tools: the one named, else this one where it has it, else that of `ENVIRONMENT`.

    Raises: MissingExtraError if there is none, or the one named is no file.
    """
    named = os.environ.get(PYTHON_VARIABLE, "")
    if named:
        if not Path(named).is_file():
            raise MissingExtraError(f"{PYTHON_VARIABLE}={named!r:.200} is no file", fix=_REMEDY)
        return named
    if find_spec("ortools") is not None:
        return sys.executable
    place = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    made = Path(sys.prefix).parent / ENVIRONMENT / place
    if made.is_file():
        return str(made)
    raise MissingExtraError('the policy "exact" needs OR-Tools in an environment of its own', fix=_REMEDY)


class Solver:
    """The solver's process. It is used by one thread, as a context, and ended with that, also by an interrupt.

    Args:
        python: the Python to start it with; None: as `find_exact_python`.

    Raises: MissingExtraError if there is no OR-Tools, or one that is too old.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = find_exact_python() if python is None else python
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # -I: nothing of this process's environment or folder, such as this package's path, reaches the other Python.
        command = [self._python, "-I", _exact_worker.__file__]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, encoding="utf-8"
            )
        except OSError as error:
            self._said.close()
            raise MissingExtraError(f"{self._python} cannot be started: {error.strerror}", fix=_REMEDY) from error
        try:
            hello = self._answer(60.0)
            if "error" in hello:
                raise MissingExtraError(f"{self._python} has no OR-Tools: {hello['error']!s:.200}", fix=_REMEDY)
            self.version = str(hello.get("ortools", ""))
            if _numbers(self.version) < OLDEST:
                raise MissingExtraError(
                    f"{self._python} has OR-Tools {self.version:.20}, which is too old", fix=_REMEDY
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One answer, see `parallax.planner._exact_worker.answer`.

        Raises: BackendError if the process fails, or does not answer in several times the time it was given.
        """
        assert self._process.stdin is not None  # a pipe
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed(f"ended: {error.strerror}") from error
        answer = self._answer(10 * float(question["seconds"]) + 60)
        if "error" in answer:
            raise self._failed(f"did not understand: {answer['error']!s:.300}")
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still to be written is of no use to anybody
        self._process.wait()
        self._said.close()

    def _answer(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None  # a pipe
        watch = threading.Timer(patience_s, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._failed(
                f"gave no answer (it had {patience_s:.0f} s)" if not line else "wrote no JSON"
            ) from error
        if not isinstance(answer, dict):
            raise self._failed("wrote no record")
        return answer

    def _failed(self, what: str) -> BackendError:
        self._process.kill()
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        told = f": {last[0]:.200}" if last else ""
        return BackendError(
            f"the solver's process {what} (exit code {code}){told}",
            where=self._python,
            fix="choose another policy, or fix that environment",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """The best placements that a solver finds; with enough time the best there is, as the judge schedules them.

    Where it began with the best of other placers, it only proposes what could be better. The same question has the
    same answer, since the solver counts its own work, except on a machine that is several times slower than usual.

    Args:
        seconds: of the solver, for the whole search; about as many on the clock, four times as many at most.
        groups: models of more fusion groups are refused.

    Raises: ConfigError for settings that are no numbers above 0.
    """

    seconds: float = 20.0
    groups: int = 1000

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("groups", self.groups)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ConfigError(f'{name}={value!r:.40} of the policy "exact"', fix="give a number above 0")

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """What it finds from the CPU alone. Raises: as `improve`."""
        judge = Judge(problem)
        for placement in self.improve(problem, judge):
            judge.consider(placement)
            yield placement

    def improve(self, problem: PlacementProblem, judge: Judge) -> Iterator[Placement]:
        """What could be better than the best so far.

        Raises: MissingExtraError if there is no OR-Tools; ConfigError if the model is too large; BackendError if the
            solver fails.
        """
        if len(problem.groups) > self.groups:
            raise ConfigError(
                f'{len(problem.groups)} fusion groups are too many for the policy "exact", which takes {self.groups}',
                fix=f'choose another policy, or "exact,groups={len(problem.groups)}" and patience',
            )
        with Solver() as solver:
            yield from ExactSearch(problem, judge, solver.ask, seconds=self.seconds).placements()


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; those that are none count 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
