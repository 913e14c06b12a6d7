"""The solver's process: questions about placements as lines of JSON on stdin, answers as lines of JSON on stdout.

It runs in an environment of its own, whose Python has OR-Tools and need not have Parallax: OR-Tools wants another
protobuf than the rest. So this file is run by its path, and imports nothing of the package. The first line it writes
is ``{"ortools": VERSION}``, or ``{"error": TEXT}`` where OR-Tools is missing. Then each question has one answer. Times
are whole ns; groups are numbered in a topological order. `parallax.schedule.placement._exact_question` makes questions.

The model lies beside this file, and is run by its path as well.
"""

from __future__ import annotations

import json
import math
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

_MODELS = runpy.run_path(str(Path(__file__).with_name("_exact_model.py")))


def answer(cp_model: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Solve one question.

    Returns:
        ``status``: "optimal", "feasible" (the time was over), "none" (nothing below ``below_ns`` is left), or "unknown"
        (nothing was found in time); ``bound_ns``: nothing that is not excluded takes less; ``found``: up to ``kept``
        placements, the best first: ``sides``, ``regions``, ``relaxed_ns``; ``used_s``: what of ``seconds`` was used.
    """
    first = _solve(cp_model, _MODELS["Relaxation"](cp_model, question), question)
    if not question["regions"] or first["status"] == "none":
        return first
    hint = first["found"][0]["sides"] if first["found"] else question["hint"]
    made = _MODELS["RegionRelaxation"](cp_model, {**question, "hint": hint})
    made.model.add(made.makespan >= first["bound_ns"])
    second = _solve(cp_model, made, question)
    return {
        "status": second["status"],
        "bound_ns": max(first["bound_ns"], second["bound_ns"]),
        "found": second["found"] or first["found"],
        "used_s": first["used_s"] + second["used_s"],
    }


def _solve(cp_model: Any, made: Any, question: dict[str, Any]) -> dict[str, Any]:
    made.hint()
    found: list[dict[str, Any]] = []

    class Keep(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
        def on_solution_callback(self) -> None:
            sides = made.sides_in(self.boolean_value)
            regions = made.regions_in(self.boolean_value)
            found.append({"sides": sides, "regions": regions, "relaxed_ns": round(self.objective_value)})

    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = 1
    parameters.random_seed = 0
    parameters.linearization_level = 2
    parameters.max_deterministic_time = question["seconds"]
    parameters.max_time_in_seconds = 4 * question["seconds"] + 5
    status = solver.solve(made.model, Keep())
    if status == cp_model.MODEL_INVALID:
        raise ValueError(made.model.validate())
    words = {cp_model.OPTIMAL: "optimal", cp_model.FEASIBLE: "feasible", cp_model.INFEASIBLE: "none"}
    bound = question["below_ns"] if status == cp_model.INFEASIBLE else math.ceil(solver.best_objective_bound - 1e-3)
    distinct = {tuple(one["sides"]): one for one in found}
    best = sorted(distinct.values(), key=lambda one: one["relaxed_ns"])[: question["kept"]]
    used = solver.response_proto.deterministic_time
    return {"status": words.get(status, "unknown"), "bound_ns": bound, "found": best, "used_s": used}


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # who asks ends this process; it has nothing to put in order

    def tell(record: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()

    try:
        import ortools
        from ortools.sat.python import cp_model
    except ImportError as error:
        tell({"error": f"{error}"})
        return
    tell({"ortools": ortools.__version__})
    for line in sys.stdin:
        try:
            tell(answer(cp_model, json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
