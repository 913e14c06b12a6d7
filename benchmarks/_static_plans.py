"""Static plans of one model in a process of their own, which runs them when it is told to.

``python _static_plans.py MODEL THREADS STEPS`` opens the model beside an emulated device and compiles plans that
stay as they are. STEPS is the device's condition as JSON, `[[moment, factor], ...]`, each moment on the clock of
`time.perf_counter`, which processes of a machine share. It prints a line of JSON with the labels of its plans, then
answers orders, each a line of JSON on standard input: ``{"until": moment}`` has all plans take turns until then, and
``{"block": runs}`` times so many runs, or a quarter of a second of them, of the plan that a session opens with.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import open_inputs, say
from _orders import open_answers

import parallax
from parallax import zoo
from parallax.adapt import crowded_states, state_grid
from parallax.backends import open_backend
from parallax.cli import compare_outputs, wait_until_quiet
from parallax.errors import ParallaxError
from parallax.planner import plans_for_states

PROFILE = "pixel-6-gpu"
SLOW = 4.0
"""How many times as long as by its profile the device takes in its slow phases."""

STATIC_PLANS = 6
OWN_PLAN = "plan of the calm state"
BLOCK_S = 0.25
TOLERANCE = 1e-3
"""Of an output's largest magnitude: plans use kernels of other widths, and what a device computes is cut elsewhere."""

Call = Callable[[], Sequence[Any]]
Steps = Sequence[tuple[float, float]]


def device_in(folder: Path, steps: Steps) -> str:
    """The provider's name of the emulated device, whose condition follows these steps from now on."""
    now = time.perf_counter()
    rows = [{"at_s": max(0.0, moment - now), "device": factor, "launch": 1} for moment, factor in steps]
    path = folder / "condition.json"
    path.write_text(json.dumps({"format": 1, "steps": rows}), encoding="utf-8")
    return f"emulated:{PROFILE}?condition={path}"


def session_options(path: Path, feeds: Mapping[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Of a session beside the device."""
    return {"providers": [device, "CPUExecutionProvider"], "threads": threads, "shapes": open_inputs(path, feeds)}


def static_calls(session: Any, feeds: Mapping[str, Any], device: str) -> dict[str, Call]:
    """By label: the plan of a session, and others of the same model, each compiled and left as it is."""
    request = session.planning_request()
    first = session.runners.current
    states = (*state_grid([device], device_factors=(1.0, SLOW)), *crowded_states())
    calls = {OWN_PLAN: _call_of(first, feeds)}
    for ready in plans_for_states(request, first.plan, states):
        if len(calls) == STATIC_PLANS:
            break
        if ready.plan is first.plan:
            continue
        try:
            runner = session.prepare_plan(ready.plan).runner
        except ParallaxError as error:
            say(f"  not compared with {ready.label}: {error}")
            continue
        calls[ready.label] = _call_of(runner, feeds)
    return calls


def _call_of(runner: Any, feeds: Mapping[str, Any]) -> Call:
    return lambda: list(runner.run(None, feeds))


def time_in_turn(calls: Mapping[str, Call], end: float) -> dict[str, list[float]]:
    """Seconds of runs by label, in rounds of turns, until that moment. The first run of a turn is not timed.

    Answers are compared, as those of the session are, which takes time between runs, in which threads go to sleep.
    """
    samples: dict[str, list[float]] = {label: [] for label in calls}
    wanted = _by_place(next(iter(calls.values()))())
    while time.perf_counter() < end:
        for label, call in calls.items():
            call()
            for _ in range(3):
                begin = time.perf_counter()
                made = call()
                samples[label].append(time.perf_counter() - begin)
                if not compare_outputs(_by_place(made), wanted).within(TOLERANCE):
                    raise SystemExit(f"{label}: a wrong answer")
    return samples


def _by_place(made: Sequence[Any]) -> dict[str, Any]:
    return {str(place): value for place, value in enumerate(made)}


def block_s(call: Call, least: int) -> float:
    """Seconds of a run, on average over a block of ``least`` or as many as `BLOCK_S` takes."""
    wait_until_quiet()
    call()
    runs, begin = 0, time.perf_counter()
    while runs < least or time.perf_counter() - begin < BLOCK_S:
        call()
        runs += 1
    return (time.perf_counter() - begin) / runs


def main() -> None:
    name, threads, steps = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    answer = open_answers()
    path, feeds = Path(zoo.load(name)), zoo.example_inputs(name)
    with tempfile.TemporaryDirectory() as folder:
        device = device_in(Path(folder), steps)
        held = open_backend(device)
        session = parallax.InferenceSession(path, **session_options(path, feeds, device, threads))
        calls = static_calls(session, feeds, held.info.name)
        for call in calls.values():
            call()
        answer(list(calls))
        for line in sys.stdin:
            order = json.loads(line)
            if "until" in order:
                answer(time_in_turn(calls, order["until"]))
            else:
                answer(block_s(calls[OWN_PLAN], order["block"]))


if __name__ == "__main__":
    main()
