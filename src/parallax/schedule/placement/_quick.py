"""A quick judge of placements: about what the simulator would say, in a fraction of its time.

For searches that look at hundreds of placements. It knows the pieces that are moved as wholes, what each takes on
either side and what passes between them, which is computed once; a placement is then a list of sides. Of one it finds
the regions, their launches and transfers, and schedules the rest around them: longest remaining path first, on one lane
of all cores and on a lane per core, whichever ends sooner. It leaves out what takes the simulator its time: a search
for widths, granularities other than pieces, and segments as values. The simulator judges the few best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from parallax.schedule.placement._flows import CALLER
from parallax.schedule.placement._pieces import CPU_SIDE, Pieces
from parallax.schedule.placement._problem import Placement, PlacementProblem

_NEVER: Final = 1 << 62
_NONE: Final[frozenset[int]] = frozenset()


class QuickJudge:
    """Predicts placements of one problem, of which every piece is on one side.

    Args:
        problem: what is to be placed.
        starts: placements that a search begins with: pieces end where one of them changes sides.
        pieces: those of the problem and these starts, where they are known.

    Attributes:
        pieces: what is moved as a whole.
        evaluations: how many placements were asked about so far, those not counted whose time was known.
    """

    def __init__(
        self, problem: PlacementProblem, starts: Iterable[Placement] = (), pieces: Pieces | None = None
    ) -> None:
        self.pieces = Pieces.of(problem, starts) if pieces is None else pieces
        self.evaluations = 0
        self._machine = problem.machine
        self._launch_ns = [device.launch_ns for device in problem.devices]
        pairs = zip(self.pieces.narrow_ns, self.pieces.wide_ns, strict=True)
        self._least_core_ns = [min(narrow, wide * problem.machine.cores) for narrow, wide in pairs]
        self._flows = [
            (flow.producer, flow.readers, flow.moving_ns, flow.leaving_ns, flow.is_returned)
            for flow in self.pieces.flows
        ]
        self._known: dict[tuple[tuple[int, ...], bool], int] = {}
        self._at_least: dict[tuple[tuple[int, ...], bool], int] = {}

    def cost_ns(self, sides: Sequence[int], *, ends_early: bool = False, bound_ns: int = _NEVER) -> int:
        """What a placement would take. About a millisecond for some hundred pieces.

        Args:
            sides: one per piece.
            ends_early: as `Placement.ends_early`.
            bound_ns: where it takes at least so long, some number from there on is answered, sooner.
        """
        key = (tuple(sides), ends_early)
        known = self._known.get(key)
        if known is not None:
            return known
        self.evaluations += 1
        # Descents that end at the same placement ask about all that are near it once more.
        at_least = self._at_least.get(key, 0)
        if at_least >= bound_ns:
            return at_least
        found = self._predict(sides, ends_early, bound_ns)
        (self._known if found < bound_ns else self._at_least)[key] = found
        return found

    def regions(self, sides: Sequence[int]) -> list[list[int]]:
        """Pieces of each region that these sides make."""
        _, root = self._regions(sides, ends_early=False)
        found: dict[int, list[int]] = {}
        for piece, side in enumerate(sides):
            if side >= 0:
                found.setdefault(root[piece], []).append(piece)
        return list(found.values())

    def _predict(self, sides: Sequence[int], ends_early: bool, bound_ns: int) -> int:
        waves, root = self._regions(sides, ends_early=ends_early)
        count, there = len(sides), self.pieces.device_ns
        region_ns = [0] * count
        for piece, side in enumerate(sides):
            if side >= 0:
                if root[piece] == piece:
                    region_ns[piece] += self._launch_ns[side]
                region_ns[root[piece]] += there[side][piece]
        extra_ns = self._charge_flows(sides, root, region_ns)
        if self._least_ns(sides, root, region_ns) >= bound_ns:
            return bound_ns
        tasks = [piece for piece in range(count) if sides[piece] < 0 or root[piece] == piece]
        tasks.sort(key=lambda piece: (waves[piece], sides[piece] >= 0, piece))
        succs: list[list[int]] = [[] for _ in range(count)]
        preds: list[list[int]] = [[] for _ in range(count)]
        for piece, before in enumerate(self.pieces.predecessors):
            task = root[piece]
            for other in before:
                if root[other] != task:
                    succs[root[other]].append(task)
                    preds[task].append(root[other])
        best = bound_ns
        for is_wide in (True, False) if self._machine.cores > 1 else (True,):
            own = self.pieces.wide_ns if is_wide else self.pieces.narrow_ns
            took = [
                (region_ns[piece] if side >= 0 else own[piece] + extra_ns[piece]) for piece, side in enumerate(sides)
            ]
            best = min(best, self._scheduled(tasks, sides, took, preds, succs, is_wide, best))
        return best

    def _charge_flows(self, sides: Sequence[int], root: Sequence[int], region_ns: list[int]) -> list[int]:
        """Add transfers to the regions that wait for them. Returns: per piece what it pays on the CPU for tensors that
        leave its caches."""
        extra_ns = [0] * len(sides)
        for home, readers, moving, leaving, is_returned in self._flows:
            here = CPU_SIDE if home == CALLER else sides[home]
            crosses, seen = False, 0
            for reader in readers:
                side = sides[reader]
                if side == here:
                    continue
                crosses = True
                if side < 0:
                    extra_ns[reader] += leaving
                elif not seen >> side & 1:
                    # The first to read it brings it over; for the others it is there.
                    seen |= 1 << side
                    region_ns[root[reader]] += moving[side]
            if here >= 0:
                if crosses or is_returned:
                    region_ns[root[home]] += moving[here]
            elif crosses and home != CALLER:
                extra_ns[home] += leaving
        return extra_ns

    def _least_ns(self, sides: Sequence[int], root: Sequence[int], region_ns: Sequence[int]) -> int:
        """For how long the busiest side is busy, at least."""
        busy = [0] * len(self._launch_ns)
        work = 0
        for piece, side in enumerate(sides):
            if side < 0:
                work += self._least_core_ns[piece]
            elif root[piece] == piece:
                busy[side] += region_ns[piece]
        return max([work // self._machine.cores, *busy])

    def _regions(self, sides: Sequence[int], *, ends_early: bool) -> tuple[list[int], list[int]]:
        """Per piece its wave, and a piece that stands for its region; on the CPU, itself. As `find_pieces` has them,
        but for pieces that could as well be launched later."""
        after, before = self._cuts(sides) if ends_early else (_NONE, _NONE)
        waves: list[int] = []
        root = list(range(len(sides)))

        def find(piece: int) -> int:
            while root[piece] != piece:
                root[piece] = root[root[piece]]
                piece = root[piece]
            return piece

        for piece, preds in enumerate(self.pieces.predecessors):
            side, wave = sides[piece], 0
            for other in preds:
                at, there = waves[other], sides[other]
                if there >= 0 and (there != side or other in after or piece in before):
                    at += 1
                if at > wave:
                    wave = at
            waves.append(wave)
            if side >= 0:
                for other in preds:
                    if sides[other] == side and waves[other] == wave:
                        first, second = find(other), find(piece)
                        root[max(first, second)] = min(first, second)
        return waves, [find(piece) if side >= 0 else piece for piece, side in enumerate(sides)]

    def _cuts(self, sides: Sequence[int]) -> tuple[frozenset[int], frozenset[int]]:
        """Pieces after which a region ends, and before which it begins, since the other side works there for longer
        than a launch takes."""
        pieces = self.pieces
        after, before = [], []
        for piece, side in enumerate(sides):
            if side < 0:
                continue
            launch_ns = self._launch_ns[side]
            if any(sides[other] != side and pieces.below_ns[other] > launch_ns for other in pieces.successors[piece]):
                after.append(piece)
            if any(sides[other] != side and pieces.above_ns[other] > launch_ns for other in pieces.predecessors[piece]):
                before.append(piece)
        return frozenset(after), frozenset(before)

    def _scheduled(
        self,
        tasks: Sequence[int],
        sides: Sequence[int],
        took: Sequence[int],
        preds: Sequence[Sequence[int]],
        succs: Sequence[Sequence[int]],
        is_wide: bool,
        bound_ns: int,
    ) -> int:
        """When all would be done: what is ready starts by the longest way to go, as soon as its side is free."""
        machine = self._machine
        is_alone = len(tasks) <= 1
        start_ns = 0 if is_alone else machine.segment_overhead_ns
        wake_ns = 0 if is_alone else machine.handover_ns
        wide_ns = machine.wide_start_ns if is_wide and machine.cores > 1 and not is_alone else 0
        levels = [0] * len(took)
        for task in reversed(tasks):
            levels[task] = took[task] + max([levels[other] for other in succs[task]], default=0)
        waiting = [len(row) for row in preds]
        ready: list[list[tuple[int, int]]] = [[] for _ in range(len(self._launch_ns) + 1)]  # the CPU's is the last
        free = [1] * len(self._launch_ns) + [1 if is_wide else machine.cores]
        ended = [0] * len(took)
        events: list[tuple[int, int]] = []
        for task in tasks:
            if not waiting[task]:
                heappush(ready[sides[task]], (-levels[task], task))
        now = begun = 0
        last = -1  # that the CPU ran as one lane
        while True:
            for side, heap in enumerate(ready):
                while heap and free[side]:
                    level, task = heappop(heap)
                    if now - level >= bound_ns:
                        return bound_ns
                    free[side] -= 1
                    delay = start_ns
                    if sides[task] >= 0:
                        delay += wake_ns
                    elif is_wide:
                        # What follows at once, with nobody waiting in between, is one segment with what was before.
                        if (
                            last >= 0
                            and ended[last] == now
                            and all(sides[other] < 0 for other in succs[last])
                            and all(sides[other] < 0 or ended[other] <= begun for other in preds[task])
                        ):
                            delay = 0
                        else:
                            begun = now
                            delay += wide_ns
                            if any(sides[other] >= 0 for other in preds[task]):
                                delay += wake_ns
                        last = task
                    heappush(events, (now + delay + took[task], task))
            if not events:
                return now
            now, task = heappop(events)
            if now >= bound_ns:
                return bound_ns
            ended[task] = now
            free[sides[task]] += 1
            for other in succs[task]:
                waiting[other] -= 1
                if not waiting[other]:
                    heappush(ready[sides[other]], (-levels[other], other))
