"""What a placement costs, exactly: who computes what, and which tensors move between host and device.

The model is sequential: every fusion group's time on the side it is on, one launch per region, and each tensor moved
once where both sides need it. What runs at the same time is for the simulator to find out; this is what a
placement adds to the work there is. `RegionProblem` is what is given, `Assignment` a placement that can be changed
group by group at a cost that depends on the group's own tensors alone.
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
    """The group that computes it, or `HOST` for an input of the model."""
    readers: int
    """Groups other than its producer that read it."""
    returned: bool
    """Whether the model hands it out, so that the host needs it at the end."""
    size_bytes: int
    up_ns: int
    down_ns: int
    """To move it to the device, and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionProblem:
    """The groups of a graph, what each costs on either side, and the tensors between them."""

    dag: Dag
    takes: tuple[bool, ...]
    """Which groups the device takes."""
    device_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    launch_ns: int
    """Of one region, whatever is in it."""
    tensors: tuple[TensorTransfer, ...]
    reads: tuple[tuple[int, ...], ...]
    """Per group: what it reads and did not make, by index into ``tensors``."""
    writes: tuple[tuple[int, ...], ...]
    """Per group: what it makes that others read or the model hands out."""
    folded: frozenset[int] = frozenset()
    """Nodes that are computed when the model is loaded, and cost neither side anything."""

    def __len__(self) -> int:
        return len(self.takes)


class Assignment:
    """A placement that is being worked on: each group on the host or in a region.

    ``cost_ns`` is always that of the whole placement, launches and transfers included.
    """

    __slots__ = ("cost_ns", "device_readers", "members", "problem", "region_of")

    def __init__(self, problem: RegionProblem) -> None:
        self.problem = problem
        self.region_of = [HOST] * len(problem)
        self.device_readers = [0] * len(problem.tensors)
        self.members: dict[int, int] = {}
        """Region -> number of its groups; a region without groups is not there."""
        self.cost_ns = sum(problem.cpu_ns)

    def place(self, groups: Iterable[int], region: int) -> int:
        """Move groups to a region, or to the `HOST`. Returns what that adds to the cost (negative: it gains)."""
        before = self.cost_ns
        for group in groups:
            self._place(group, region)
        return self.cost_ns - before

    def snapshot(self, groups: Sequence[int]) -> list[int]:
        """Where groups are, for `restore`."""
        return [self.region_of[group] for group in groups]

    def restore(self, groups: Sequence[int], places: Sequence[int]) -> None:
        """Put groups back to where they were."""
        for group, region in zip(groups, places, strict=True):
            self._place(group, region)

    def transfer_ns(self, number: int) -> int:
        """What moving this tensor costs in the placement as it is."""
        item = self.problem.tensors[number]
        readers = self.device_readers[number]
        if item.producer >= 0 and self.region_of[item.producer] >= 0:
            return item.down_ns if item.returned or readers < item.readers else 0
        return item.up_ns if readers else 0

    def _place(self, group: int, region: int) -> None:
        was = self.region_of[group]
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
            self.region_of[group] = region
            self.cost_ns += cost
            return
        sign = 1 if region >= 0 else -1
        cost += sign * (problem.device_ns[group] - problem.cpu_ns[group])
        tensors, device_readers, region_of = problem.tensors, self.device_readers, self.region_of
        for number in problem.reads[group]:
            item = tensors[number]
            readers = device_readers[number]
            device_readers[number] = readers + sign
            if item.producer >= 0 and region_of[item.producer] >= 0:
                if not item.returned:
                    # It goes back to the host as soon as one reader is there.
                    cost += item.down_ns * ((readers + sign < item.readers) - (readers < item.readers))
            else:
                cost += item.up_ns * ((readers + sign > 0) - (readers > 0))
        for number in problem.writes[group]:
            item = tensors[number]
            readers = device_readers[number]
            down = item.down_ns if item.returned or readers < item.readers else 0
            up = item.up_ns if readers else 0
            cost += sign * (down - up)
        region_of[group] = region
        self.cost_ns += cost


def cost_of(problem: RegionProblem, regions: Sequence[Sequence[int]]) -> int:
    """The cost of a placement, counted anew from nothing. O(V + E)."""
    place = [HOST] * len(problem)
    for region, groups in enumerate(regions):
        for group in groups:
            place[group] = region
    total = problem.launch_ns * len(regions)
    on_device = [0] * len(problem.tensors)
    for group, region in enumerate(place):
        total += problem.cpu_ns[group] if region == HOST else problem.device_ns[group]
        if region != HOST:
            for number in problem.reads[group]:
                on_device[number] += 1
    for number, item in enumerate(problem.tensors):
        if item.producer >= 0 and place[item.producer] != HOST:
            total += item.down_ns if item.returned or on_device[number] < item.readers else 0
        else:
            total += item.up_ns if on_device[number] else 0
    return total
