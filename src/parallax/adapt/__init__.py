"""Plans that follow the machine and its callers: the state estimated from runs, plans kept ready, when to switch."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.adapt._callers import CALLER_RULES, CallerForm, CallerPolicy, CallerRules, CallerStep
    from parallax.adapt._controller import Controller, ReadyPlan, Switch
    from parallax.adapt._decision import Dwell, ProbePlan, better_plan
    from parallax.adapt._meter import MeteredRun, RunMeter
    from parallax.adapt._portfolio import (
        DEVICE_FACTORS,
        MOST_PLANS,
        Portfolio,
        choose_portfolio,
        crowded_states,
        state_grid,
    )
    from parallax.adapt._slowdown import Slowdown, SlowdownEstimator
    from parallax.adapt._state import (
        CPU_NARROW,
        CPU_WIDE,
        NOMINAL,
        HardwareState,
        in_state,
        nominal_costs_ns,
        predict_ns,
        processor_of,
        processors_of,
        segment_costs_ns,
    )
    from parallax.adapt._status import Adaptation, KeptPlan
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_callers": "CALLER_RULES CallerForm CallerPolicy CallerRules CallerStep",
            "_controller": "Controller ReadyPlan Switch",
            "_decision": "Dwell ProbePlan better_plan",
            "_meter": "MeteredRun RunMeter",
            "_portfolio": "DEVICE_FACTORS MOST_PLANS Portfolio choose_portfolio crowded_states state_grid",
            "_slowdown": "Slowdown SlowdownEstimator",
            "_state": (
                "CPU_NARROW CPU_WIDE NOMINAL HardwareState in_state nominal_costs_ns predict_ns processor_of "
                "processors_of segment_costs_ns"
            ),
            "_status": "Adaptation KeptPlan",
        },
    )

__all__ = [
    "CALLER_RULES",
    "CPU_NARROW",
    "CPU_WIDE",
    "DEVICE_FACTORS",
    "MOST_PLANS",
    "NOMINAL",
    "Adaptation",
    "CallerForm",
    "CallerPolicy",
    "CallerRules",
    "CallerStep",
    "Controller",
    "Dwell",
    "HardwareState",
    "KeptPlan",
    "MeteredRun",
    "Portfolio",
    "ProbePlan",
    "ReadyPlan",
    "RunMeter",
    "Slowdown",
    "SlowdownEstimator",
    "Switch",
    "better_plan",
    "choose_portfolio",
    "crowded_states",
    "in_state",
    "nominal_costs_ns",
    "predict_ns",
    "processor_of",
    "processors_of",
    "segment_costs_ns",
    "state_grid",
]
