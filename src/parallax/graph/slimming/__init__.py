"""Channels, neurons and heads that can go without a change of what a graph computes, and why each can or cannot.

Pure: the graph and the values of its constants come in, and what to cut where comes out. `parallax.model.slim_model`
does it.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.graph.slimming._find import find_cuts
    from parallax.graph.slimming._records import BIAS, ChannelCuts, ConstantCut, Refusal, Removal, Slimming
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_find": "find_cuts",
            "_records": "BIAS ChannelCuts ConstantCut Refusal Removal Slimming",
        },
    )

__all__ = [
    "BIAS",
    "ChannelCuts",
    "ConstantCut",
    "Refusal",
    "Removal",
    "Slimming",
    "find_cuts",
]
