"""A placement made branch by branch, each decided in turn: what a learned scheduler sees, and what each step costs.

Branches come in a topological order; a decision is whether the device runs the branch. After each, `bound_ns` says what
the whole takes at least, if all that is left were shared ideally: ``max(latest end, (t_cpu + t_dev + sum over the rest
of min(c, d)) / 2)``. What a step adds to it is what the step cost, and all steps together cost the makespan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from parallax.schedule.placement._branch_features import (
    BRANCH_COLUMNS,
    MACHINE_COLUMNS,
    BranchFeatures,
    Rows,
    scaled_work,
)
from parallax.schedule.placement._flows import CALLER
from parallax.schedule.placement._pieces import CPU_SIDE
from parallax.schedule.placement._problem import Placement

STEP_COLUMNS: Final = (
    "cpu is free",
    "device is free",
    "cpu end",
    "device end",
    "difference of ends",
    "needs a launch",
    "read share on device",
    "progress",
    "bound",
    "advice",
    "work above threshold",
    "zeros above threshold",
)
"""What changes from step to step. Times are by that of the better side alone, from when what the branch reads is
there; advice and thresholds are a proposer's, 0 without one."""

OBSERVATION_SIZE: Final = len(BRANCH_COLUMNS) + len(MACHINE_COLUMNS) + len(STEP_COLUMNS)


