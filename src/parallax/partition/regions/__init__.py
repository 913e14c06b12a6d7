"""Regions: what of a model a device gets. The problem, its growth by cost, verdicts per node, and advice."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition.regions._advice import Advice, advise
    from parallax.partition.regions._offer import Pricing, make_offer
    from parallax.partition.regions._plan import (
        NodeVerdict,
        Offer,
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
            "_offer": "Pricing make_offer",
            "_plan": "NodeVerdict Offer PaperThresholds RegionPlan RegionRule Traffic TransferCost",
            "_regions": "RegionPlacer find_regions",
        },
    )

__all__ = [
    "Advice",
    "NodeVerdict",
    "Offer",
    "PaperThresholds",
    "Pricing",
    "RegionPlacer",
    "RegionPlan",
    "RegionRule",
    "Traffic",
    "TransferCost",
    "advise",
    "find_regions",
    "make_offer",
]
