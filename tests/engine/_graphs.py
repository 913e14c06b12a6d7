"""Models cut at every tensor, and the same segments called one after the other as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import RuntimeOptions
from parallax.engine import CompiledSegment, Executor, RunBudget
from parallax.engine._compile import compile_segment
from parallax.engine._lanes import LanePool
from parallax.engine._view_ops import find_view_ops
from parallax.graph import OpGraph
from parallax.memory import MemoryModel
from parallax.model import Model, load_model
from parallax.schedule import Plan, Provenance, Segment

QUIET = RuntimeOptions(log_severity_level=4)


def value(array: Any, dtype: Any = np.float32) -> Any:
    """A C OrtValue that holds its memory, as those that ONNX Runtime allocates do (one made from numpy does not)."""
    return C.OrtValue.from_dlpack(np.array(array, dtype=dtype).__dlpack__(), False)


def proto(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None] | None],
    outputs: Sequence[str],
    *,
    initializers: Sequence[onnx.TensorProto] = (),
    input_types: Mapping[str, int] | None = None,
    output_types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    types = {**(input_types or {}), **(output_types or {})}
    graph = helper.make_graph(
        list(nodes),
        "cut",
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), s) for name, s in inputs.items()],
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in outputs],
        initializer=list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def plan_of_nodes(
    graph: OpGraph, *, lanes: int = 2, cores: int = 2, peaks: Mapping[int, int] | None = None, backfill: bool = True
) -> Plan:
    """Every node a segment of its own."""
    fed = {info.name for info in (*graph.inputs, *graph.overridable)}
    segments = []
    for node in graph.nodes:
        reads = dict.fromkeys(name for name in node.inputs if name in fed or name in graph.producers)
        segments.append(
            Segment(
                index=node.index,
                name=f"segment_{node.index}",
                nodes=(node.index,),
                inputs=tuple(reads),
                outputs=tuple(n for n in node.outputs if n in graph.consumers or n in graph.output_names),
                predecessors=graph.predecessors[node.index],
                width=1,
                priority=len(graph.nodes) - node.index,
                lane=None,
                cost_ns=1000,
                peak_bytes=(peaks or {}).get(node.index, 0),
                reason="hand-made",
            )
        )
    return Plan(
        format_version=1,
        structure_digest="",
        policy="adaptive",
        cores=cores,
        lanes=lanes,
        backfill=backfill,
        segments=tuple(segments),
        provenance=Provenance(
            source="forced", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
        ),
    )


class Cut:
    """A model cut at every tensor. ``memory_model`` False: the executor has the segments' own types to go by."""

    def __init__(
        self,
        source: onnx.ModelProto,
        *,
        pool: LanePool,
        lanes: int = 2,
        memory_model: bool | MemoryModel = True,
        peaks: Mapping[int, int] | None = None,
        backfill: bool = True,
        prefetcher: Any = None,
        view_ops: bool = True,
    ) -> None:
        self.model: Model = load_model(source)
        graph = self.model.graph
        self.plan = plan_of_nodes(graph, lanes=lanes, peaks=peaks, backfill=backfill)
        self.segments: list[CompiledSegment] = [compile_segment(self.model, part, QUIET) for part in self.plan.segments]
        self.outputs = [info.name for info in graph.outputs]
        if memory_model is True:
            memory_model = MemoryModel(self.plan, self.model.inferred(), place_outputs=False)
        self.executor = Executor(
            self.plan,
            self.segments,
            inputs=[info.name for info in (*graph.inputs, *graph.overridable)],
            outputs=self.outputs,
            pool=pool,
            memory_model=memory_model or None,
            prefetcher=prefetcher,
            view_ops=find_view_ops(graph, self.plan) if view_ops else (),
        )

    def reference(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """The same segments in the plan's order, each called by name with outputs that the runtime allocates."""
        known = dict(feeds)
        for segment in self.segments:
            read = {name: known[name] for name in segment.inputs if name in known}
            made = segment.session.run_with_ort_values(read, list(segment.outputs), C.RunOptions())
            known.update(zip(segment.outputs, made, strict=True))
        return [known[name].numpy() for name in self.outputs]

    def check(self, feeds: Mapping[str, Any], *, budget: RunBudget | None = None) -> list[Any]:
        """Run, compare bit for bit, and return the C OrtValues."""
        expected = self.reference(feeds)
        got = self.executor.run(feeds, self.outputs, budget=budget)
        for name, one, other in zip(self.outputs, got, expected, strict=True):
            array = one.numpy()
            assert array.dtype == other.dtype, name
            assert array.shape == other.shape, name
            assert array.tobytes() == other.tobytes(), name
        return got

    def poison(self) -> None:
        """Overwrite the arenas of idle contexts, so that nothing left there by an earlier run can be right."""
        arenas = self.executor._arenas
        assert arenas is not None
        for context in arenas._idle:
            if context.arena is not None:
                context.arena._bytes[:] = 0xFF

    def places(self) -> dict[str, Any]:
        """Of the plan that the last run used."""
        arenas = self.executor._arenas
        assert arenas is not None
        (layout,) = list(arenas._idle[-1]._layouts.values())[-1:]
        return dict(layout.plan.places)


@st.composite
def models(draw: st.DrawFn, *, symbolic: bool = True, data_dependent: bool = True) -> onnx.ModelProto:
    """Random graphs over x: [n, m], of tensors with k * n rows. Sizes differ, and some depend on data."""
    rows: dict[str, int] = {"x": 1, "base": 1}
    nodes: list[onnx.NodeProto] = [helper.make_node("Relu", ["x"], ["base"])]
    odd: list[str] = []
    types: dict[str, int] = {}
    for number in range(draw(st.integers(2, 14))):
        name = f"t{number}"
        choice = draw(st.sampled_from(["unary", "unary", "binary", "concat", "split", "nonzero"]))
        first = draw(st.sampled_from(sorted(rows)))
        if choice == "binary":
            same = sorted(other for other, count in rows.items() if count == rows[first])
            second = draw(st.sampled_from(same))
            nodes.append(helper.make_node(draw(st.sampled_from(["Add", "Mul", "Sub"])), [first, second], [name]))
            rows[name] = rows[first]
        elif choice == "concat":
            second = draw(st.sampled_from(sorted(rows)))
            if rows[first] + rows[second] > 12:
                continue
            nodes.append(helper.make_node("Concat", [first, second], [name], axis=0))
            rows[name] = rows[first] + rows[second]
        elif choice == "split" and rows[first] % 2 == 0:
            nodes.append(helper.make_node("Split", [first], [name, f"{name}_b"], axis=0, num_outputs=2))
            rows[name] = rows[f"{name}_b"] = rows[first] // 2
        elif choice == "nonzero" and data_dependent:
            nodes.append(helper.make_node("NonZero", [first], [name]))
            nodes.append(helper.make_node("Neg", [name], [f"{name}_neg"]))
            odd.append(f"{name}_neg")
            types[f"{name}_neg"] = TensorProto.INT64
        else:
            operator = draw(st.sampled_from(["Relu", "Neg", "Abs", "Identity", "Sigmoid"]))
            nodes.append(helper.make_node(operator, [first], [name]))
            rows[name] = rows[first]
    read = {name for node in nodes for name in node.input}
    made = [name for node in nodes for name in node.output]
    sinks = [name for name in made if name not in read]
    extra = [name for name in made if name in read and name in rows and draw(st.integers(0, 5)) == 0]
    outputs = list(dict.fromkeys([*sinks, *extra]))
    shape: list[int | str | None] = ["n", draw(st.sampled_from([None, "m"]))] if symbolic else [3, 16]
    return proto(nodes, {"x": shape}, outputs, output_types=types)


def ladder_model(rungs: int, shape: Sequence[int | str | None] = ("n",)) -> onnx.ModelProto:
    nodes, top = [], "x"
    for rung in range(rungs):
        nodes += [
            helper.make_node("Relu", [top], [f"left_{rung}"]),
            helper.make_node("Neg", [top], [f"right_{rung}"]),
            helper.make_node("Add", [f"left_{rung}", f"right_{rung}"], [f"joint_{rung}"]),
        ]
        top = f"joint_{rung}"
    return proto(nodes, {"x": shape}, [top])
