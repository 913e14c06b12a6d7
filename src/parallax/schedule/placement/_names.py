"""The placers that come with Parallax, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from parallax.schedule._plan import PAPER_POLICY
from parallax.schedule.placement._chain_dp import ChainDp
from parallax.schedule.placement._descent import Descent, QuickSearch
from parallax.schedule.placement._etf import EarliestFinish
from parallax.schedule.placement._fixed_share import FixedShare
from parallax.schedule.placement._paper import PaperPolicy
from parallax.schedule.placement._placers import (
    ByCost,
    CpuOnly,
    Device,
    Greedy,
    Heft,
    PaperThresholds,
    ShardRows,
)
from parallax.schedule.placement._problem import Placer
from parallax.schedule.placement._rows_and_regions import RowsAndRegions
from parallax.schedule.placement._stages import Stages
from parallax.schedule.placement._thresholds import ClosedForm, Intensity, Quadrants, Sparsity

PLACERS: Final[Mapping[str, Callable[..., Placer]]] = {
    "cpu": CpuOnly,
    "device": Device,
    "greedy": Greedy,
    "greedy-1": partial(Greedy, partitions=1),
    "greedy-3": partial(Greedy, partitions=3),
    "paper": PaperThresholds,
    PAPER_POLICY: PaperPolicy,
    "by-cost": ByCost,
    "heft": Heft,
    "etf": EarliestFinish,
    "chain-dp": ChainDp,
    "stages": Stages,
    "intensity": Intensity,
    "sparsity": Sparsity,
    "thresholds": Quadrants,
    "closed-form": ClosedForm,
    "shard-rows": ShardRows,
    "rows-and-regions": RowsAndRegions,
    "fixed-share": FixedShare,
    "local-search": QuickSearch,
    "descent": Descent,
}
"""What makes each of them; arguments are its settings."""
