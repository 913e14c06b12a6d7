"""Regions: what of a model a device gets. The problem, its growth by cost, verdicts per node, and advice."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition.regions._advice import Advice, advise
    from parallax.partition.regions._device_costs import Pricing, estimate_device_costs
    from parallax.partition.regions._plan import (
        DeviceCosts,
        NodeVerdict,
        PaperThresholds,
        RegionPlan,
        RegionRule,
        Traffic,
        TransferCost,
    )
    from parallax.partition.regions._regions import RegionPlacer, find_regions
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_advice": "Advice advise",
            "_device_costs": "Pricing estimate_device_costs",
            "_plan": "NodeVerdict DeviceCosts PaperThresholds RegionPlan RegionRule Traffic TransferCost",
            "_regions": "RegionPlacer find_regions",
        },
    )

__all__ = [
    "Advice",
    "DeviceCosts",
    "NodeVerdict",
    "PaperThresholds",
    "Pricing",
    "RegionPlacer",
    "RegionPlan",
    "RegionRule",
    "Traffic",
    "TransferCost",
    "advise",
    "estimate_device_costs",
    "find_regions",
]
