"""What is said of delegate regions: a device's costs, the regions chosen from it, and a reason per node."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from parallax.graph import Dag, Rejection, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCost:
    """What moving a tensor between host and device takes, in ns; either way costs the same."""

    fixed_ns: int = 0
    """Per tensor: a synchronisation, a mapping."""
    ns_per_byte: float = 0.0
    """0 where host and device share memory and nothing is copied."""

    def ns(self, size_bytes: int) -> int:
        """The time for one tensor of that size."""
        return self.fixed_ns + round(size_bytes * self.ns_per_byte)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCosts:
    """What a device says of each node of a graph, and what the work would cost on it. One entry per node."""

    device: str
    """Names the device for people."""
    declined: tuple[Rejection | None, ...]
    """None where the device takes the node."""
    device_ns: tuple[int, ...]
    """Time on the device, dispatch included; where it declines, what it would take for work of that size."""
    cpu_ns: tuple[int, ...]
    """Time on the CPU, at the width at which it would run there."""
    flops: tuple[int, ...]
    """Work, two per multiply-accumulate. Only `RegionRule.PAPER` looks at it."""
    launch_ns: int
    """Of one region, whatever is in it: to submit it and to learn that it has ended."""
    transfer: TransferCost

    @property
    def balanced_share(self) -> float:
        """The device's share of the work with which both sides, if all of it could be shared, would end together."""
        there = sum(ns for ns, refusal in zip(self.device_ns, self.declined, strict=True) if refusal is None)
        here = sum(self.cpu_ns)
        return here / max(1, here + there)


class RegionRule(enum.Enum):
    """How regions are chosen."""

    MODEL = "model"
    """What gains compute + launch + transfers against the CPU."""
    PAPER = "paper"
    """Greedy fragments that pass the paper's thresholds for N, F and B/F."""
    GIVEN = "given"
    """What the caller wants on the device, each connected piece a region."""
    GREEDY = "greedy"
    """Every supported node, in the fewest fragments, as ONNX Runtime's and TFLite's delegates group them. Tensors
    between fragments stay on the device, which theirs do not: see `hosted_tensors`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperThresholds:
    """Parallax, arXiv 2512.11532, delegate cost model: offload iff N >= 3, F >= 1e9 and B/F <= 0.1 byte per MAC.

    The paper calls F multiply-accumulates, so that FLOPs are halved to get there; B counts every tensor that
    crosses the boundary, wherever the other side is.
    """

    min_nodes: int = 3
    min_macs: float = 1e9
    max_bytes_per_mac: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVerdict:
    """What becomes of one node, and why."""

    node: int
    verdict: Verdict
    region: int | None = None
    """Index of its region where it is taken."""
    detail: str = ""
    """What exactly the device declines."""
    device_ns: int | None = None
    cpu_ns: int | None = None
    """The two costs compared, both of the whole piece it was judged with, transfers and launch included."""
    measured: float | None = None
    bound: float | None = None
    """The two figures of a threshold of the paper's, in the order and unit `Verdict` tells."""

    @property
    def reason(self) -> str:
        """The verdict with what it rests on, for people."""
        text = self.verdict.meaning
        if self.detail:
            text += f": {self.detail}"
        if self.device_ns is not None and self.cpu_ns is not None:
            text += f" ({self.device_ns / 1e3:.1f} us on the device, {self.cpu_ns / 1e3:.1f} us on the CPU)"
        if self.measured is not None and self.bound is not None:
            text += f" ({self.measured:.3g}, bound {self.bound:.3g})"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Fusion groups that the device runs in one launch. Convex, and all regions can be contracted at once."""

    index: int
    groups: tuple[int, ...]
    nodes: tuple[int, ...]
    """Both ascending. Constants that its readers copy are among the nodes."""
    compute_ns: int
    launch_ns: int
    transfer_ns: int
    """What its tensors cost to move in this placement; one that two regions read is counted in the first."""
    cpu_ns: int
    """The same nodes on the CPU."""
    gain_ns: int
    """By how much the whole would take longer without this region; negative where it costs more than it gains."""
    flops: int
    uploads: tuple[str, ...]
    downloads: tuple[str, ...]
    """Tensors that move to the device for it, and back to the host from it."""
    kept: tuple[str, ...] = ()
    """Tensors it reads or makes that stay on the device: another region is at the other end."""

    @property
    def device_ns(self) -> int:
        """All it takes on the device: compute, launch and transfers."""
        return self.compute_ns + self.launch_ns + self.transfer_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How often a run crosses between host and device, and with how much."""

    fragments: int
    """Launches per run."""
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionPlan:
    """Which nodes run where on one device, and why. Times are of a run one thing after the other.

    ``cluster_of`` numbers clusters of fusion groups: each region is one, every other group its own; ``dag`` is the
    graph of these clusters in a topological order, as branches and schedules are built from it.
    """

    device: str
    rule: RegionRule
    regions: tuple[Region, ...]
    verdicts: tuple[NodeVerdict, ...]
    """One per node."""
    dag: Dag
    clusters: tuple[tuple[int, ...], ...]
    """Fusion groups of each node of ``dag``, ascending."""
    cluster_of: tuple[int, ...]
    region_clusters: tuple[int, ...]
    """The cluster of each region."""
    cpu_only_ns: int
    greedy_ns: int
    chosen_ns: int
    """Everything on the CPU; everything supported on the device; and this placement."""
    before: Traffic
    after: Traffic
    """Of the greedy placement, and of this one."""

    @property
    def is_cpu_only(self) -> bool:
        """Whether no region was worth it, or the device takes nothing."""
        return not self.regions

    @property
    def counted(self) -> str:
        """How many regions there are, for people: "1 region", "2 regions"."""
        return "1 region" if len(self.regions) == 1 else f"{len(self.regions)} regions"

    @property
    def reason(self) -> str:
        """The decision with the costs compared, for people."""
        figures = (
            f"{self.chosen_ns / 1e6:.3f} ms with {self.counted}, {self.cpu_only_ns / 1e6:.3f} ms on the "
            f"CPU alone, {self.greedy_ns / 1e6:.3f} ms with all {self.before.fragments} supported fragments"
        )
        if not self.regions:
            return f"nothing runs on {self.device}: no region gains anything ({figures})"
        return f"{self.counted} on {self.device} ({figures})"
