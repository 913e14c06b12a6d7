"""What a placement costs, exactly: who computes what, and which tensors move between host and device.

The model is sequential: every unit's time on the side it is on, one launch per region, and each tensor moved
once where both sides need it. What runs at the same time is for the simulator to find out; this is what a
placement adds to the work there is. `RegionProblem` is what is given, `Assignment` a placement that can be changed
unit by unit at a cost that depends on the unit's own tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from parallax.graph import Dag

HOST: Final = -1
"""The place of what no region computes."""


class TensorTransfer(NamedTuple):
    """A tensor that could have to move."""

    name: str
    producer: int
    """The unit that computes it, or `HOST` for an input of the model."""
    readers: int
    """Units other than its producer that read it."""
    returned: bool
    """Whether the model hands it out, so that the host needs it at the end."""
    size_bytes: int
    up_ns: int
    down_ns: int
    """To move it to the device, and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionProblem:
    """The units of a graph, what each costs on either side, and the tensors between them."""

    dag: Dag
    takes: tuple[bool, ...]
    """Which units the device takes."""
    device_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    launch_ns: int
    """Of one region, whatever is in it."""
    tensors: tuple[TensorTransfer, ...]
    reads: tuple[tuple[int, ...], ...]
    """Per unit: what it reads and did not make, by index into ``tensors``."""
    writes: tuple[tuple[int, ...], ...]
    """Per unit: what it makes that others read or the model hands out."""
    folded: frozenset[int] = frozenset()
    """Nodes that are computed when the model is loaded, and cost neither side anything."""

    def __len__(self) -> int:
        return len(self.takes)


class Assignment:
    """A placement that is being worked on: each unit on the host or in a region.

    ``cost_ns`` is always that of the whole placement, launches and transfers included.
    """

    __slots__ = ("cost_ns", "device_readers", "members", "problem", "region_of")

    def __init__(self, problem: RegionProblem) -> None:
        self.problem = problem
        self.region_of = [HOST] * len(problem)
        self.device_readers = [0] * len(problem.tensors)
        self.members: dict[int, int] = {}
        """Region -> number of its units; a region without units is not there."""
        self.cost_ns = sum(problem.cpu_ns)

    def place(self, units: Iterable[int], region: int) -> int:
        """Move units to a region, or to the `HOST`. Returns what that adds to the cost (negative: it gains)."""
        before = self.cost_ns
        for unit in units:
            self._place(unit, region)
        return self.cost_ns - before

    def snapshot(self, units: Sequence[int]) -> list[int]:
        """Where units are, for `restore`."""
        return [self.region_of[unit] for unit in units]

    def restore(self, units: Sequence[int], places: Sequence[int]) -> None:
        """Put units back to where they were."""
        for unit, region in zip(units, places, strict=True):
            self._place(unit, region)

    def transfer_ns(self, number: int) -> int:
        """What moving this tensor costs in the placement as it is."""
        item = self.problem.tensors[number]
        readers = self.device_readers[number]
        if item.producer >= 0 and self.region_of[item.producer] >= 0:
            return item.down_ns if item.returned or readers < item.readers else 0
        return item.up_ns if readers else 0

    def _place(self, unit: int, region: int) -> None:
        was = self.region_of[unit]
        if was == region:
            return
        problem = self.problem
        members = self.members
        cost = 0
        if was >= 0:
            members[was] -= 1
            if not members[was]:
                del members[was]
                cost -= problem.launch_ns
        if region >= 0:
            count = members.get(region, 0)
            if not count:
                cost += problem.launch_ns
            members[region] = count + 1
        if (was >= 0) == (region >= 0):
            self.region_of[unit] = region
            self.cost_ns += cost
            return
        sign = 1 if region >= 0 else -1
        cost += sign * (problem.device_ns[unit] - problem.cpu_ns[unit])
        tensors, device_readers, region_of = problem.tensors, self.device_readers, self.region_of
        for number in problem.reads[unit]:
            item = tensors[number]
            readers = device_readers[number]
            device_readers[number] = readers + sign
            if item.producer >= 0 and region_of[item.producer] >= 0:
                if not item.returned:
                    # It goes back to the host as soon as one reader is there.
                    cost += item.down_ns * ((readers + sign < item.readers) - (readers < item.readers))
            else:
                cost += item.up_ns * ((readers + sign > 0) - (readers > 0))
        for number in problem.writes[unit]:
            item = tensors[number]
            readers = device_readers[number]
            down = item.down_ns if item.returned or readers < item.readers else 0
            up = item.up_ns if readers else 0
            cost += sign * (down - up)
        region_of[unit] = region
        self.cost_ns += cost


def cost_of(problem: RegionProblem, regions: Sequence[Sequence[int]]) -> int:
    """The cost of a placement, counted anew from nothing. O(V + E)."""
    place = [HOST] * len(problem)
    for region, units in enumerate(regions):
        for unit in units:
            place[unit] = region
    total = problem.launch_ns * len(regions)
    on_device = [0] * len(problem.tensors)
    for unit, region in enumerate(place):
        total += problem.cpu_ns[unit] if region == HOST else problem.device_ns[unit]
        if region != HOST:
            for number in problem.reads[unit]:
                on_device[number] += 1
    for number, item in enumerate(problem.tensors):
        if item.producer >= 0 and place[item.producer] != HOST:
            total += item.down_ns if item.returned or on_device[number] < item.readers else 0
        else:
            total += item.up_ns if on_device[number] else 0
    return total
