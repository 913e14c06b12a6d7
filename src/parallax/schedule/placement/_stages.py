"""Stages, after IOS: layers in a row are run at once, divided between the CPU and a device, and then the next ones.

IOS (Ding and others, IOS: Inter-Operator Scheduler for CNN Acceleration, MLSys 2021) finds by dynamic programming the
stages whose times add up to the least, over all "endings" of a graph; they are pruned. Here an ending is one of whole
layers of branches, and a stage is divided between two sides that differ, where IOS has streams of one GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.graph import UnionFind
from parallax.partition import find_branches
from parallax.schedule.placement._problem import Placement, PlacementProblem


@dataclass(frozen=True, slots=True)
class _Piece:
    """What of a stage is connected, so that one side runs all of it."""

    branches: tuple[int, ...]
    cpu_ns: int
    device_ns: int | None
    """With a launch and all transfers over its boundary; None where the device does not take all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of least total time, each divided so that the later of both sides ends as early as can be.

    Args:
        max_layers: most layers in a stage, which is what IOS prunes by.
    """

    max_layers: int = 12

    def __post_init__(self) -> None:
        if isinstance(self.max_layers, bool) or not isinstance(self.max_layers, int) or self.max_layers < 1:
            raise ConfigError(f"max_layers={self.max_layers!r:.40}", fix="give a whole number of at least 1")

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement per device. About O(branches x max_layers log branches)."""
        groups = problem.groups
        found = find_branches(groups.dag, control_flow=groups.control_flow)
        for device in range(len(problem.devices)):
            costs = _BranchCosts(problem, device, [branch.nodes for branch in found.branches], found.branch_of)
            layers = found.layers
            best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
            for end in range(1, len(layers) + 1):
                options = []
                for first in range(max(0, end - self.max_layers), end):
                    branches = [branch for layer in layers[first:end] for branch in layer]
                    stage_ns, on_device = costs.divide(branches)
                    options.append((best[first][0] + stage_ns, first, on_device))
                best.append(min(options))
            chosen: set[int] = set()
            at = len(layers)
            while at:
                _, first, on_device = best[at]
                chosen.update(group for branch in on_device for group in found.branches[branch].nodes)
                at = first
            yield Placement.on_device(problem, "stages", chosen, device=device)


class _BranchCosts:
    """What branches take on either side."""

    def __init__(
        self,
        problem: PlacementProblem,
        device: int,
        branches: Sequence[Sequence[int]],
        branch_of: Sequence[int],
    ) -> None:
        features, takes = problem.features, problem.takes[device]
        self._device_costs = problem.devices[device]
        self._cpu_ns = [sum(features[group].cpu_ns for group in nodes) for nodes in branches]
        self._device_ns: list[int | None] = []
        for nodes in branches:
            there = [features[group].device_ns[device] for group in nodes]
            taken = all(takes[group] for group in nodes)
            self._device_ns.append(sum(ns for ns in there if ns is not None) if taken else None)
        self._flows: list[tuple[frozenset[int], int]] = []
        self._flows_at: list[list[int]] = [[] for _ in branches]
        self._neighbours: list[set[int]] = [set() for _ in branches]
        for flow in problem.flows:
            if flow.producer >= 0:
                home = branch_of[flow.producer]
                for reader in flow.readers:
                    self._neighbours[home].add(branch_of[reader])
                    self._neighbours[branch_of[reader]].add(home)
            ends = frozenset(
                ([branch_of[flow.producer]] if flow.producer >= 0 else [-1])
                + [branch_of[reader] for reader in flow.readers]
                + ([-1] if flow.is_returned else [])
            )
            if len(ends) > 1:
                for branch in ends - {-1}:
                    self._flows_at[branch].append(len(self._flows))
                self._flows.append((ends, self._device_costs.transfer.ns(flow.size_bytes)))

    def divide(self, branches: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """The time of a stage, and the branches that the device runs in it."""
        pieces = self._pieces(branches)
        on_cpu = sum(piece.cpu_ns for piece in pieces)
        there = 0
        best: tuple[int, tuple[int, ...]] = (on_cpu, ())
        chosen: list[int] = []
        # What the device gains most by comes first; that far it is the best order for two sides that run side by side.
        taken = [(piece, piece.device_ns) for piece in pieces if piece.device_ns is not None]
        for piece, device_ns in sorted(taken, key=lambda pair: (pair[1] / max(1, pair[0].cpu_ns), pair[0].branches)):
            on_cpu -= piece.cpu_ns
            there += device_ns
            chosen.extend(piece.branches)
            best = min(best, (max(on_cpu, there), tuple(chosen)))
        return best

    def _pieces(self, branches: Sequence[int]) -> list[_Piece]:
        place = {branch: index for index, branch in enumerate(branches)}
        joined = UnionFind(len(branches))
        for branch, index in place.items():
            for other in self._neighbours[branch]:
                if other in place:
                    joined.union(index, place[other])
        parts: dict[int, list[int]] = {}
        for branch, index in place.items():
            parts.setdefault(joined.find(index), []).append(branch)
        return [self._piece(tuple(members)) for members in parts.values()]

    def _piece(self, members: tuple[int, ...]) -> _Piece:
        there = [self._device_ns[branch] for branch in members]
        total: int | None = None
        if None not in there:
            inside = frozenset(members)
            met = {index for branch in members for index in self._flows_at[branch]}
            moved = sum(ns for ends, ns in map(self._flows.__getitem__, met) if not ends <= inside)
            total = self._device_costs.launch_ns + sum(ns for ns in there if ns is not None) + moved
        return _Piece(members, sum(self._cpu_ns[branch] for branch in members), total)
