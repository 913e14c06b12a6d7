"""What a batcher did so far, as a frozen record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """The fitted time of batches of one class of shapes in one setting: ``fixed_ms + request_ms x requests``."""

    shapes: str
    threads: int
    batches: int
    fixed_ms: float
    request_ms: float
    spread: float
    """The 95th percentile over the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingStats:
    """Describes one way to run batches, as it was measured when the batcher was made."""

    threads: int
    lanes: int
    """Batches at once."""
    best_size: int
    """Requests in a batch, at which one took least time."""
    measured_ms: tuple[tuple[int, float], ...]
    """(requests in a batch, milliseconds), with all lanes busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherStats:
    """Counts what a batcher did since it was made: requests and batches, unless a name says milliseconds (``_ms``)."""

    taken: int
    """Requests that were not refused."""
    refused_full: int
    """Refused since the queue was full."""
    refused_late: int
    """Refused since they could not have ended before their deadline."""
    dropped: int
    """Taken, but could not end in time any more."""
    cancelled: int
    completed: int
    failed: int
    late: int
    """Of the completed ones, those that ended after their deadline."""
    waiting: int
    running: int
    batches: int
    mean_batch: float
    """Requests per batch."""
    largest_batch: int
    p50_ms: float | None
    """Median of the last 2,048 answers' times from submission to answer; None before the first."""
    p99_ms: float | None
    reason: str
    """Why requests are run one by one; "" where they may run together."""
    settings: tuple[SettingStats, ...]
    classes: tuple[ClassStats, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        """Some lines for people."""
        times = "" if self.p50_ms is None else f", median {self.p50_ms:.1f} ms, 99% within {self.p99_ms:.1f} ms"
        lines = [
            f"{self.completed} answered, {self.failed} failed, {self.waiting} waiting, {self.running} running{times}",
            f"refused: {self.refused_full} with a full queue, {self.refused_late} that would have been late; "
            f"dropped: {self.dropped}; cancelled: {self.cancelled}; late: {self.late}",
            f"{self.batches} batches of {self.mean_batch:.1f} requests, at most {self.largest_batch}"
            + (f"; one by one: {self.reason}" if self.reason else ""),
        ]
        for setting in self.settings:
            points = ", ".join(f"{size}: {taken:.2f} ms" for size, taken in setting.measured_ms)
            threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
            lines.append(f"{setting.lanes} at once on {threads}, by size of batch: {points}")
        return "\n".join(lines)


def percentile_ms(samples_s: Sequence[float], share: float) -> float | None:
    """A percentile of times in seconds, in milliseconds; None of none."""
    if not samples_s:
        return None
    ordered = sorted(samples_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3
