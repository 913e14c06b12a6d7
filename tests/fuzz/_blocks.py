"""The pieces that random models are made of: each reads matrices of a scope and gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.fuzz._scopes import FLOAT, WIDTH, Scope, matrix, value

Block = Callable[[Scope], str]

INT64, BOOL, STRING = TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING


def unary(s: Scope) -> str:
    kinds = ["Relu", "Sin", "Tanh", "Abs", "Neg", "Sigmoid", "Erf", "Identity", "Softplus", "Cos", "Elu", "Ceil"]
    kinds += ["HardSwish"] if s.opset >= 14 else []
    kinds += ["Mish"] if s.opset >= 18 else []
    kinds += ["Gelu"] if s.opset >= 20 else []
    return s.op(s.random.choice(kinds), s.pick())


def with_attributes(s: Scope) -> str:
    kind = s.random.choice(["LeakyRelu", "Elu", "HardSigmoid", "Selu", "ThresholdedRelu", "Celu"])
    if kind == "Celu" and s.opset < 12:
        kind = "Elu"
    return s.op(kind, s.pick(), alpha=s.random.choice([0.1, 0.25, 1.5]))


def binary(s: Scope) -> str:
    return s.calm(s.op(s.random.choice(["Add", "Sub", "Mul"]), s.pick(), s.pick()))


def with_constant(s: Scope) -> str:
    shape = s.random.choice([(), (1,), (WIDTH,), (1, WIDTH)])
    return s.op(s.random.choice(["Add", "Sub", "Mul", "Max"]), s.pick(), s.constant(s.draft.numbers(*shape)))


def several(s: Scope) -> str:
    return s.calm(
        s.op(s.random.choice(["Sum", "Mean", "Max", "Min"]), *(s.pick() for _ in range(s.random.randint(1, 4))))
    )


def shared_weight(s: Scope) -> str:
    weight = s.constant(s.draft.numbers(WIDTH, WIDTH))
    return s.op("Add", s.calm(s.op("MatMul", s.pick(), weight)), s.calm(s.op("MatMul", s.pick(), weight)))


def gemm(s: Scope) -> str:
    reads = [s.pick(), s.constant(s.draft.numbers(WIDTH, WIDTH))]
    if s.draft.chance(0.6):
        reads.append(s.constant(s.draft.numbers(WIDTH)))
    return s.calm(s.op("Gemm", *reads, transB=s.random.randint(0, 1), alpha=0.5))


def normalised(s: Scope) -> str:
    if s.opset >= 17 and s.draft.chance(0.6):
        outputs = s.add("LayerNormalization", [s.pick(), s.constant(s.draft.numbers(WIDTH))], s.random.choice([1, 3]))
        return outputs[0]
    scale, bias, mean = (s.constant(s.draft.numbers(WIDTH)) for _ in range(3))
    return s.op("BatchNormalization", s.pick(), scale, bias, mean, s.constant(np.abs(s.draft.numbers(WIDTH)) + 1))


def softmax(s: Scope) -> str:
    return s.op(s.random.choice(["Softmax", "LogSoftmax"]), s.pick(), axis=s.random.choice([1, -1]))


def clip(s: Scope) -> str:
    low = s.constant(-0.5) if s.draft.chance(0.5) else ""
    high = [s.constant(0.5)] if s.draft.chance(0.5) else []
    return s.op("Clip", s.pick(), low, *high)


def dropout(s: Scope) -> str:
    return s.add("Dropout", [s.pick()], s.random.choice([1, 2]))[0]


def casts(s: Scope) -> str:
    kind = s.random.choice([TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.DOUBLE])
    there = s.op("Cast", s.pick(), to=kind)
    if s.draft.chance(0.5):
        there = s.op("Abs", there)
    return s.op("Cast", there, to=FLOAT)


def comparison(s: Scope) -> str:
    mask = s.op(s.random.choice(["Greater", "Less"]), s.pick(), s.pick())
    if s.draft.chance(0.3):
        mask = s.op("Not", mask)
    return s.op("Where", mask, s.pick(), s.pick())


def split_concat(s: Scope) -> str:
    parts = s.split(s.pick(), s.random.choice([[4, 4], [2, 6], [1, 3, 4], [2, 2, 2, 2], [8, 0]]))
    parts = [s.op("Sin", part) if s.draft.chance(0.4) else part for part in parts]
    s.random.shuffle(parts)
    return s.op("Concat", *parts, axis=s.random.choice([1, -1]))


def reshaped(s: Scope) -> str:
    """Shape arithmetic as exporters write it."""
    source = s.pick()
    rows = s.op("Gather", s.op("Shape", source), s.constant(0, np.int64))
    wanted = s.op("Concat", s.unsqueeze(rows, 0), s.constant([2, -1], np.int64), axis=0)
    turned = s.op("Transpose", s.op("Reshape", source, wanted), perm=[0, 2, 1])
    return s.op("Reshape", turned, s.constant(s.random.choice([[0, WIDTH], [-1, WIDTH]]), np.int64))


def reduced(s: Scope) -> str:
    kind = s.random.choice(["Mean", "Sum", "Max", "Min", "L2", "SumSquare", "LogSumExp"])
    return s.calm(s.op("Sub", s.pick(), s.reduce(kind, s.pick(), [1])))


def sliced(s: Scope) -> str:
    """The columns backwards, or every other one twice."""
    if s.draft.chance(0.5):
        low, high, axis, step = ([n] for n in (WIDTH, -100, 1, -1))
        return s.op("Slice", s.pick(), *(s.constant(n, np.int64) for n in (low, high, axis, step)))
    bounds = (s.constant([n], np.int64) for n in (0, WIDTH, 1, 2))
    half = s.op("Slice", s.pick(), *bounds)
    return s.op("Concat", half, half, axis=1)


def gathered(s: Scope) -> str:
    order = list(range(WIDTH))
    s.random.shuffle(order)
    return s.op("Gather", s.pick(), s.constant(order, np.int64), axis=1)


def padded(s: Scope) -> str:
    pads = s.constant([0, 2, 0, 1], np.int64)
    wide = s.op("Pad", s.pick(), pads, *([s.constant(0.5)] if s.draft.chance(0.5) else []))
    return s.op("Slice", wide, *(s.constant([n], np.int64) for n in (1, 1 + WIDTH, 1)))


def best(s: Scope) -> str:
    values, places = s.add("TopK", [s.pick(), s.constant([WIDTH], np.int64)], 2, axis=1)
    if s.draft.chance(0.3):
        s.extra_outputs.append(value(places, INT64))
    return values


def scattered(s: Scope) -> str:
    source = s.pick()
    places = s.add("TopK", [source, s.constant([WIDTH], np.int64)], 2, axis=1)[1]
    return s.op("ScatterElements", s.pick(), places, s.pick(), axis=1)


def convolved(s: Scope) -> str:
    image = s.unsqueeze(s.pick(), 1)
    kernels = s.constant(s.draft.numbers(2, 1, 3))
    made = s.op("Relu", s.op("Conv", image, kernels, kernel_shape=[3], pads=[1, 1]))
    pooled = s.op("MaxPool", made, kernel_shape=[3], pads=[1, 1]) if s.draft.chance(0.5) else made
    return s.calm(s.reduce("Sum", pooled, [1], keepdims=0))


def recurrent(s: Scope) -> str:
    """One step over the rows as a batch, with inputs and outputs left out."""
    kind, gates = s.random.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    source = s.unsqueeze(s.pick(), 0)
    reads = [
        source,
        s.constant(s.draft.numbers(1, gates * WIDTH, WIDTH)),
        s.constant(s.draft.numbers(1, gates * WIDTH, WIDTH)),
    ]
    if s.draft.chance(0.5):
        reads.append(s.constant(s.draft.numbers(1, 2 * gates * WIDTH)))
    last = s.draft.fresh()
    s.add(kind, reads, ["", last], hidden_size=WIDTH)
    return s.squeeze(last, 0)


def einsum(s: Scope) -> str:
    if s.opset < 12:
        return gemm(s)
    return s.calm(s.op("Einsum", s.pick(), s.constant(s.draft.numbers(WIDTH, WIDTH)), equation="nk,km->nm"))


def tiled(s: Scope) -> str:
    narrow = s.reduce("Mean", s.pick(), [1])
    if s.draft.chance(0.5):
        return s.op("Tile", narrow, s.constant([1, WIDTH], np.int64))
    return s.op("Expand", narrow, s.constant([1, WIDTH], np.int64))


def integers(s: Scope) -> str:
    """Arithmetic on integers that are exact whatever computes them."""
    numbers = s.op("Cast", s.op("Shape", s.pick()), to=TensorProto.INT32)
    kind = s.random.choice(["Add", "Mul", "Mod", "Div", "Sub"])
    made = s.op(kind, numbers, s.constant([3, 5], np.int32))
    scale = s.reduce("Sum", s.op("Cast", made, to=FLOAT), [0])
    return s.calm(s.op("Mul", s.pick(), s.op("Mul", scale, s.constant(0.05))))


def found_rows(s: Scope) -> str:
    """How many rows there are depends on the data; the sum of them is handed on."""
    mask = s.op("Greater", s.reduce("Sum", s.pick(), [1], keepdims=0), s.constant(0.0))
    rows = s.op("Compress", s.pick(), mask, axis=0)
    if s.draft.chance(0.3):
        s.extra_outputs.append(value(rows, FLOAT))
    return s.calm(s.op("Add", s.pick(), s.reduce("Sum", rows, [0])))


def nothing(s: Scope) -> str:
    """Tensors without elements."""
    empty = s.constant(np.zeros((0, WIDTH), np.float32))
    return s.op("Concat", s.pick(), empty, axis=0) if s.draft.chance(0.5) else s.op("Concat", empty, s.pick(), axis=0)


def quantised(s: Scope) -> str:
    scale, zero = s.constant(0.02), s.constant(128, np.uint8)
    source = s.op("DequantizeLinear", s.op("QuantizeLinear", s.calm(s.pick()), scale, zero), scale, zero)
    if s.draft.chance(0.5):
        return source
    weight = s.constant(s.random_bytes(WIDTH, WIDTH), np.int8)
    floats = s.op("DequantizeLinear", weight, s.constant(0.01), s.constant(0, np.int8))
    made = s.op("MatMul", source, floats)
    if s.draft.chance(0.4):
        made = s.op("Add", made, s.op("MatMul", s.pick(), floats))
    return s.calm(made)


def quantised_blocks(s: Scope) -> str:
    """Block-quantised weights; alone or shared by two products."""
    if s.opset < 21 or s.kind == "function":
        return quantised(s)
    size, block = 32, 16
    values = [s.random.randint(0, 15) for _ in range(size * size)]
    weight, zero = s.draft.fresh("q"), s.draft.fresh("z")
    s.initializers.append(helper.make_tensor(weight, TensorProto.UINT4, [size, size], values))
    s.initializers.append(
        helper.make_tensor(zero, TensorProto.UINT4, [size // block, size], [8] * (size // block * size))
    )
    scale = s.constant(np.abs(s.draft.numbers(size // block, size)) * 0.1 + 0.01)
    floats = s.op("DequantizeLinear", weight, scale, zero, axis=0, block_size=block)
    wide = s.constant(s.draft.numbers(WIDTH, size))
    back = s.constant(s.draft.numbers(size, WIDTH))
    made = [s.op("MatMul", s.op("MatMul", s.calm(s.pick()), wide), floats) for _ in range(s.random.choice([1, 2]))]
    return s.calm(s.op("Sum", *(s.op("MatMul", s.calm(one), back) for one in made)))


def dynamic_quantised(s: Scope) -> str:
    values, scale, zero = s.add("DynamicQuantizeLinear", [s.pick()], 3)
    if s.draft.chance(0.5):
        return s.op("DequantizeLinear", values, scale, zero)
    product = s.op("MatMulInteger", values, s.constant(s.random_bytes(WIDTH, WIDTH), np.int8), zero)
    return s.calm(s.op("Mul", s.op("Cast", product, to=FLOAT), s.op("Mul", scale, s.constant(0.01))))


def conditional(s: Scope) -> str:
    """An If whose arms capture, on a condition that is computed or constant."""
    if s.depth >= 2:
        return unary(s)
    if s.draft.chance(0.3):
        condition = s.constant(s.draft.chance(0.5), np.bool_)
    else:
        condition = s.op("Greater", s.reduce("Sum", s.pick(), [0, 1], keepdims=0), s.constant(0.0))
    arms = []
    for _ in range(2):
        arm = s.body([])
        made = fill(arm, s.random.randint(1, 3))
        if made not in arm.made():
            made = arm.op("Identity", made)
        arms.append(arm.close([matrix(made)]))
    return s.op("If", condition, then_branch=arms[0], else_branch=arms[1])


def loop(s: Scope) -> str:
    """A Loop with a state, captures, and sometimes a stack of what it made."""
    if s.depth >= 2:
        return unary(s)
    number, condition, state = s.draft.fresh("i"), s.draft.fresh("go"), s.draft.fresh("s")
    inner = s.body([value(number, INT64, []), value(condition, BOOL, []), matrix(state)], [state])
    made = inner.calm(inner.op("Add", state, fill(inner, s.random.randint(1, 3))))
    on = inner.op("Identity", condition) if s.draft.chance(0.5) else condition
    outputs = [value(on, BOOL, []), matrix(made)]
    stacked = s.draft.chance(0.4)
    if stacked:
        outputs.append(matrix(inner.op("Neg", made)))
    count = "" if s.draft.chance(0.1) else s.constant(s.random.randint(0 if not stacked else 1, 3), np.int64)
    if not count:
        # Ends by its condition.
        inner.nodes = [node for node in inner.nodes if list(node.output) != [on]]
        on = inner.op("Less", number, inner.constant(1, np.int64))
        outputs[0] = value(on, BOOL, [])
    go = s.constant(True, np.bool_) if s.draft.chance(0.5) or not count else ""
    results = s.add("Loop", [count, go, s.pick()], len(outputs) - 1, body=inner.close(outputs))
    if stacked and s.kind == "graph":
        s.extra_outputs.append(value(results[1], FLOAT))
    return results[0]


def scan(s: Scope) -> str:
    """A running state over the columns or the rows, forwards or backwards."""
    if s.depth >= 2:
        return unary(s)
    state, row = s.draft.fresh("s"), s.draft.fresh("r")
    inner = Scope(s.draft, [], kind="body", depth=s.depth + 1)
    inner.body_inputs = [value(state, FLOAT, [WIDTH]), value(row, FLOAT, [WIDTH])]
    after = inner.op("Tanh", inner.op("Add", state, row))
    made = inner.op("Mul", after, inner.constant(s.draft.numbers(WIDTH)))
    body = inner.close([value(after, FLOAT, [WIDTH]), value(made, FLOAT, [WIDTH])])
    extra = {"scan_input_directions": [s.random.randint(0, 1)]} if s.draft.chance(0.4) else {}
    return s.add("Scan", [s.constant(s.draft.numbers(WIDTH)), s.pick()], 2, body=body, num_scan_inputs=1, **extra)[1]


def sequence(s: Scope) -> str:
    parts = [s.pick() for _ in range(s.random.randint(1, 3))]
    made = s.op("SequenceConstruct", *parts)
    if s.draft.chance(0.4):
        made = s.op("SequenceInsert", made, s.pick(), *([s.constant(0, np.int64)] if s.draft.chance(0.5) else []))
    if s.draft.chance(0.3):
        length = s.op("Cast", s.op("SequenceLength", made), to=FLOAT)
        return s.calm(s.op("Mul", s.op("SequenceAt", made, s.constant(0, np.int64)), length))
    if s.draft.chance(0.3) and s.kind == "graph":
        kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
        s.extra_outputs.append(helper.make_value_info(made, kind))
    return s.op("SequenceAt", made, s.constant(-1, np.int64))


def optional(s: Scope) -> str:
    if s.opset < 15:
        return sequence(s)
    return s.op("OptionalGetElement", s.op("Optional", s.pick()))


def called(s: Scope) -> str:
    """A call of a local function, which may call another."""
    if s.depth >= 2:
        return unary(s)
    existing = [f for f in s.draft.functions if s.kind != "function"]
    function = s.random.choice(existing) if existing and s.draft.chance(0.4) else _function(s)
    reads = [s.pick() for _ in function.input]
    if len(reads) > 2:
        reads[2] = "" if s.draft.chance(0.5) else reads[2]
    given: dict[str, float] = {}
    if s.draft.chance(0.4):
        given["slope"] = s.random.choice([0.125, 0.75])
    outputs = s.add(function.name, reads, len(function.output), domain="local", **given)
    return outputs[0]


def _function(s: Scope) -> onnx.FunctionProto:
    inputs = [s.draft.fresh("a") for _ in range(s.random.choice([1, 2]))]
    inner = Scope(s.draft, inputs, kind="function", depth=s.depth + 1)
    leak = helper.make_node("LeakyRelu", [inner.pick()], [s.draft.fresh()])
    leak.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    inner.nodes.append(leak)
    inner.pool.append(leak.output[0])
    made = inner.calm(inner.op("Add", leak.output[0], fill(inner, s.random.randint(1, 3))))
    outputs = [made, inner.op("Neg", made)][: s.random.choice([1, 2])]
    opset = s.opset
    function = helper.make_function(
        "local",
        s.draft.fresh("Function"),
        inputs,
        outputs,
        inner.nodes,
        [helper.make_opsetid("", opset), helper.make_opsetid("local", 1), helper.make_opsetid("ai.onnx.ml", 3)],
        *(([], [helper.make_attribute("slope", 0.25)]) if s.draft.chance(0.6) else (["slope"], [])),
    )
    s.draft.functions.append(function)
    return function


def learned(s: Scope) -> str:
    """Operators of classical machine learning."""
    kind = s.random.choice(["Scaler", "Normalizer", "LinearRegressor", "TreeEnsembleRegressor", "Imputer", "Binarizer"])
    source = s.pick()
    if kind == "Scaler":
        made = s.add(kind, [source], domain="ai.onnx.ml", offset=[0.1] * WIDTH, scale=[0.5] * WIDTH)[0]
    elif kind == "Normalizer":
        made = s.add(kind, [source], domain="ai.onnx.ml", norm="L2")[0]
    elif kind == "Imputer":
        made = s.add(kind, [source], domain="ai.onnx.ml", imputed_value_floats=[0.0], replaced_value_float=0.5)[0]
    elif kind == "Binarizer":
        made = s.add(kind, [source], domain="ai.onnx.ml", threshold=0.1)[0]
    elif kind == "LinearRegressor":
        weights = s.draft.numbers(WIDTH * WIDTH).tolist()
        made = s.add(
            kind, [source], domain="ai.onnx.ml", coefficients=weights, intercepts=[0.1] * WIDTH, targets=WIDTH
        )[0]
    else:
        one = s.add(
            kind, [source], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2],
            nodes_featureids=[1, 0, 0], nodes_values=[0.1, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],
            target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[-0.5, 0.5],
        )[0]  # fmt: skip
        return s.op("Add", source, one)
    return s.calm(made)


def classified(s: Scope) -> str:
    """A classifier with labels that are strings, and its probabilities by label."""
    if s.kind != "graph":
        return learned(s)
    label, scores = s.add(
        "LinearClassifier", [s.pick()], 2, domain="ai.onnx.ml", coefficients=s.draft.numbers(2 * WIDTH).tolist(),
        intercepts=[0.1, -0.1], classlabels_strings=["no", "yes"], multi_class=0, post_transform="SOFTMAX",
    )  # fmt: skip
    if s.draft.chance(0.5):
        s.extra_outputs.append(value(label, STRING))
    if s.draft.chance(0.4):
        zipped = s.add("ZipMap", [scores], domain="ai.onnx.ml", classlabels_strings=["no", "yes"])[0]
        kind = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
        s.extra_outputs.append(helper.make_value_info(zipped, helper.make_sequence_type_proto(kind)))
    return s.op("Mul", s.pick(), s.reduce("Max", scores, [1]))


def texts(s: Scope) -> str:
    """A text for each row, looked up."""
    if s.kind != "graph":
        return unary(s)
    s.draft.has_strings = True
    codes = s.add(
        "LabelEncoder",
        ["texts"],
        domain="ai.onnx.ml",
        keys_strings=["a", "b"],
        values_floats=[0.5, -0.5],
        default_float=1.0,
    )[0]
    if s.draft.chance(0.3) and s.opset >= 20:
        s.extra_outputs.append(value(s.op("StringConcat", "texts", "texts"), STRING))
    return s.op("Add", s.pick(), s.unsqueeze(codes, 1))


def idle(s: Scope) -> str:
    """Nodes and constants that nothing needs."""
    s.op("Exp", s.pick())
    s.constant(s.draft.numbers(3))
    return s.op("Identity", s.pick())


BLOCKS: Final[tuple[tuple[Block, int], ...]] = (
    *((block, 3) for block in (unary, with_attributes, binary, with_constant, several, shared_weight, gemm)),
    *(
        (block, 2)
        for block in (quantised, quantised_blocks, dynamic_quantised, conditional, loop, scan, called, called)
    ),
    *((block, 2) for block in (normalised, softmax, split_concat, reshaped, reduced, sequence, learned, clip)),
    *((block, 1) for block in (dropout, casts, comparison, sliced, gathered, padded, best, scattered, convolved)),
    *(
        (block, 1)
        for block in (recurrent, einsum, tiled, integers, found_rows, nothing, optional, classified, texts, idle)
    ),
)


def fill(s: Scope, count: int) -> str:
    """Add so many blocks; returns the last matrix."""
    made = s.pool[-1]
    blocks, weights = zip(*BLOCKS, strict=True)
    for _ in range(count):
        made = s.random.choices(blocks, weights)[0](s)
        s.pool.append(made)
    return made
