"""Pieces of a model that a search moves from side to side as wholes, and all that it needs to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from parallax.schedule.placement._flows import CALLER
from parallax.schedule.placement._placers import branches_of
from parallax.schedule.placement._problem import Placement, PlacementProblem

CPU_SIDE: Final = -1
"""The CPU among sides; the others are indices into `PlacementProblem.devices`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceFlow:
    """Tensors with the same producer and readers among pieces."""

    producer: int
    """A piece, or `CALLER`."""
    readers: tuple[int, ...]
    """Other pieces, ascending."""
    moving_ns: tuple[int, ...]
    """Per device, what it takes to move them there or from there."""
    leaving_ns: int
    """What either of two parts of the CPU's pays for them, see `Crossings`."""
    is_returned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Parts of branches, numbered in a topological order. Times in ns."""

    groups: tuple[tuple[int, ...], ...]
    """Fusion groups of each piece."""
    options: tuple[tuple[int, ...], ...]
    """Sides that can run each piece, the CPU first."""
    predecessors: tuple[tuple[int, ...], ...]
    successors: tuple[tuple[int, ...], ...]
    narrow_ns: tuple[int, ...]
    """On one thread."""
    wide_ns: tuple[int, ...]
    """On all cores."""
    device_ns: tuple[tuple[int, ...], ...]
    """Per device and piece, without launch and transfers."""
    flows: tuple[PieceFlow, ...]
    below_ns: tuple[int, ...]
    above_ns: tuple[int, ...]
    """The CPU's time on the longest path from the beginning of each to the end of all, and to the end of each."""

    def __len__(self) -> int:
        return len(self.groups)

    @classmethod
    def of(cls, problem: PlacementProblem, starts: Iterable[Placement] = ()) -> Pieces:
        """Branches, divided where what devices take changes along them, or one of these placements does."""
        placed = [start.devices for start in starts]
        takes = problem.takes

        def kind(group: int) -> object:
            return [taken[group] for taken in takes], [devices[group] for devices in placed]

        pieces = tuple(sorted(branches_of(problem, kind), key=lambda piece: piece[0]))
        piece_of = [0] * len(problem.groups)
        for number, piece in enumerate(pieces):
            for group in piece:
                piece_of[group] = number
        dag = problem.groups.dag.predecessors
        predecessors = [
            sorted({piece_of[before] for group in piece for before in dag[group]} - {number})
            for number, piece in enumerate(pieces)
        ]
        successors: list[list[int]] = [[] for _ in pieces]
        for number, row in enumerate(predecessors):
            for before in row:
                successors[before].append(number)

        def sums(group_ns: Sequence[int]) -> tuple[int, ...]:
            return tuple(sum(group_ns[group] for group in piece) for piece in pieces)

        wide = sums(problem.cpu_ns)
        below, above = [0] * len(pieces), [0] * len(pieces)
        for number in reversed(range(len(pieces))):
            below[number] = wide[number] + max((below[after] for after in successors[number]), default=0)
        for number, row in enumerate(predecessors):
            above[number] = wide[number] + max((above[before] for before in row), default=0)
        return cls(
            groups=pieces,
            options=tuple(
                (CPU_SIDE, *(device for device, taken in enumerate(takes) if taken[piece[0]])) for piece in pieces
            ),
            predecessors=tuple(map(tuple, predecessors)),
            successors=tuple(map(tuple, successors)),
            narrow_ns=sums(problem.group_ns(problem.costs.node_ns(1))),
            wide_ns=wide,
            device_ns=tuple(sums(problem.group_ns(device.device_ns)) for device in problem.devices),
            flows=_merged(problem, piece_of),
            below_ns=tuple(below),
            above_ns=tuple(above),
        )

    def sides(self, placement: Placement) -> list[int]:
        """A placement as one side per piece: that of its first fusion group, where it can run there."""
        wanted = [placement.devices[piece[0]] for piece in self.groups]
        return [
            CPU_SIDE if side is None or side not in options else side
            for side, options in zip(wanted, self.options, strict=True)
        ]

    def placement(self, sides: Sequence[int], label: str, *, ends_early: bool = False) -> Placement:
        """The placement with these sides of the pieces."""
        devices: list[int | None] = [None] * sum(map(len, self.groups))
        for side, piece in zip(sides, self.groups, strict=True):
            if side != CPU_SIDE:
                for group in piece:
                    devices[group] = side
        return Placement(label=label, devices=tuple(devices), ends_early=ends_early)


def _merged(problem: PlacementProblem, piece_of: Sequence[int]) -> tuple[PieceFlow, ...]:
    """What passes between pieces, or in and out of the model."""
    per_byte = problem.machine.crossing_ns_per_byte
    found: dict[tuple[int, tuple[int, ...], bool], tuple[list[int], int]] = {}
    for flow in problem.flows:
        home = CALLER if flow.producer == CALLER else piece_of[flow.producer]
        readers = tuple(sorted({piece_of[reader] for reader in flow.readers} - {home}))
        if not readers and not flow.is_returned:
            continue
        key = home, readers, flow.is_returned
        moving, leaving = found.get(key, ([0] * len(problem.devices), 0))
        for device, device_costs in enumerate(problem.devices):
            moving[device] += device_costs.transfer.ns(flow.size_bytes)
        found[key] = moving, leaving + round(flow.size_bytes * per_byte)
    return tuple(
        PieceFlow(producer=home, readers=readers, moving_ns=tuple(moving), leaving_ns=leaving, is_returned=is_returned)
        for (home, readers, is_returned), (moving, leaving) in found.items()
    )