class Episode:
    """One placement in the making. Deterministic; costs are predicted roughly, as `QuickJudge` would before widths.

    Args:
        features: of the problem.
        advice: per row a proposer's inclination to the device, above 0 for it.
        thresholds: a proposer's (tau_rho, tau_I), the second as `scaled_work` has it.

    Attributes:
        bound_ns: what the whole takes at least, see the module.
        on_device: the decisions so far, one per row.
    """

    def __init__(
        self,
        features: BranchFeatures,
        advice: Sequence[float] | None = None,
        thresholds: tuple[float, float] | None = None,
    ) -> None:
        self.features = features
        self.on_device: list[bool] = []
        pieces, device = features.pieces, features.device
        self._advice = advice
        self._thresholds = thresholds
        self._row_of = {piece: row for row, piece in enumerate(features.shown)}
        self._cpu_ns, self._device_ns = pieces.wide_ns, pieces.device_ns[device]
        self._launch_ns = features.problem.devices[device].launch_ns
        self._reads: list[list[int]] = [[] for _ in range(len(pieces))]
        self._returning_ns = [0] * len(pieces)
        for number, flow in enumerate(pieces.flows):
            for reader in flow.readers:
                self._reads[reader].append(number)
            if flow.is_returned and flow.producer != CALLER:
                self._returning_ns[flow.producer] += flow.moving_ns[device]
        takes = [device in options for options in pieces.options]
        least = [
            min(here, there) if taken else here
            for here, there, taken in zip(self._cpu_ns, self._device_ns, takes, strict=True)
        ]
        self._left_ns = sum(least)
        self._least_ns = least
        self.reference_ns = max(1, min(sum(self._cpu_ns), self._device_alone_ns(takes)))
        self._sides: list[int] = []  # of the pieces placed so far
        self._ends: list[int] = []
        self._moved: set[tuple[int, int]] = set()  # (flow, side) of what was moved to a side that did not make it
        self._free = {CPU_SIDE: 0, device: 0}
        self._last_there: int | None = None
        self._piece = 0
        self._ready_known: dict[int, int] = {}  # per side, of the branch to decide on
        self.bound_ns = self._bound()
        self._skip()

    @property
    def is_done(self) -> bool:
        """Whether every branch is placed."""
        return self._piece >= len(self.features.pieces)

    @property
    def row(self) -> int:
        """The row of the branch to decide on."""
        return self._row_of[self._piece]

    def observe(self) -> Rows:
        """The branch to decide on: its row, the machine's and `STEP_COLUMNS`; of shape (`OBSERVATION_SIZE`,)."""
        piece, row, device = self._piece, self.row, self.features.device
        ready = {side: self._ready_ns(side) for side in self._free}
        ends = {side: self._end_ns(side) for side in self._free}
        base = min(ready.values())
        scale = 1 / self.reference_ns
        reads = [self.features.pieces.flows[number] for number in self._reads[piece]]
        moving = sum(flow.moving_ns[device] for flow in reads)
        there = sum(
            flow.moving_ns[device] for flow in reads if flow.producer != CALLER and self._sides[flow.producer] == device
        )
        tau_rho, tau_work = self._thresholds if self._thresholds is not None else (0.0, 0.0)
        has_thresholds = self._thresholds is not None
        step = (
            (self._free[CPU_SIDE] - base) * scale,
            (self._free[device] - base) * scale,
            (ends[CPU_SIDE] - base) * scale,
            (ends[device] - base) * scale,
            (ends[CPU_SIDE] - ends[device]) * scale,
            self._needs_launch(piece),
            there / moving if moving else 0.0,
            piece / len(self.features.pieces),
            self.bound_ns * scale,
            0.0 if self._advice is None else min(max(self._advice[row], -5.0), 5.0) / 5,
            scaled_work(self.features.flops[row]) - tau_work if has_thresholds else 0.0,
            self.features.zeros[row] - tau_rho if has_thresholds else 0.0,
        )
        observed = np.concatenate((self.features.branches[row], self.features.machine, np.array(step, np.float32)))
        clipped: Rows = np.clip(observed, -10, 10).astype(np.float32)
        return clipped

    def earliest_is_device(self) -> bool:
        """Whether the branch to decide on would end first on the device: what a list scheduler decides."""
        return self._end_ns(self.features.device) < self._end_ns(CPU_SIDE)

    def step(self, on_device: bool) -> int:
        """Decide on the branch, and go on to the next. Returns: by how many ns that raised `bound_ns`."""
        before = self.bound_ns
        self.on_device.append(on_device)
        self._put(self.features.device if on_device else CPU_SIDE)
        self._skip()
        return self.bound_ns - before

    def choices(self) -> list[bool]:
        """One choice per row, once all is decided."""
        device = self.features.device
        return [self._sides[piece] == device for piece in self.features.shown]

    def placement(self, label: str, *, ends_early: bool = False) -> Placement:
        """The placement that was made."""
        return self.features.placement(self.choices(), label, ends_early=ends_early)

    def _skip(self) -> None:
        """Place what there is nothing to decide about."""
        while not self.is_done:
            row = self._row_of.get(self._piece)
            if row is not None and self.features.movable[row]:
                return
            self._put(CPU_SIDE if row is not None else self.features.followed(self._piece, self._sides))

    def _put(self, side: int) -> None:
        piece, device = self._piece, self.features.device
        end = self._end_ns(side)
        for number in self._reads[piece]:
            flow = self.features.pieces.flows[number]
            at = CPU_SIDE if flow.producer == CALLER else self._sides[flow.producer]
            if at != side:
                if side == CPU_SIDE and (number, side) not in self._moved:
                    self._free[device] += flow.moving_ns[device]
                self._moved.add((number, side))
        self._left_ns -= self._least_ns[piece]
        self._sides.append(side)
        self._ends.append(end)
        self._free[side] = max(self._free[side], end)
        if side == device:
            self._last_there = piece
        self._piece += 1
        self._ready_known.clear()
        self.bound_ns = self._bound()

    def _bound(self) -> int:
        return max(*self._free.values(), (sum(self._free.values()) + self._left_ns) // 2)

    def _end_ns(self, side: int) -> int:
        """When the branch to decide on would end on a side."""
        piece = self._piece
        took = self._cpu_ns[piece]
        if side != CPU_SIDE:
            took = self._device_ns[piece] + self._returning_ns[piece]
            took += self._launch_ns if self._needs_launch(piece) else 0
        return max(self._free[side], self._ready_ns(side)) + took

    def _ready_ns(self, side: int) -> int:
        """When all that the branch to decide on reads is on a side."""
        known = self._ready_known.get(side)
        if known is not None:
            return known
        piece, device = self._piece, self.features.device
        ready = max((self._ends[before] for before in self.features.pieces.predecessors[piece]), default=0)
        for number in self._reads[piece]:
            flow = self.features.pieces.flows[number]
            home = flow.producer
            at, end = (CPU_SIDE, 0) if home == CALLER else (self._sides[home], self._ends[home])
            if at != side and (number, side) not in self._moved:
                ready = max(ready, end + flow.moving_ns[device])
        self._ready_known[side] = ready
        return ready

    def _needs_launch(self, piece: int) -> bool:
        return self._last_there is None or self._last_there not in self.features.pieces.predecessors[piece]

    def _device_alone_ns(self, takes: Sequence[bool]) -> int:
        there = sum(ns for ns, taken in zip(self._device_ns, takes, strict=True) if taken)
        here = sum(ns for ns, taken in zip(self._cpu_ns, takes, strict=True) if not taken)
        return there + here + (self._launch_ns if any(takes) else 0)
