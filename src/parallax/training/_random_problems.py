"""Random placement problems: graphs of real operators in real shapes, on devices that do not exist.

What a network learns should hold for models and devices that it was not shown, and there are few of either. Each
problem is drawn by a seeded generator, so that the same seed gives the same problems. Costs of the CPU are those of the
tables, with noise; a device's follow from drawn rates by the roofline model, with noise of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from parallax.adapt import CPU_NARROW, CPU_WIDE, HardwareState, in_state
from parallax.graph import CostModel, Node, OpGraph, Rejection, TensorInfo, Verdict, node_work
from parallax.partition import group_fusions
from parallax.partition.regions import DeviceCosts, TransferCost
from parallax.profile import estimate_costs, product_flops
from parallax.schedule.placement import Machine, PlacementProblem, weight_zeros

DEVICE: Final = "random device"
_FLOAT: Final = 1
_INPUT: Final = "x"
_NOISE: Final = 0.35
"""Standard deviation of the logarithm of what operators of a type take against the roofline model."""

_SLOWEST_CPU, _SLOWEST_DEVICE = 5.0, 8.0
"""Slow-downs are drawn between 1 and these; a third of all problems have none."""

_MOST_BLOCKS: Final = 60

_PRODUCTS: Final = frozenset({"Conv", "MatMul"})
_ACTIVATIONS: Final = ("Relu", "Relu", "Sigmoid", "Gelu", "HardSwish", "Clip", "Tanh")

Shape = tuple[int, ...]


def random_problem(generator: np.random.Generator) -> PlacementProblem:
    """A problem with one device. The same state of the generator gives the same problem."""
    graph = random_graph(generator)
    cores = int(generator.choice((1, 2, 4, 4, 6, 8)))
    zeros, worth = _random_zeros(graph, generator)
    costs = _random_costs(graph, cores, zeros, worth, generator)
    problem = PlacementProblem(
        graph=graph,
        groups=group_fusions(graph, fusion_safe=_unfused(graph)),
        devices=(_random_device(graph, costs.node_ns(cores), cores, generator),),
        costs=costs,
        machine=Machine(
            cores=cores,
            handover_ns=_drawn_ns(generator, 5_000, 40_000),
            segment_overhead_ns=_drawn_ns(generator, 4_000, 15_000),
            wide_start_ns=_drawn_ns(generator, 5_000, 80_000),
            crossing_ns_per_byte=float(generator.uniform(0, 0.05)),
        ),
        zeros=zeros,
        zero_worth=worth,
    )
    return in_state(problem, random_state(generator, DEVICE))


def random_state(generator: np.random.Generator, device: str) -> HardwareState:
    """A state of the machine: in a third of all cases the nominal one, else the CPU, the device or both slower."""
    slow_cpu, slow_device = (bool(drawn) for drawn in generator.random(2) < 0.58)
    factors: dict[str, float] = {}
    if slow_cpu:
        wide = float(_SLOWEST_CPU ** generator.random())
        # Of a machine that is shared, one thread may find a free core where several do not.
        narrow = wide if generator.random() < 0.5 else float(1 + (wide - 1) * generator.random())
        factors |= {CPU_NARROW: narrow, CPU_WIDE: wide}
    if slow_device:
        factors[device] = float(_SLOWEST_DEVICE ** generator.random())
    return HardwareState(slowdowns=MappingProxyType(factors))


# Graphs -----------------------------------------------------------------------------------------------------


def random_graph(generator: np.random.Generator) -> OpGraph:
    """A model of some dozens of operators: of images or of tokens, with branches that part and meet."""
    draft = _Draft()
    of_images = bool(generator.random() < 0.55)
    if of_images:
        side, channels = int(generator.choice((7, 14, 28, 56, 112))), int(generator.choice((16, 32, 64, 128)))
        shape: Shape = (1, channels, side, side)
    else:
        shape = (1, int(generator.choice((16, 49, 77, 128, 197, 256))), int(generator.choice((64, 192, 384, 512, 768))))
    draft.shapes[_INPUT] = shape
    open_tensors = [_INPUT]
    branching = float(generator.uniform(0.05, 0.45))
    for _ in range(int(generator.integers(3, _MOST_BLOCKS))):
        drawn = generator.random()
        if drawn < branching and len(open_tensors) < 6:
            open_tensors.append(open_tensors[_recent(generator, len(open_tensors))])
        elif drawn < 2 * branching and len(open_tensors) > 1:
            first = open_tensors.pop(_recent(generator, len(open_tensors)))
            second = open_tensors.pop(_recent(generator, len(open_tensors)))
            open_tensors.append(draft.joined(first, second, generator))
        else:
            place = _recent(generator, len(open_tensors))
            block = draft.image_block if of_images else draft.token_block
            open_tensors[place] = block(open_tensors[place], generator)
    return draft.graph(open_tensors)


def _recent(generator: np.random.Generator, size: int) -> int:
    """An index, the last ones more often: models go on from what they made last."""
    return size - 1 - min(int(generator.geometric(0.6)) - 1, size - 1)


@dataclass(slots=True)
class _Draft:
    """A graph in the making."""

    nodes: list[Node] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    weights: dict[str, Shape] = field(default_factory=dict)

    def add(self, op_type: str, reads: Sequence[str], shape: Shape, **attributes: object) -> str:
        """One operator; returns the tensor that it makes."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            Node(
                index=len(self.nodes),
                name=f"{op_type}_{len(self.nodes)}",
                op_type=op_type,
                domain="",
                inputs=tuple(reads),
                outputs=(name,),
                attributes=attributes,
            )
        )
        self.shapes[name] = shape
        return name

    def weight(self, shape: Shape) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return name

    def image_block(self, read: str, generator: np.random.Generator) -> str:
        """A convolution with what follows it, or something cheap."""
        batch, channels, height, width = self.shapes[read]
        drawn = generator.random()
        if drawn < 0.62:
            kernel = int(generator.choice((1, 1, 3, 3, 5)))
            is_depthwise = bool(generator.random() < 0.3)
            out = channels if is_depthwise else int(np.clip(channels * generator.choice((0.5, 1, 1, 2)), 8, 512))
            weight = self.weight((out, 1 if is_depthwise else channels, kernel, kernel))
            group = channels if is_depthwise else 1
            made = self.add(
                "Conv",
                (read, weight),
                (batch, out, height, width),
                group=group,
                kernel_shape=(kernel, kernel),
                pads=(kernel // 2,) * 4,
            )
            return self.activated(made, generator)
        if drawn < 0.72 and height > 7:
            op_type = str(generator.choice(("MaxPool", "AveragePool")))
            shape = (batch, channels, height // 2, width // 2)
            return self.add(op_type, (read,), shape, kernel_shape=(2, 2), strides=(2, 2))
        if drawn < 0.8:
            pooled = self.add("GlobalAveragePool", (read,), (batch, channels, 1, 1))
            weight = self.weight((channels, channels, 1, 1))
            gate = self.add("Conv", (pooled, weight), (batch, channels, 1, 1), group=1, kernel_shape=(1, 1))
            gate = self.add("Sigmoid", (gate,), (batch, channels, 1, 1))
            return self.add("Mul", (read, gate), self.shapes[read])
        return self.activated(read, generator, always=True)

    def token_block(self, read: str, generator: np.random.Generator) -> str:
        """A product with a weight, attention, a normalisation, or something cheap."""
        batch, tokens, width = self.shapes[read]
        drawn = generator.random()
        if drawn < 0.45:
            out = int(np.clip(width * generator.choice((0.5, 1, 1, 2, 4)), 32, 3072))
            made = self.add("MatMul", (read, self.weight((width, out))), (batch, tokens, out))
            return self.activated(made, generator)
        if drawn < 0.62:
            query, key, value = (
                self.add("MatMul", (read, self.weight((width, width))), (batch, tokens, width)) for _ in range(3)
            )
            turned = self.add("Transpose", (key,), (batch, width, tokens), perm=(0, 2, 1))
            scores = self.add("MatMul", (query, turned), (batch, tokens, tokens))
            shares = self.add("Softmax", (scores,), (batch, tokens, tokens), axis=-1)
            return self.add("MatMul", (shares, value), (batch, tokens, width))
        if drawn < 0.8:
            reads = (read, self.weight((width,)), self.weight((width,)))
            return self.add("LayerNormalization", reads, (batch, tokens, width), axis=-1)
        if drawn < 0.88:
            turned = self.add("Transpose", (read,), (batch, width, tokens), perm=(0, 2, 1))
            return self.add("Transpose", (turned,), (batch, tokens, width), perm=(0, 2, 1))
        return self.activated(read, generator, always=True)

    def activated(self, read: str, generator: np.random.Generator, *, always: bool = False) -> str:
        """The tensor behind an activation, in most cases."""
        if not always and generator.random() < 0.25:
            return read
        op_type = str(generator.choice(_ACTIVATIONS))
        return self.add(op_type, (read,), self.shapes[read])

    def joined(self, first: str, second: str, generator: np.random.Generator) -> str:
        """The sum of two tensors, or both one after the other; brought to the same shape first."""
        shape, other = self.shapes[first], self.shapes[second]
        if len(shape) == 4 and shape[2:] != other[2:]:
            second = self.add("Resize", (second,), (*other[:2], *shape[2:]), mode="nearest")
            other = self.shapes[second]
        axis = 1 if len(shape) == 4 else 2
        if shape == other and generator.random() < 0.6:
            return self.add("Add", (first, second), shape)
        total = shape[axis] + other[axis]
        joined = tuple(total if place == axis else size for place, size in enumerate(shape))
        made = self.add("Concat", (first, second), joined, axis=axis)
        if total <= 512:
            return made
        # Where branches meet again and again, widths would double without end.
        if len(shape) == 4:
            narrow = (shape[0], 256, *shape[2:])
            return self.add("Conv", (made, self.weight((256, total, 1, 1))), narrow, group=1, kernel_shape=(1, 1))
        return self.add("MatMul", (made, self.weight((total, 512))), (*shape[:2], 512))

    def graph(self, ends: Sequence[str]) -> OpGraph:
        """What was drafted; it returns these tensors, and whatever nobody reads."""
        producers = {node.outputs[0]: node.index for node in self.nodes}
        consumers: dict[str, list[int]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                consumers.setdefault(name, []).append(node.index)
        returned = [*ends, *(name for name in producers if name not in consumers)]
        shapes = self.shapes | self.weights
        tensors = {name: TensorInfo(name=name, dtype=_FLOAT, shape=shape) for name, shape in shapes.items()}
        return OpGraph(
            name="random",
            nodes=tuple(self.nodes),
            inputs=(tensors[_INPUT],),
            overridable=(),
            outputs=tuple(tensors[name] for name in dict.fromkeys(returned) if name in producers),
            tensors=tensors,
            initializers={name: tensors[name] for name in self.weights},
            producers=producers,
            consumers={name: tuple(readers) for name, readers in consumers.items()},
        )


def _unfused(graph: OpGraph) -> frozenset[str]:
    """Tensors that a runtime's optimiser would leave: all but those between a product and its activation."""
    fused = {
        graph.nodes[before].outputs[0]
        for node in graph.nodes
        if node.op_type in _ACTIVATIONS
        for before in graph.predecessors[node.index]
        if graph.nodes[before].op_type in _PRODUCTS and graph.successors[before] == (node.index,)
    }
    return frozenset(graph.tensors) - fused


# Costs ------------------------------------------------------------------------------------------------------


def _random_zeros(graph: OpGraph, generator: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """The share of zeros per weight, and what zeros are worth per operator; in half of all cases there are none."""
    if generator.random() < 0.5:
        return {}, {}
    shares = {name: float(generator.random() ** 2 * 0.95) for name in graph.initializers}
    return shares, {op_type: float(generator.uniform(0, 0.7)) for op_type in ("Conv", "MatMul")}


def _random_costs(
    graph: OpGraph, cores: int, zeros: dict[str, float], worth: dict[str, float], generator: np.random.Generator
) -> CostModel:
    """The tables', with noise per type of operator and per node, and less where zeros save time."""
    factors = []
    by_type = _noise_by_type(graph, generator)
    for node in graph.nodes:
        saved = worth.get(node.op_type, 0.0) * weight_zeros(graph, (node.index,), zeros)
        factors.append(by_type[node.op_type] * _noise(generator) * (1 - saved))
    costs = estimate_costs(graph, cores=cores)
    rows = tuple(
        tuple(max(1, round(ns * factor)) for ns, factor in zip(row, factors, strict=True)) for row in costs.durations_ns
    )
    return replace(costs, durations_ns=rows)


def _random_device(graph: OpGraph, cpu_ns: Sequence[int], cores: int, generator: np.random.Generator) -> DeviceCosts:
    """A device of drawn rates, slower than the CPU or up to sixty times as fast, that refuses some operators."""
    flops_per_ns = product_flops(cores) / 1e9 * 10 ** generator.uniform(-0.2, 1.8)
    bytes_per_ns = 10 ** generator.uniform(0.6, 2.4)
    dispatch_ns = 10 ** generator.uniform(2.5, 4.3)
    by_type = _noise_by_type(graph, generator)
    refused_types = frozenset(
        sorted(by_type)[number] for number in np.flatnonzero(generator.random(len(by_type)) < 0.12)
    )
    refused_share = float(generator.choice((0.0, 0.0, 0.03, 0.15)))
    declined: list[Rejection | None] = []
    device_ns, flops = [], []
    for node in graph.nodes:
        work = node_work(graph, node)
        computing = max((work.flops or 0) / flops_per_ns, (work.bytes or 0) / bytes_per_ns)
        flops.append(work.flops or 0)
        device_ns.append(round(dispatch_ns + computing * by_type[node.op_type] * _noise(generator)))
        no = node.op_type in refused_types or generator.random() < refused_share
        declined.append(Rejection(verdict=Verdict.UNSUPPORTED_OPERATOR, detail=node.op_type) if no else None)
    is_unified = generator.random() < 0.3
    return DeviceCosts(
        device=DEVICE,
        declined=tuple(declined),
        device_ns=tuple(device_ns),
        cpu_ns=tuple(cpu_ns),
        flops=tuple(flops),
        launch_ns=_drawn_ns(generator, 2_000, 400_000),
        transfer=TransferCost(
            fixed_ns=_drawn_ns(generator, 500, 100_000),
            ns_per_byte=0.0 if is_unified else float(10 ** generator.uniform(-2, 0.3)),
        ),
    )


def _noise_by_type(graph: OpGraph, generator: np.random.Generator) -> dict[str, float]:
    return {op_type: _noise(generator) for op_type in dict.fromkeys(node.op_type for node in graph.nodes)}


def _noise(generator: np.random.Generator) -> float:
    return float(np.exp(_NOISE * generator.standard_normal()))


def _drawn_ns(generator: np.random.Generator, least: float, most: float) -> int:
    """Drawn evenly between the logarithms of both."""
    return round(float(least * (most / least) ** generator.random()))
