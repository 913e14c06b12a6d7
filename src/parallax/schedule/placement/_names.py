"""The placers that come with Parallax, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from parallax.schedule.placement._judge import LocalSearch
from parallax.schedule.placement._placers import ByCost, CpuOnly, Greedy, Heft, PaperThresholds, ShardRows
from parallax.schedule.placement._problem import Placer

PLACERS: Final[Mapping[str, Callable[[], Placer]]] = {
    "cpu": CpuOnly,
    "greedy": Greedy,
    "paper": PaperThresholds,
    "by-cost": ByCost,
    "heft": Heft,
    "shard-rows": ShardRows,
    "local-search": LocalSearch,
}
"""What makes each of them."""
