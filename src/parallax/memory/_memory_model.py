"""From a plan and its graph to memory plans: what depends on sizes is done per shape signature, the rest once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from parallax._record import dataclass
from parallax.errors import ConfigError
from parallax.graph import OpGraph, SizeTable, TensorInfo, bind_dims, size_expression
from parallax.memory._arena import ArenaLayout, ArenaPlan, Effort, placement_order, plan_arena
from parallax.memory._lifetimes import Lifetimes, find_lifetimes
from parallax.memory._peaks import GroupPeak, PeakTable, input_symbols
from parallax.memory._protocols import PlanLike

_ROOM_TO_IMPROVE: Final = 1.02
"""From this multiple of its lower bound on, an arena is worth a thorough search ..."""
_THOROUGH_PLANS: Final = 2
"""... this many times per cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the boundary tensors of a plan's runs live, and what its segments need, for one shape signature."""

    dims: tuple[tuple[str, int], ...]
    """The dimensions it is for, by name, ascending."""
    arena: ArenaPlan
    peaks: tuple[GroupPeak, ...]
    """Per segment. With the arena in use, what a running segment adds to it is ``interior_bytes``."""


class MemoryModel:
    """What a plan fixes of its memory whatever the shapes: lifetimes, size expressions, the events of peaks.

    Sizes come from inferred types, which for some operators are beliefs; a run must compare what it is about
    to write with its slot (`ArenaSlot.size_bytes`) and keep a tensor of another size out of the arena.

    Args:
        plan: a plan that `verify_plan` accepts. It says whether tensors share one arena, or each branch has its own.
        graph: the graph it was made for, with inferred types.
        place_outputs: False leaves outputs of the model out of the arena, for an engine that hands them out.

    Raises: InternalError as `find_lifetimes`.
    """

    __slots__ = ("_layout", "_peaks", "_sizes", "lifetimes", "symbols", "types")

    def __init__(self, plan: PlanLike, graph: OpGraph, *, place_outputs: bool = True) -> None:
        self._layout = ArenaLayout.PER_BRANCH if plan.has_branch_arenas else ArenaLayout.SHARED
        self.lifetimes: Lifetimes = find_lifetimes(plan, graph.output_names, place_outputs=place_outputs)
        symbols = input_symbols(graph)
        self.types: tuple[TensorInfo, ...] = tuple(
            graph.tensors.get(name) or TensorInfo(name=name, kind="unknown") for name in self.lifetimes.tensors
        )
        """Of the boundary tensors, in the order of ``lifetimes.tensors``."""
        self._sizes = SizeTable([size_expression(info, symbols=symbols) for info in self.types])
        self._peaks = PeakTable(
            graph,
            [segment.nodes for segment in plan.segments],
            kept=[segment.outputs for segment in plan.segments],
        )
        self.symbols: tuple[str, ...] = tuple(sorted({*self._sizes.symbols, *self._peaks.symbols}))
        """Every dimension that any size depends on, ascending: the shape signature."""

    def sizes(self, dims: Mapping[str, int]) -> dict[str, int | None]:
        """Return the bytes of each boundary tensor for these dimensions, None where they are not known."""
        return dict(zip(self.lifetimes.tensors, self._sizes.bind(dims), strict=True))

    def peaks(self, dims: Mapping[str, int]) -> tuple[GroupPeak, ...]:
        """What each segment needs while it runs, for these dimensions."""
        return self._peaks.bind(dims)

    def plan(
        self,
        dims: Mapping[str, int],
        *,
        effort: Effort = Effort.THOROUGH,
        orders: Sequence[Sequence[int]] = (),
    ) -> MemoryPlan:
        """Plan for these dimensions (`bind_dims`); what they do not determine is dynamic.

        Args:
            orders: as in `plan_arena`.
        """
        lifetimes = self.lifetimes
        sizes = self._sizes.bind(dims)
        return MemoryPlan(
            dims=tuple([(name, dims[name]) for name in self.symbols if name in dims]),
            arena=plan_arena(lifetimes, sizes, effort=effort, orders=orders, layout=self._layout),
            peaks=self._peaks.bind(dims),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """What a `PlanCache` did so far."""

    hits: int
    misses: int
    evictions: int
    signatures: int
    """Held now."""


@dataclass(slots=True)
class _Entry:
    plan: MemoryPlan | None
    learned: dict[str, int]


class PlanCache:
    """Memory plans by shape signature; the least recently used is dropped. Not thread-safe.

    Sizes that inference could not follow are learned: told the shapes that a run produced (`learn`), the next plan
    for that signature places those tensors as well. A size that differs between two runs of one signature
    depends on the data; it is never trusted again, and its tensors stay dynamic.

    Where a quick plan is clearly larger than its lower bound, that signature is planned thoroughly, and later ones
    try the order in which that placed its tensors: sizes differ between signatures, their proportions hardly.
    Few signatures are worth that; all others are planned quickly.

    Args:
        memory_model: what is planned.
        capacity: signatures to hold, at least 1.
        effort: for each plan; the default is what a waiting run can afford.

    Raises: ConfigError for a capacity below 1.
    """

    __slots__ = (
        "_capacity",
        "_effort",
        "_entries",
        "_evictions",
        "_hits",
        "_misses",
        "_orders",
        "_untrusted",
        "memory_model",
    )

    def __init__(self, memory_model: MemoryModel, *, capacity: int = 64, effort: Effort = Effort.QUICK) -> None:
        if capacity < 1:
            raise ConfigError(f"a cache of {capacity} plans", fix="hold at least 1")
        self.memory_model = memory_model
        self._capacity = capacity
        self._effort = effort
        self._entries: OrderedDict[tuple[int | None, ...], _Entry] = OrderedDict()
        self._untrusted: set[str] = set()
        self._orders: list[tuple[int, ...]] = []
        self._hits = self._misses = self._evictions = 0

    def get(self, dims: Mapping[str, int]) -> MemoryPlan:
        """The plan for these dimensions of the inputs, and what was learned for them."""
        entry = self._entry(dims)
        if entry.plan is not None:
            self._hits += 1
            return entry.plan
        self._misses += 1
        entry.plan = self._planned({**entry.learned, **dims})
        return entry.plan

    def learn(self, dims: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> bool:
        """Take note of the shapes of boundary tensors that a run with these input dimensions produced.

        Returns: whether plans changed, so that `get` answers differently from now on.
        """
        entry = self._entry(dims)
        seen = bind_dims(self.memory_model.types, shapes)
        news = {
            name: value
            for name, value in seen.items()
            if name not in dims and name not in self._untrusted and entry.learned.get(name) != value
        }
        if not news:
            return False
        conflicting = [name for name in news if name in entry.learned]
        self._untrusted.update(conflicting)
        entry.learned.update(news)
        entry.plan = None
        if conflicting:
            for other in self._entries.values():
                if [name for name in conflicting if other.learned.pop(name, None) is not None]:
                    other.plan = None
        return True

    def statistics(self) -> CacheStatistics:
        """A snapshot."""
        return CacheStatistics(
            hits=self._hits, misses=self._misses, evictions=self._evictions, signatures=len(self._entries)
        )

    def _planned(self, dims: Mapping[str, int]) -> MemoryPlan:
        memory_model, orders = self.memory_model, self._orders
        plan = memory_model.plan(dims, effort=self._effort, orders=orders)
        arena = plan.arena
        if (
            self._effort is Effort.QUICK
            and len(orders) < _THOROUGH_PLANS
            and arena.arena_bytes > arena.lower_bound_bytes * _ROOM_TO_IMPROVE
        ):
            better = memory_model.plan(dims, effort=Effort.THOROUGH, orders=orders)
            orders.append(placement_order(better.arena, memory_model.lifetimes))
            if better.arena.arena_bytes < arena.arena_bytes:
                plan = better
        return plan

    def _entry(self, dims: Mapping[str, int]) -> _Entry:
        key = tuple([dims.get(name) for name in self.memory_model.symbols])
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(plan=None, learned={})
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
                self._evictions += 1
        else:
            self._entries.move_to_end(key)
        return entry
