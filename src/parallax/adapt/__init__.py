"""Plans that follow the machine: its state estimated from runs, plans kept ready for other states, when to switch."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.adapt._controller import Controller, ReadyPlan, Switch
    from parallax.adapt._decision import Dwell, ProbePlan, better_plan
    from parallax.adapt._meter import MeteredRun, RunMeter
    from parallax.adapt._portfolio import MOST_PLANS, Portfolio, choose_portfolio, state_grid
    from parallax.adapt._slowdown import Slowdown, SlowdownEstimator
    from parallax.adapt._state import (
        CALM,
        CPU_NARROW,
        CPU_WIDE,
        HardwareState,
        calm_costs_ns,
        in_state,
        predict_ns,
        processor_of,
        processors_of,
        segment_costs_ns,
    )
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_controller": "Controller ReadyPlan Switch",
            "_decision": "Dwell ProbePlan better_plan",
            "_meter": "MeteredRun RunMeter",
            "_portfolio": "MOST_PLANS Portfolio choose_portfolio state_grid",
            "_slowdown": "Slowdown SlowdownEstimator",
            "_state": (
                "CALM CPU_NARROW CPU_WIDE HardwareState calm_costs_ns in_state predict_ns processor_of processors_of "
                "segment_costs_ns"
            ),
        },
    )

__all__ = [
    "CALM",
    "CPU_NARROW",
    "CPU_WIDE",
    "MOST_PLANS",
    "Controller",
    "Dwell",
    "HardwareState",
    "MeteredRun",
    "Portfolio",
    "ProbePlan",
    "ReadyPlan",
    "RunMeter",
    "Slowdown",
    "SlowdownEstimator",
    "Switch",
    "better_plan",
    "calm_costs_ns",
    "choose_portfolio",
    "in_state",
    "predict_ns",
    "processor_of",
    "processors_of",
    "segment_costs_ns",
    "state_grid",
]
