"""Executors over hand-made plans: one trivial operator per segment, wired by tensor names."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from parallax.backends.ort import RuntimeOptions, make_session
from parallax.engine import CompiledSegment, Executor
from parallax.engine._lanes import LanePool
from parallax.model import SegmentModel
from parallax.schedule import Plan, Provenance, Segment

Step = tuple[str, Sequence[str], str]
"""(operator, inputs, output)."""


def segment_model(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), [output], name=f"{operator}_{output}", **attributes)],
        "segment",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in dict.fromkeys(inputs)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def part_of(proto: bytes) -> SegmentModel:
    """A model without weights of its own, as a segment's."""
    return SegmentModel(name="part", proto=proto, weights={}, weight_types={})


def executor(
    steps: Sequence[Step],
    outputs: Sequence[str],
    *,
    pool: LanePool,
    lanes: int = 2,
    cores: int = 2,
    peak_bytes: int = 0,
) -> Executor:
    """Model input: "x". Each step is a segment; it depends on the steps that make its inputs."""
    producer: dict[str, int] = {}
    segments: list[Segment] = []
    compiled: list[CompiledSegment] = []
    for index, (operator, inputs, output) in enumerate(steps):
        segments.append(
            Segment(
                index=index,
                name=f"segment_{index}",
                nodes=(index,),
                inputs=tuple(dict.fromkeys(inputs)),
                outputs=(output,),
                predecessors=tuple(sorted({producer[name] for name in inputs if name in producer})),
                width=1,
                priority=len(steps) - index,
                lane=None,
                cost_ns=1000,
                peak_bytes=peak_bytes,
                reason="hand-made",
            )
        )
        producer[output] = index
        compiled.append(
            CompiledSegment(
                name=f"segment_{index}",
                node_names=(f"{operator}_{output}",),
                width=1,
                session=make_session(
                    part_of(segment_model(operator, inputs, output)),
                    width=1,
                    options=RuntimeOptions(log_severity_level=4),
                ),
                inputs=tuple(dict.fromkeys(inputs)),
                outputs=(output,),
                weights={},
            )
        )
    plan = Plan(
        format_version=1,
        structure_digest="",
        policy="adaptive",
        cores=cores,
        lanes=lanes,
        backfill=True,
        segments=tuple(segments),
        provenance=Provenance(
            source="forced", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
        ),
    )
    return Executor(plan, compiled, inputs=["x"], outputs=list(outputs), pool=pool)


def ladder(rungs: int) -> tuple[list[Step], str]:
    """Pairs of independent steps joined after each pair: every rung hands over between lanes."""
    steps: list[Step] = []
    top = "x"
    for rung in range(rungs):
        steps.append(("Relu", [top], f"left_{rung}"))
        steps.append(("Neg", [top], f"right_{rung}"))
        steps.append(("Add", [f"left_{rung}", f"right_{rung}"], f"joint_{rung}"))
        top = f"joint_{rung}"
    return steps, top
