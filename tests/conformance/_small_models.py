"""Small models as tables of data and services have them, built by hand: their cost is calls, not arithmetic.

Nothing but onnx is needed for them. Each comes with a feed of one row and one of 32, where it has rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
ML = "ai.onnx.ml"
ROWS = (1, 32)

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """A model, and a feed for each of its sizes."""

    name: str
    data: bytes
    feeds: tuple[Feeds, ...]


class _Graph:
    """Nodes, weights and interface, gathered while a model is built."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def fed(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, array: NDArray[Any], name: str = "") -> str:
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        output = f"t{len(self.nodes)}"
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(op_type, inputs, [output], domain=domain, **attributes))
        return output

    def returned(self, tensor: str, kind: int, name: str = "y") -> None:
        self.nodes.append(helper.make_node("Identity", [tensor], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def bytes(self) -> bytes:
        graph = helper.make_graph(self.nodes, "small", self.inputs, self.outputs, self.weights)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
        data: bytes = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
        return data


def _random() -> np.random.Generator:
    return np.random.default_rng(17)


def _table(features: int) -> tuple[Feeds, ...]:
    return tuple({"x": _random().standard_normal((rows, features)).astype(np.float32)} for rows in ROWS)


def small_models() -> tuple[SmallModel, ...]:
    """All of them; built in a second."""
    made: dict[str, tuple[bytes, Sequence[Feeds]]] = {}
    for terms in (10, 44, 200, 800):
        made[f"polynomial features, {terms} terms"] = _polynomial(terms)
        made[f"products of gathered columns, {terms} terms"] = _gathered_products(terms)
    for voters in (3, 12, 40):
        made[f"vote of {voters} trees"] = _vote(voters, _tree)
        made[f"vote of {voters} linear classifiers"] = _vote(voters, _linear)
    for fields in (4, 26):
        made[f"recommender, {fields} embeddings"] = _recommender(fields)
    made["two towers"] = _towers()
    for columns in (8, 30, 120):
        made[f"column by column, {columns} columns"] = _columns(columns)
    made["strings to numbers"] = _strings()
    made["classifier with ZipMap"] = _zipmap()
    made["rules"] = _rules(25)
    made["initializers that may be overridden"] = _overridable()
    made["fifty inputs and outputs"] = _many_ends(50)
    made["shape arithmetic"] = _shape_arithmetic()
    for length in (500, 2000):
        made[f"six chains of {length // 6} calls"] = _chains(6, length // 6)
    return tuple(SmallModel(name=name, data=data, feeds=tuple(feeds)) for name, (data, feeds) in made.items())


Built = tuple[bytes, Sequence[Feeds]]


def _polynomial(terms: int) -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    products = []
    for _ in range(terms):
        pair = g.add("ArrayFeatureExtractor", x, g.weight(random.integers(0, 8, 2)), domain=ML)
        products.append(g.add("ReduceProd", pair, axes=[1], keepdims=1))
    weights = {"coefficients": random.standard_normal(terms).tolist(), "intercepts": [0.5]}
    g.returned(g.add("LinearRegressor", g.add("Concat", *products, axis=1), domain=ML, **weights), FLOAT)
    return g.bytes(), _table(8)


def _gathered_products(terms: int) -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    products = []
    for _ in range(terms):
        left, right = (g.add("Gather", x, g.weight(random.integers(0, 8, 1)), axis=1) for _ in range(2))
        products.append(g.add("Mul", left, right))
    g.returned(g.add("Concat", *products, axis=1), FLOAT)
    return g.bytes(), _table(8)


def _tree(g: _Graph, x: str, random: np.random.Generator) -> str:
    """A regression tree of depth 2."""
    return g.add(
        "TreeEnsembleRegressor",
        x,
        domain=ML,
        n_targets=1,
        nodes_treeids=[0] * 7,
        nodes_nodeids=list(range(7)),
        nodes_featureids=[*random.integers(0, 8, 3).tolist(), 0, 0, 0, 0],
        nodes_modes=["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
        nodes_values=[*random.standard_normal(3).tolist(), 0.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 5, 0, 0, 0, 0],
        nodes_falsenodeids=[2, 4, 6, 0, 0, 0, 0],
        target_treeids=[0] * 4,
        target_nodeids=[3, 4, 5, 6],
        target_ids=[0] * 4,
        target_weights=random.standard_normal(4).tolist(),
    )


def _linear(g: _Graph, x: str, random: np.random.Generator) -> str:
    weights = {"coefficients": random.standard_normal(8).tolist(), "intercepts": [0.1]}
    return g.add("Sigmoid", g.add("LinearRegressor", x, domain=ML, **weights))


def _vote(voters: int, make: Callable[[_Graph, str, np.random.Generator], str]) -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    zero = g.weight(np.float32(0))
    votes = [g.add("Cast", g.add("Greater", make(g, x, random), zero), to=FLOAT) for _ in range(voters)]
    counted = g.add("ReduceMean", g.add("Concat", *votes, axis=1), axes=[1], keepdims=1)
    g.returned(g.add("Greater", counted, g.weight(np.float32(0.5))), TensorProto.BOOL)
    return g.bytes(), _table(8)


def _layer(g: _Graph, x: str, width: int, wider: int, random: np.random.Generator, *, last: bool = False) -> str:
    weight = g.weight(random.standard_normal((width, wider)).astype(np.float32))
    out = g.add("Gemm", x, weight, g.weight(np.zeros(wider, np.float32)))
    return out if last else g.add("Relu", out)


def _recommender(fields: int) -> Built:
    """Wide and deep: an embedding per field, a small network over all of them, a dot product beside it."""
    g, random = _Graph(), _random()
    found = []
    for field in range(fields):
        key = g.fed(f"f{field}", INT64, ["n"])
        found.append(g.add("Gather", g.weight(random.standard_normal((200, 8)).astype(np.float32)), key, axis=0))
    deep = _layer(g, g.add("Concat", *found, axis=1), 8 * fields, 16, random)
    wide = g.add("ReduceSum", g.add("Mul", found[0], found[1]), g.weight(np.array([1])), keepdims=1)
    g.returned(g.add("Sigmoid", g.add("Add", _layer(g, deep, 16, 1, random, last=True), wide)), FLOAT)
    feeds = [{f"f{field}": random.integers(0, 200, rows) for field in range(fields)} for rows in ROWS]
    return g.bytes(), feeds


def _towers() -> Built:
    g, random = _Graph(), _random()
    ends = []
    for side in ("user", "item"):
        x = g.fed(side, FLOAT, ["n", 12])
        ends.append(_layer(g, _layer(g, x, 12, 16, random), 16, 8, random, last=True))
    g.returned(g.add("ReduceSum", g.add("Mul", *ends), g.weight(np.array([1])), keepdims=1), FLOAT)
    feeds = [
        {side: random.standard_normal((rows, 12)).astype(np.float32) for side in ("user", "item")} for rows in ROWS
    ]
    return g.bytes(), feeds


def _columns(columns: int) -> Built:
    """Each column by itself: missing values filled, scaled, clipped; then all of them joined."""
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", columns])
    ready = []
    low, high = g.weight(np.float32(-3)), g.weight(np.float32(3))
    for column in range(columns):
        picked = g.add("ArrayFeatureExtractor", x, g.weight(np.array([column])), domain=ML)
        filled = g.add("Imputer", picked, domain=ML, imputed_value_floats=[0.5], replaced_value_float=float("nan"))
        offset, scale = random.standard_normal(2).tolist()
        ready.append(g.add("Clip", g.add("Scaler", filled, domain=ML, offset=[offset], scale=[scale]), low, high))
    g.returned(g.add("Concat", *ready, axis=1), FLOAT)
    feeds = [dict(feed) for feed in _table(columns)]
    feeds[1]["x"][::3, 1] = np.nan
    return g.bytes(), feeds


def _strings() -> Built:
    g = _Graph()
    words = ["red", "grün", "bleu", "ゼロ"]
    encoded = []
    for column in range(4):
        x = g.fed(f"c{column}", STRING, ["n", 1])
        code = g.add("LabelEncoder", x, domain=ML, keys_strings=words, values_int64s=[0, 1, 2, 3], default_int64=-1)
        encoded.append(g.add("Cast", code, to=FLOAT))
    g.returned(g.add("Concat", *encoded, axis=1), FLOAT)
    random = _random()
    feeds = [
        {f"c{column}": np.array(words, dtype=object)[random.integers(0, 4, (rows, 1))] for column in range(4)}
        for rows in ROWS
    ]
    return g.bytes(), feeds


def _zipmap() -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    names = ["low", "middle", "high"]
    g.nodes.append(
        helper.make_node(
            "LinearClassifier",
            [x],
            ["label", "scores"],
            domain=ML,
            coefficients=random.standard_normal(24).tolist(),
            intercepts=[0.0, 0.1, 0.2],
            classlabels_strings=names,
            post_transform="SOFTMAX",
            multi_class=1,
        )
    )
    g.nodes.append(helper.make_node("ZipMap", ["scores"], ["mapped"], domain=ML, classlabels_strings=names))
    mapped = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
    g.outputs.append(helper.make_tensor_value_info("label", STRING, None))
    g.outputs.append(helper.make_value_info("mapped", helper.make_sequence_type_proto(mapped)))
    return g.bytes(), _table(8)


def _rules(rules: int) -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    score = g.add("ReduceSum", g.add("Mul", x, g.weight(np.float32(0))), g.weight(np.array([1])), keepdims=1)
    for _ in range(rules):
        left, right = (g.add("Gather", x, g.weight(random.integers(0, 8, 1)), axis=1) for _ in range(2))
        holds = g.add(
            "And",
            g.add("Greater", left, g.weight(np.float32(random.standard_normal()))),
            g.add("Less", right, g.weight(np.float32(random.standard_normal()))),
        )
        given, else_ = (g.weight(np.float32(value)) for value in random.standard_normal(2))
        score = g.add("Add", score, g.add("Where", holds, given, else_))
    g.returned(score, FLOAT)
    return g.bytes(), _table(8)


def _overridable() -> Built:
    g, random = _Graph(), _random()
    x = g.fed("x", FLOAT, ["n", 8])
    for name in ("scale", "offset"):
        g.weight(random.standard_normal(8).astype(np.float32), name)
        g.fed(name, FLOAT, [8])
    g.returned(g.add("Add", g.add("Mul", x, "scale"), "offset"), FLOAT)
    return g.bytes(), _table(8)


def _many_ends(ends: int) -> Built:
    g = _Graph()
    for end in range(ends):
        g.returned(g.add("Neg", g.fed(f"x{end}", FLOAT, ["n"])), FLOAT, f"y{end}")
    return g.bytes(), [{f"x{end}": np.full(rows, end, np.float32) for end in range(ends)} for rows in ROWS]


def _shape_arithmetic() -> Built:
    g = _Graph()
    x = g.fed("x", FLOAT, ["n", 8])
    rows = g.add("Gather", g.add("Shape", x), g.weight(np.array([0])), axis=0)
    halves = [g.add("Concat", rows, g.weight(np.array(tail)), axis=0) for tail in ([2, 4], [4, 2], [8, 1])]
    back = g.weight(np.array([-1, 8]))
    parts = [g.add("Reshape", g.add("Sqrt", g.add("Abs", g.add("Reshape", x, half))), back) for half in halves]
    g.returned(g.add("Sum", *parts), FLOAT)
    return g.bytes(), _table(8)


def _chains(count: int, length: int) -> Built:
    g = _Graph()
    x = g.fed("x", FLOAT, ["n", 8])
    ends = []
    for chain in range(count):
        current = x
        factor = g.weight(np.float32(1 + chain / 100))
        for link in range(length):
            op_type = ("Add", "Mul", "Sigmoid", "Sub")[link % 4]
            current = g.add(op_type, current) if op_type == "Sigmoid" else g.add(op_type, current, factor)
        ends.append(current)
    g.returned(g.add("Sum", *ends), FLOAT)
    return g.bytes(), _table(8)
