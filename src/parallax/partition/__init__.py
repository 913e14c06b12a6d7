"""What belongs together: units no cut may separate, branches and layers, candidate partitions.

Everything here is a pure function from values to values: no clock, no thread, no runtime. Candidates
are proposals with predicted figures; the plan search simulates and measures them.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition._apart import set_apart, stands_alone, units_of
    from parallax.partition._branches import BranchGraph, NodeClass, classify, find_branches
    from parallax.partition._by_weight import by_weight, crossing_bytes, unit_weights
    from parallax.partition._cast_back import bodies_cast_back
    from parallax.partition._constants import find_constants
    from parallax.partition._lanes import by_lanes
    from parallax.partition._refine import BranchLoad, CostRule, PaperRule, RefinementRule
    from parallax.partition._region_advice import Advice, advise
    from parallax.partition._region_offer import Pricing, make_offer
    from parallax.partition._region_plan import (
        NodeVerdict,
        Offer,
        PaperThresholds,
        RegionPlan,
        RegionRule,
        Traffic,
        TransferCost,
    )
    from parallax.partition._regions import RegionPlacer, find_regions
    from parallax.partition._segments import (
        Cause,
        DraftSegment,
        Partition,
        UnitCosts,
        assemble,
        by_branches,
        by_layers,
        find_boundaries,
        load_layers,
    )
    from parallax.partition._units import UnitGraph, contract
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_apart": "set_apart stands_alone units_of",
            "_branches": "BranchGraph NodeClass classify find_branches",
            "_by_weight": "by_weight crossing_bytes unit_weights",
            "_cast_back": "bodies_cast_back",
            "_constants": "find_constants",
            "_lanes": "by_lanes",
            "_refine": "BranchLoad CostRule PaperRule RefinementRule",
            "_region_advice": "Advice advise",
            "_region_offer": "Pricing make_offer",
            "_region_plan": "NodeVerdict Offer PaperThresholds RegionPlan RegionRule Traffic TransferCost",
            "_regions": "RegionPlacer find_regions",
            "_segments": (
                "Cause DraftSegment Partition UnitCosts assemble by_branches by_layers find_boundaries load_layers"
            ),
            "_units": "UnitGraph contract",
        },
    )

__all__ = [
    "Advice",
    "BranchGraph",
    "BranchLoad",
    "Cause",
    "CostRule",
    "DraftSegment",
    "NodeClass",
    "NodeVerdict",
    "Offer",
    "PaperRule",
    "PaperThresholds",
    "Partition",
    "Pricing",
    "RefinementRule",
    "RegionPlacer",
    "RegionPlan",
    "RegionRule",
    "Traffic",
    "TransferCost",
    "UnitCosts",
    "UnitGraph",
    "advise",
    "assemble",
    "bodies_cast_back",
    "by_branches",
    "by_lanes",
    "by_layers",
    "by_weight",
    "classify",
    "contract",
    "crossing_bytes",
    "find_boundaries",
    "find_branches",
    "find_constants",
    "find_regions",
    "load_layers",
    "make_offer",
    "set_apart",
    "stands_alone",
    "unit_weights",
    "units_of",
]
