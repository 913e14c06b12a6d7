"""Candidate partitions for a processor's cores: by branches, layers, lanes or weight, with predicted figures."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition.candidates._by_weight import by_weight, crossing_bytes, group_weights
    from parallax.partition.candidates._lanes import by_lanes
    from parallax.partition.candidates._segments import (
        Cause,
        DraftSegment,
        GroupCosts,
        Partition,
        assemble,
        by_branches,
        by_layers,
        find_boundaries,
        load_layers,
    )
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_by_weight": "by_weight crossing_bytes group_weights",
            "_lanes": "by_lanes",
            "_segments": (
                "Cause DraftSegment Partition GroupCosts assemble by_branches by_layers find_boundaries load_layers"
            ),
        },
    )

__all__ = [
    "Cause",
    "DraftSegment",
    "GroupCosts",
    "Partition",
    "assemble",
    "by_branches",
    "by_lanes",
    "by_layers",
    "by_weight",
    "crossing_bytes",
    "find_boundaries",
    "group_weights",
    "load_layers",
]
