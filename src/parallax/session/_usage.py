"""What a session holds, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsage:
    """A snapshot of the memory of one session, all in bytes. None: it cannot be known, or there is no such thing.

    Tensors between segments lie in *arenas*, one per run in flight, which stay for the next run. An uncut session
    has none: there the runtime's own arena holds everything, and does not say how much.
    """

    planned_bytes: int | None
    """Of arenas, by the plans in use. None for an uncut session."""
    reserved_bytes: int | None
    """Address space of arenas. None for an uncut session."""
    touched_bytes: int | None
    """Of it, what was written to since it was reserved: at most this much is in memory. None for an uncut session."""
    run_peak_bytes: int | None
    """What one run holds at most: arena, outputs, and what segments running together make and use up inside. Estimated
    for the shapes of the last run; before one, and without a budget, for those planned for. None where sizes
    depend on what is not known."""
    weights_mapped_bytes: int | None
    """Weights that are pages of files, shared with every process that maps them. They take memory only while it is
    there, and no budget counts them."""
    weights_private_bytes: int | None
    """An upper bound on copies of weights that this session alone holds, as kernels want them laid out."""
    process_private_bytes: int | None
    """Of the whole process, other sessions and Python included: see `parallax.device.private_bytes`."""
    budget_bytes: int | None
    """What ``memory_budget=`` came to. None without one; so are the next four."""
    limit_bytes: int | None
    """What runs may hold together now: the budget less its margin, weights and the runtime's own, or less under
    pressure."""
    admitted_bytes: int | None
    """What runs in flight were admitted with."""
    admitted_peak_bytes: int | None
    """The most that was admitted at once since the session opened."""
    least_budget_bytes: int | None
    """The smallest budget that would do, for the shapes of ``run_peak_bytes``."""

    def to_json(self) -> dict[str, int | None]:
        """Field name -> bytes, or None."""
        return asdict(self)
