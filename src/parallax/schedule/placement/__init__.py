"""Which fusion groups run on which device: the problem, the placers that propose answers, and the judge of all of them.

A placer of one's own is an object with ``propose(problem)``, that yields a `Placement` per idea. It is registered in
the entry point group ``parallax.placers``, and named as ``policy=``. A `PaperPolicy` is more than a placer: it also
says in which steps all runs, and sessions run it whatever it gains.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.schedule.placement._branch_features import (
        BRANCH_COLUMNS,
        FEATURES_VERSION,
        MACHINE_COLUMNS,
        MAX_BRANCHES,
        BranchFeatures,
        scaled_work,
        unscaled_work,
    )
    from parallax.schedule.placement._descent import descend
    from parallax.schedule.placement._episode import OBSERVATION_SIZE, Episode
    from parallax.schedule.placement._judge import (
        Coexecution,
        JudgedPlacement,
        Rank,
        default_placers,
        find_placement,
        quickest,
    )
    from parallax.schedule.placement._layers import LayeredRun, run_by_layers
    from parallax.schedule.placement._names import PLACERS
    from parallax.schedule.placement._paper import PaperPolicy
    from parallax.schedule.placement._placers import ShardRows
    from parallax.schedule.placement._problem import (
        GroupFeatures,
        Machine,
        Placement,
        PlacementProblem,
        Placer,
        row_parts,
        rows_elsewhere,
    )
    from parallax.schedule.placement._quick import QuickJudge
    from parallax.schedule.placement._rows_and_regions import RowsAndRegions
    from parallax.schedule.placement._thresholds import middle_thresholds
    from parallax.schedule.placement._zeros import weight_zeros
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_branch_features": (
                "BRANCH_COLUMNS FEATURES_VERSION MACHINE_COLUMNS MAX_BRANCHES BranchFeatures scaled_work unscaled_work"
            ),
            "_descent": "descend",
            "_episode": "OBSERVATION_SIZE Episode",
            "_judge": "Coexecution JudgedPlacement Rank default_placers find_placement quickest",
            "_layers": "LayeredRun run_by_layers",
            "_names": "PLACERS",
            "_paper": "PaperPolicy",
            "_placers": "ShardRows",
            "_problem": "GroupFeatures Machine Placement PlacementProblem Placer row_parts rows_elsewhere",
            "_quick": "QuickJudge",
            "_rows_and_regions": "RowsAndRegions",
            "_thresholds": "middle_thresholds",
            "_zeros": "weight_zeros",
        },
    )

__all__ = [
    "BRANCH_COLUMNS",
    "FEATURES_VERSION",
    "MACHINE_COLUMNS",
    "MAX_BRANCHES",
    "OBSERVATION_SIZE",
    "PLACERS",
    "BranchFeatures",
    "Coexecution",
    "Episode",
    "GroupFeatures",
    "JudgedPlacement",
    "LayeredRun",
    "Machine",
    "PaperPolicy",
    "Placement",
    "PlacementProblem",
    "Placer",
    "QuickJudge",
    "Rank",
    "RowsAndRegions",
    "ShardRows",
    "default_placers",
    "descend",
    "find_placement",
    "middle_thresholds",
    "quickest",
    "row_parts",
    "rows_elsewhere",
    "run_by_layers",
    "scaled_work",
    "unscaled_work",
    "weight_zeros",
]
