"""What runs when, where: plans, the policies that make them, and the dispatcher that carries them out.

Pure: no clock, no thread, no environment. The engine drives the `Dispatcher` with real lanes, `simulate`
with a virtual clock.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.schedule._adaptive import AdaptivePolicy
    from parallax.schedule._crossings import Crossings
    from parallax.schedule._dispatcher import Dispatcher
    from parallax.schedule._plan import (
        CPU_BACKEND,
        PAPER_POLICY,
        PLAN_FORMAT_VERSION,
        BodyPlan,
        Candidate,
        Plan,
        Provenance,
        Segment,
        Stretch,
        verify_plan,
    )
    from parallax.schedule._region_tasks import Granularity, RegionTasks, region_tasks
    from parallax.schedule._serialise import SerialisedPlan, serialise_for_memory, simulate_plan
    from parallax.schedule._simulate import simulate
    from parallax.schedule._table import DispatchTable, Start
    from parallax.schedule._tasks import Assignment, Schedule, Task
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_adaptive": "AdaptivePolicy",
            "_crossings": "Crossings",
            "_dispatcher": "Dispatcher",
            "_plan": (
                "CPU_BACKEND PAPER_POLICY PLAN_FORMAT_VERSION BodyPlan Candidate "
                "Plan Provenance Segment Stretch verify_plan"
            ),
            "_region_tasks": "Granularity RegionTasks region_tasks",
            "_serialise": "SerialisedPlan serialise_for_memory simulate_plan",
            "_simulate": "simulate",
            "_table": "DispatchTable Start",
            "_tasks": "Assignment Schedule Task",
        },
        packages=("placement",),
    )

__all__ = [
    "CPU_BACKEND",
    "PAPER_POLICY",
    "PLAN_FORMAT_VERSION",
    "AdaptivePolicy",
    "Assignment",
    "BodyPlan",
    "Candidate",
    "Crossings",
    "DispatchTable",
    "Dispatcher",
    "Granularity",
    "Plan",
    "Provenance",
    "RegionTasks",
    "Schedule",
    "Segment",
    "SerialisedPlan",
    "Start",
    "Stretch",
    "Task",
    "region_tasks",
    "serialise_for_memory",
    "simulate",
    "simulate_plan",
    "verify_plan",
]
