"""What belongs together: units no cut may separate, branches and layers, candidate partitions.

Everything here is a pure function from values to values: no clock, no thread, no runtime. Candidates
are proposals with predicted figures; the plan search simulates and measures them.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition._apart import set_apart, stands_alone, units_of
    from parallax.partition._branches import (
        Branch,
        BranchGraph,
        NodeClass,
        classify,
        find_branches,
        verify_branches,
        verify_layers,
    )
    from parallax.partition._by_weight import (
        by_weight,
        bytes_across,
        crossing_bytes,
        lookup_tables,
        static_bytes,
        tensor_bytes,
        unit_weights,
    )
    from parallax.partition._cast_back import bodies_cast_back
    from parallax.partition._constants import find_constants
    from parallax.partition._lanes import by_lanes
    from parallax.partition._list_schedule import ListSchedule, list_schedule
    from parallax.partition._refine import (
        BranchLoad,
        CostRule,
        LayerDecision,
        PaperRule,
        Reason,
        RefinementRule,
        lpt_makespan,
    )
    from parallax.partition._region_advice import Advice, advise
    from parallax.partition._region_hosted import hosted_tensors
    from parallax.partition._region_offer import Pricing, make_offer
    from parallax.partition._region_plan import (
        Decline,
        NodeVerdict,
        Offer,
        PaperThresholds,
        Region,
        RegionPlan,
        RegionRule,
        Traffic,
        TransferCost,
        Verdict,
    )
    from parallax.partition._regions import RegionPlacer, find_regions, verify_regions
    from parallax.partition._segments import (
        Boundary,
        Cause,
        DraftSegment,
        Partition,
        UnitCosts,
        assemble,
        by_branches,
        by_layers,
        every_unit,
        find_boundaries,
        load_layers,
        uncut,
        verify_partition,
    )
    from parallax.partition._units import DEFAULT_TINY_ELEMENTS, UnitGraph, contract, verify_units
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_apart": "set_apart stands_alone units_of",
            "_branches": "Branch BranchGraph NodeClass classify find_branches verify_branches verify_layers",
            "_by_weight": (
                "by_weight bytes_across crossing_bytes lookup_tables static_bytes tensor_bytes unit_weights"
            ),
            "_cast_back": "bodies_cast_back",
            "_constants": "find_constants",
            "_lanes": "by_lanes",
            "_list_schedule": "ListSchedule list_schedule",
            "_refine": "BranchLoad CostRule LayerDecision PaperRule Reason RefinementRule lpt_makespan",
            "_region_advice": "Advice advise",
            "_region_hosted": "hosted_tensors",
            "_region_offer": "Pricing make_offer",
            "_region_plan": (
                "Decline NodeVerdict Offer PaperThresholds Region RegionPlan RegionRule Traffic TransferCost Verdict"
            ),
            "_regions": "RegionPlacer find_regions verify_regions",
            "_segments": (
                "Boundary Cause DraftSegment Partition UnitCosts assemble by_branches by_layers every_unit "
                "find_boundaries load_layers uncut verify_partition"
            ),
            "_units": "DEFAULT_TINY_ELEMENTS UnitGraph contract verify_units",
        },
    )

__all__ = [
    "DEFAULT_TINY_ELEMENTS",
    "Advice",
    "Boundary",
    "Branch",
    "BranchGraph",
    "BranchLoad",
    "Cause",
    "CostRule",
    "Decline",
    "DraftSegment",
    "LayerDecision",
    "ListSchedule",
    "NodeClass",
    "NodeVerdict",
    "Offer",
    "PaperRule",
    "PaperThresholds",
    "Partition",
    "Pricing",
    "Reason",
    "RefinementRule",
    "Region",
    "RegionPlacer",
    "RegionPlan",
    "RegionRule",
    "Traffic",
    "TransferCost",
    "UnitCosts",
    "UnitGraph",
    "Verdict",
    "advise",
    "assemble",
    "bodies_cast_back",
    "by_branches",
    "by_lanes",
    "by_layers",
    "by_weight",
    "bytes_across",
    "classify",
    "contract",
    "crossing_bytes",
    "every_unit",
    "find_boundaries",
    "find_branches",
    "find_constants",
    "find_regions",
    "hosted_tensors",
    "list_schedule",
    "load_layers",
    "lookup_tables",
    "lpt_makespan",
    "make_offer",
    "set_apart",
    "stands_alone",
    "static_bytes",
    "tensor_bytes",
    "uncut",
    "unit_weights",
    "units_of",
    "verify_branches",
    "verify_layers",
    "verify_partition",
    "verify_regions",
    "verify_units",
]
