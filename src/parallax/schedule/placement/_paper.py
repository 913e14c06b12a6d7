"""The system of the Parallax paper as one policy: what it would delegate, and the thresholds it goes by.

A baseline. What else is tried is kept where it is predicted to gain; this runs what the paper would run, even where
that is slower than the whole model, so that other plans can be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.partition import PaperRule
from parallax.partition.regions import PaperThresholds as RegionThresholds
from parallax.partition.regions import RegionPlan, RegionRule, find_regions
from parallax.schedule._plan import PAPER_POLICY
from parallax.schedule.placement._problem import Placement, PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperPolicy:
    """Parallax, arXiv 2512.11532, with all of its thresholds. As ``policy=`` it plans the whole model by them.

    1. Delegate pruning: greedy fragments that fail one of the three thresholds go back to the CPU.
    2. Branches and layers of what is left, each region one node; corrected where the printed loop leaves nodes out.
    3. Refinement: a layer runs side by side if each branch has enough operators, and their work is alike.
    4. An arena per branch, with bytes handed on to branches of later layers.
    5. Per layer the largest set of branches whose peaks fit into what is free, less a margin; the others one by one.
    6. At most ``max_threads`` threads.

    Where the paper says nothing we chose: threads are shared evenly by the branches that run side by side
    (``branch_threads``), branches do not separate what the runtime fuses, layers that run serially follow each other in
    one segment, and free memory is read once, when the plan is made.

    Args:
        min_nodes: operators that a delegated region must have (the paper's N).
        min_macs: multiply-accumulates that it must have (F).
        max_bytes_per_mac: bytes across its boundary that it may have for each of them (B/F).
        min_branch_nodes: operators that each branch of a parallel layer must have; the paper says "more than 2".
        max_imbalance: largest ratio of the most to the least work among them (beta).
        drop_outliers: False refuses a layer with a branch that fails, as the paper does; True leaves that branch out.
        margin: share of the free memory that stays free; the paper says 0.3 to 0.5.
        free_bytes: memory that is free; None: what the machine has free when the plan is made.
        max_threads: most threads at the same time; 6 in the paper's experiments.
        branch_threads: threads of each of the branches that run side by side; None: an even share.

    Raises: ConfigError for a threshold that is of no use.
    """

    min_nodes: int = 3
    min_macs: float = 1e9
    max_bytes_per_mac: float = 0.1
    min_branch_nodes: int = 3
    max_imbalance: float = 1.5
    drop_outliers: bool = False
    margin: float = 0.4
    free_bytes: int | None = None
    max_threads: int = 6
    branch_threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_nodes", 0), ("min_branch_nodes", 0), ("max_threads", 1)):
            _require_whole(name, getattr(self, name), least=least)
        for name, least in (("free_bytes", 0), ("branch_threads", 1)):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), least=least)
        for name, lowest, below in (
            ("min_macs", 0.0, math.inf),
            ("max_bytes_per_mac", 0.0, math.inf),
            ("max_imbalance", 1.0, math.inf),
            ("margin", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value < below:
                bounds = f"of at least {lowest:g}" if below == math.inf else f"from {lowest:g} to below {below:g}"
                raise ConfigError(f"{name}={value!r:.40} of {PAPER_POLICY}", fix=f"give a number {bounds}")

    @property
    def is_yardstick(self) -> bool:
        """Whether a session runs its plan whatever that gains."""
        return True

    @property
    def thresholds(self) -> RegionThresholds:
        """Those of delegated regions."""
        return RegionThresholds(
            min_nodes=self.min_nodes, min_macs=self.min_macs, max_bytes_per_mac=self.max_bytes_per_mac
        )

    @property
    def refinement(self) -> PaperRule:
        """What decides whether a layer runs side by side."""
        return PaperRule(min_nodes=self.min_branch_nodes, balance=self.max_imbalance, drop_outliers=self.drop_outliers)

    def regions(self, problem: PlacementProblem, device: int = 0) -> RegionPlan:
        """What a device keeps of its greedy fragments."""
        device_costs = problem.devices[device]
        return find_regions(
            problem.graph, problem.groups, device_costs, rule=RegionRule.PAPER, thresholds=self.thresholds
        )

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """Its regions on each device, for a judge to compare; how they then run is the judge's."""
        for device in range(len(problem.devices)):
            found = self.regions(problem, device)
            yield Placement.of_regions(problem, PAPER_POLICY, found, device=device)


def _require_whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r:.40} of {PAPER_POLICY}", fix=f"give a whole number of at least {least}")
