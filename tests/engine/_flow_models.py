"""Models with control flow: small ones for single facts, and three whole ones (detector, decoder, switch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import RuntimeOptions
from parallax.engine import Executor, compile_plan
from parallax.model import Model, load_model
from parallax.planner import whole_plan
from parallax.planner._lowering import lower_bodies
from parallax.planner._tables import forced_body_plan, forced_plan
from parallax.schedule import Plan, Segment

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

EMULATED = "emulated:pixel-6-gpu"
DENSE = frozenset({"MatMul", "Conv", "Gemm", "Relu", "Tanh", "Mul", "Add"})


def info(name: str, dtype: int = FLOAT, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "flow", list(inputs), list(outputs), initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs), initializer=list(initializers))


def counting_loop(
    *, rank: int = 0, growing: bool = False, count: str = "M", condition: str = "C", limit: int = 4
) -> onnx.ModelProto:
    """Loop over v: adds what it captures, collects v and the iteration number, stops after ``limit`` iterations."""
    shape = [1] * rank
    grow = helper.make_node("Concat", ["v", "sum"], ["v_out"], axis=0)
    keep = helper.make_node("Relu", ["sum"], ["v_out"])
    looped = body(
        [
            helper.make_node("Add", ["v", "outer"], ["sum_raw"]),
            helper.make_node("Mul", ["sum_raw", "scale"], ["scaled"]),
            helper.make_node("Neg", ["v"], ["negated"]),
            helper.make_node("Max", ["scaled", "negated"], ["sum"]),
            grow if growing else keep,
            helper.make_node("Less", ["i", "limit"], ["go"]),
            helper.make_node("Identity", ["i"], ["number"]),
            helper.make_node("ReduceSum", ["v_out"], ["total"], keepdims=0),
        ],
        [info("i", INT64, shape), info("c", BOOL, shape), info("v")],
        [
            info("go", BOOL),
            info("v_out"),
            info("number", INT64),
            info("sum" if not growing else "total"),
        ],
        [constant("limit", [limit] if rank else limit, np.int64), constant("scale", [0.5])],
    )
    return model(
        [
            helper.make_node("Neg", ["x"], ["outer"]),
            helper.make_node("Loop", [count, condition, "x"], ["y", "numbers", "sums"], name="loop", body=looped),
            helper.make_node("Abs", ["y"], ["z"]),
        ],
        [
            info("M", INT64, []),
            info("C", BOOL, None if rank else []),
            info("x", FLOAT, [1, 3] if growing else ["n", 3]),
        ],
        [info("z"), info("numbers", INT64), info("sums")],
    )


def scan(
    *, axis: int = 0, out_axis: int = 0, backwards: Sequence[int] = (0, 0), out_backwards: int = 0
) -> onnx.ModelProto:
    """Scan over two inputs along ``axis`` with a running sum."""
    scanned = body(
        [
            helper.make_node("Add", ["state", "a"], ["sum"]),
            helper.make_node("Mul", ["sum", "b"], ["product"]),
            helper.make_node("Sub", ["product", "bias"], ["state_out"]),
            helper.make_node("Relu", ["product"], ["row"]),
        ],
        [info("state"), info("a"), info("b")],
        [info("state_out"), info("row"), info("sum")],
    )
    attributes: dict[str, Any] = {
        "num_scan_inputs": 2,
        "scan_input_axes": [axis, axis],
        "scan_input_directions": list(backwards),
        "scan_output_axes": [out_axis, 0],
        "scan_output_directions": [out_backwards, 0],
    }
    shape: list[Any] = [2, 3]
    shape.insert(axis, "t")
    return model(
        [
            helper.make_node(
                "Scan", ["s", "p", "q"], ["last", "rows", "sums"], name="scan", body=scanned, **attributes
            ),
            helper.make_node("Neg", ["last"], ["end"]),
        ],
        [info("s", FLOAT, [2, 3]), info("p", FLOAT, shape), info("q", FLOAT, shape)],
        [info("end"), info("rows"), info("sums")],
        [constant("bias", np.full(3, 0.25))],
    )


def nested() -> onnx.ModelProto:
    """An If whose arm holds a Loop whose body holds an If; each captures from the levels above."""
    inner_then = body([helper.make_node("Add", ["v", "h"], ["t"])], [], [info("t")])
    inner_else = body([helper.make_node("Sub", ["v", "offset"], ["e"])], [], [info("e")])
    looped = body(
        [
            helper.make_node("ReduceSum", ["v"], ["total"], keepdims=0),
            helper.make_node("Less", ["total", "limit"], ["small"]),
            helper.make_node("If", ["small"], ["v_out"], then_branch=inner_then, else_branch=inner_else),
            helper.make_node("Identity", ["c"], ["c_out"]),
        ],
        [info("i", INT64, []), info("c", BOOL, []), info("v")],
        [info("c_out", BOOL), info("v_out")],
        [constant("limit", 10.0)],
    )
    then = body(
        [
            helper.make_node("Abs", ["x"], ["h"]),
            helper.make_node("Loop", ["M", "", "x"], ["looped"], body=looped),
            helper.make_node("Neg", ["looped"], ["r"]),
        ],
        [],
        [info("r")],
    )
    other = body([helper.make_node("Mul", ["x", "offset"], ["o"])], [], [info("o")])
    return model(
        [
            helper.make_node("If", ["C"], ["y"], name="choose", then_branch=then, else_branch=other),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        [info("M", INT64, []), info("C", BOOL, []), info("x", FLOAT, ["n"])],
        [info("z"), info("y")],
        [constant("offset", [1.5])],
    )


def captured_weights_model() -> onnx.ModelProto:
    """Initializers that are captured, fed as initial state, and may be overridden; a Constant that is captured."""
    looped = body(
        [
            helper.make_node("MatMul", ["v", "big"], ["m"]),
            helper.make_node("Add", ["m", "bias"], ["n"]),
            helper.make_node("Reshape", ["n", "shape"], ["o"]),
            helper.make_node("Identity", ["c"], ["go"]),
        ],
        [info("i", INT64, []), info("c", BOOL, []), info("v")],
        [info("go", BOOL), info("o")],
    )
    big = constant("big", np.random.default_rng(0).normal(size=(64, 64)) * 0.1)
    return model(
        [
            helper.make_node("Constant", [], ["shape"], value=constant("", [2, 64], np.int64)),
            helper.make_node("Constant", [], ["three"], value=constant("", 3, np.int64)),
            helper.make_node("Loop", ["three", "", "initial"], ["looped"], name="loop", body=looped),
            helper.make_node("Add", ["looped", "x"], ["y"]),
        ],
        [info("x", FLOAT, [2, 64]), info("bias", FLOAT, [64])],
        [info("y")],
        [big, constant("initial", np.ones((2, 64))), constant("bias", np.full(64, 0.5))],
    )


def detector(seed: int = 0) -> onnx.ModelProto:
    """Boxes from an image of any size, suppressed, counted, and refined by an If where there are any."""
    rng = np.random.default_rng(seed)
    weights = [
        constant("w0", rng.normal(size=(8, 3, 3, 3)) * 0.4),
        constant("w1", rng.normal(size=(5, 8, 1, 1)) * 0.4),
        constant("refine", rng.normal(size=(4, 4)) * 0.2),
        constant("flat", [1, 5, -1], np.int64),
        constant("most", [6], np.int64),
        constant("overlap", [0.5]),
        constant("least", [0.62]),
        constant("four", [4], np.int64),
        constant("five", [5], np.int64),
        constant("zero", [0], np.int64),
        constant("one", [1], np.int64),
        constant("two", [2], np.int64),
        constant("none", 0, np.int64),
    ]
    node = helper.make_node
    then = body(
        [
            node("Gather", ["boxes_flat", "kept"], ["picked"], axis=0),
            node("MatMul", ["picked", "refine"], ["moved"]),
            node("Tanh", ["moved"], ["bent"]),
            node("Add", ["picked", "bent"], ["refined"]),
            node("Relu", ["refined"], ["found"]),
        ],
        [],
        [info("found")],
    )
    other = body([node("Gather", ["boxes_flat", "kept"], ["nothing"], axis=0)], [], [info("nothing")])
    return model(
        [
            node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["c0"], ["r0"]),
            node("Conv", ["r0", "w1"], ["c1"]),
            node("Reshape", ["c1", "flat"], ["heads"]),
            node("Slice", ["heads", "zero", "four", "one"], ["raw_boxes"]),
            node("Slice", ["heads", "four", "five", "one"], ["raw_scores"]),
            node("Transpose", ["raw_boxes"], ["boxes"], perm=[0, 2, 1]),
            node("Sigmoid", ["raw_scores"], ["scores"]),
            node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["selected"]),
            node("Slice", ["selected", "two", "three", "one"], ["column"]),
            node("Squeeze", ["column", "one"], ["kept"]),
            node("Squeeze", ["boxes", "zero"], ["boxes_flat"]),
            node("Size", ["kept"], ["count"]),
            node("Greater", ["count", "none"], ["any"]),
            node("If", ["any"], ["result"], name="refine_boxes", then_branch=then, else_branch=other),
            node("NonZero", ["result"], ["where"]),
            node("Transpose", ["where"], ["places"], perm=[1, 0]),
        ],
        [info("x", FLOAT, [1, 3, "h", "w"])],
        [info("result"), info("places", INT64), info("selected", INT64)],
        [*weights, constant("three", [3], np.int64)],
    )


def decoder(seed: int = 1) -> onnx.ModelProto:
    """Greedy decoding: a Loop that ends with a token, grows its sequence and collects the scores; TopK at the end."""
    rng = np.random.default_rng(seed)
    node = helper.make_node
    looped = body(
        [
            node("Gather", ["embedding", "token"], ["embedded"], axis=0),
            node("MatMul", ["state", "recur"], ["carried"]),
            node("MatMul", ["embedded", "enter"], ["entered"]),
            node("Add", ["carried", "entered"], ["mixed"]),
            node("Add", ["mixed", "context"], ["conditioned"]),
            node("Tanh", ["conditioned"], ["state_out"]),
            node("MatMul", ["state_out", "leave"], ["logits"]),
            node("ArgMax", ["logits"], ["token_out"], axis=1, keepdims=0),
            node("Concat", ["sequence", "token_out"], ["sequence_out"], axis=0),
            node("Equal", ["token_out", "end"], ["ended"]),
            node("Not", ["ended"], ["go_on"]),
            node("Squeeze", ["go_on"], ["go"]),
            node("Squeeze", ["logits", "first"], ["row"]),
        ],
        [
            info("i", INT64, []),
            info("c", BOOL, []),
            info("token", INT64),
            info("state"),
            info("sequence", INT64),
        ],
        [info("go", BOOL), info("token_out", INT64), info("state_out"), info("sequence_out", INT64), info("row")],
        [constant("end", [0], np.int64)],
    )
    return model(
        [
            node("MatMul", ["x", "encode"], ["encoded"]),
            node("Relu", ["encoded"], ["lit"]),
            node("ReduceMax", ["lit"], ["context"], axes=[0], keepdims=1),
            node(
                "Loop",
                ["M", "", "start", "context", "nothing"],
                ["t", "s", "tokens", "scores"],
                name="decode",
                body=looped,
            ),
            node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=0),
            node("Shape", ["best"], ["steps"]),
            node("Min", ["steps", "three"], ["k"]),
            node("TopK", ["best", "k"], ["top", "at"], axis=0),
        ],
        [info("x", FLOAT, ["n", 6]), info("M", INT64, [])],
        [info("tokens", INT64), info("scores"), info("top"), info("at", INT64)],
        [
            constant("encode", rng.normal(size=(6, 8))),
            constant("embedding", rng.normal(size=(5, 8))),
            constant("recur", rng.normal(size=(8, 8)) * 0.7),
            constant("enter", rng.normal(size=(8, 8)) * 0.7),
            constant("leave", rng.normal(size=(8, 5))),
            constant("start", [1], np.int64),
            constant("nothing", np.zeros(0), np.int64),
            constant("first", [0], np.int64),
            constant("three", [3], np.int64),
        ],
    )


def switch(seed: int = 2) -> onnx.ModelProto:
    """An If between two convolutional arms whose outputs differ in size."""
    rng = np.random.default_rng(seed)
    node = helper.make_node
    then = body(
        [
            node("Conv", ["x", "wide"], ["wide_0"], pads=[1, 1, 1, 1]),
            node("Relu", ["wide_0"], ["wide_1"]),
            node("MaxPool", ["x"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Concat", ["wide_1", "pooled"], ["both"], axis=1),
        ],
        [],
        [info("both")],
    )
    other = body(
        [node("Conv", ["x", "narrow"], ["narrow_0"], strides=[2, 2]), node("Relu", ["narrow_0"], ["narrow_1"])],
        [],
        [info("narrow_1")],
    )
    return model(
        [
            node("ReduceMean", ["x"], ["mean"], keepdims=0),
            node("Greater", ["mean", "edge"], ["bright"]),
            node("If", ["bright"], ["features"], name="arms", then_branch=then, else_branch=other),
            node("ReduceMax", ["features"], ["y"], axes=[2, 3], keepdims=0),
            node("NonZero", ["y"], ["where"]),
        ],
        [info("x", FLOAT, [1, 2, "h", "w"])],
        [info("y"), info("where", INT64), info("features")],
        [
            constant("wide", rng.normal(size=(4, 2, 3, 3))),
            constant("narrow", rng.normal(size=(3, 2, 2, 2))),
            constant("edge", 0.0),
        ],
    )


def detector_feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    height, width = rng.integers(4, 12, size=2)
    return {"x": (rng.normal(size=(1, 3, height, width)) * rng.choice([0.01, 1.0])).astype(np.float32)}


def decoder_feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    count = int(rng.integers(1, 9))
    return {
        "x": rng.normal(size=(int(rng.integers(1, 6)), 6)).astype(np.float32),
        "M": np.array(count, np.int64),
    }


def switch_feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    height, width = rng.integers(3, 9, size=2)
    return {"x": (rng.normal(size=(1, 2, height, width)) + rng.choice([-0.3, 0.3])).astype(np.float32)}


Feeds = Callable[[np.random.Generator], dict[str, np.ndarray]]
WHOLE: Mapping[str, tuple[Callable[[], onnx.ModelProto], Feeds]] = {
    "detector": (detector, detector_feeds),
    "decoder": (decoder, decoder_feeds),
    "switch": (switch, switch_feeds),
}


def lowered_plan(source: Model, *, cut: bool = True, cores: int = 2) -> Plan:
    """Whatever can be lowered is; the rest cut at every branch, or one segment before, beside and after."""
    plan = forced_plan(source, cores=cores) if cut else whole_plan(source, "", cores=cores, width=cores)
    return lower_bodies(source, plan, plan_body=forced_body_plan, min_gain=0)


def on_device(source: Model, plan: Plan, *, backend: str = EMULATED, queue: bool = False) -> Plan:
    """The plan with the segments of its bodies that hold dense operators on another backend, on a queue if asked."""

    def place(body_model: Model, inner: Plan) -> Plan:
        lane = inner.lanes
        segments: list[Segment] = []
        for segment in inner.segments:
            segment = bodies_of(body_model, segment)
            types = {body_model.graph.nodes[index].op_type for index in segment.nodes}
            if not segment.bodies and types & DENSE:
                segment = replace(segment, backend=backend)
                if queue:
                    segment = replace(segment, width=0, lane=lane)
            segments.append(segment)
        lanes = inner.lanes + 1 if queue and any(segment.lane == lane for segment in segments) else inner.lanes
        return replace(inner, segments=tuple(segments), lanes=lanes)

    def bodies_of(outer: Model, segment: Segment) -> Segment:
        if not segment.bodies:
            return segment
        (node,) = (index for index in segment.nodes if outer.graph.nodes[index].bodies)
        models = {made.attribute: made.model for made in outer.bodies(node)}
        placed = tuple(replace(entry, plan=place(models[entry.attribute], entry.plan)) for entry in segment.bodies)
        return replace(segment, bodies=placed)

    return replace(plan, segments=tuple(bodies_of(source, segment) for segment in plan.segments))


def value(array: np.ndarray) -> Any:
    is_bool = array.dtype == np.bool_
    return C.OrtValue.from_dlpack(np.array(array.view(np.uint8) if is_bool else array).__dlpack__(), is_bool)


class Lowered:
    """A model run by a lowered plan, and ONNX Runtime beside it."""

    def __init__(self, proto: onnx.ModelProto, plan: Callable[[Model], Plan] = lowered_plan) -> None:
        self.model = load_model(proto)
        self.plan = Plan.from_json(plan(self.model).to_json())
        self.executor: Executor = compile_plan(self.model, self.plan, RuntimeOptions(log_severity_level=4))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.reference = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        self.outputs = [entry.name for entry in self.model.graph.outputs]
        self.inputs = [entry.name for entry in self.model.graph.inputs]

    @property
    def lowered(self) -> list[Segment]:
        return [segment for segment in self.plan.segments if segment.bodies]

    def run(self, feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        made = self.executor.run({name: value(array) for name, array in feeds.items()}, self.outputs, options)
        return [entry.numpy() for entry in made]

    def check(self, feeds: Mapping[str, np.ndarray], *, rtol: float = 0.0) -> list[np.ndarray]:
        known = {entry.name for entry in self.reference.get_inputs()}
        expected = self.reference.run(self.outputs, {name: array for name, array in feeds.items() if name in known})
        made = self.run(feeds)
        for name, one, other in zip(self.outputs, made, expected, strict=True):
            assert one.dtype == other.dtype, name
            assert one.shape == other.shape, (name, one.shape, other.shape)
            if rtol:
                np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol, err_msg=name)
            else:
                assert one.tobytes() == other.tobytes(), name
        return made
