"""What belongs together: fusion groups, which no cut may separate, branches and layers.

What may be run apart is in `candidates` (on a processor's cores) and `regions` (on a device); `padding` proves what
of the inputs need not be run at all. Everything here is a pure function from values to values: no clock, no thread, no
runtime. Candidates are proposals with predicted figures; the plan search simulates and measures them.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition._apart import groups_of, is_isolated, split_around
    from parallax.partition._branches import BranchGraph, NodeClass, classify, find_branches
    from parallax.partition._cast_back import bodies_cast_back
    from parallax.partition._constants import find_constants
    from parallax.partition._fusion_groups import FusionGroups, group_fusions
    from parallax.partition._refine import BranchLoad, CostRule, PaperRule, RefinementRule
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_apart": "split_around is_isolated groups_of",
            "_branches": "BranchGraph NodeClass classify find_branches",
            "_cast_back": "bodies_cast_back",
            "_constants": "find_constants",
            "_refine": "BranchLoad CostRule PaperRule RefinementRule",
            "_fusion_groups": "FusionGroups group_fusions",
        },
        packages=("candidates", "padding", "regions"),
    )

__all__ = [
    "BranchGraph",
    "BranchLoad",
    "CostRule",
    "FusionGroups",
    "NodeClass",
    "PaperRule",
    "RefinementRule",
    "bodies_cast_back",
    "classify",
    "find_branches",
    "find_constants",
    "group_fusions",
    "groups_of",
    "is_isolated",
    "split_around",
]
