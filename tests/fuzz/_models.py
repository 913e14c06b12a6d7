"""Random models that are valid by construction, one for each seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz._blocks import fill
from tests.fuzz._scopes import WIDTH, Draft, Scope, matrix, value

OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model, the files beside it, and what it may be fed."""

    proto: onnx.ModelProto
    external: Mapping[str, bytes]
    feeds: tuple[Mapping[str, Any], ...]

    def save(self, folder: Path) -> Path:
        """Write it, and its data, into an empty folder."""
        for location, content in self.external.items():
            place = folder / location
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        path = folder / "model.onnx"
        path.write_bytes(self.proto.SerializeToString())
        return path


def make_model(seed: int) -> Made:
    """The same model for the same seed, anywhere."""
    rng = random.Random(seed)
    draft = Draft(random=rng, opset=rng.choice(OPSETS))
    rows = "N" if rng.random() < 0.7 else 2
    names = [draft.fresh("x") for _ in range(rng.randint(1, 3))]
    scope = Scope(draft, names)
    inputs = [value(name, TensorProto.FLOAT, [rows, WIDTH]) for name in names]
    overridable = None
    if rng.random() < 0.25:
        overridable = draft.fresh("w")
        scope.initializers.append(numpy_helper.from_array(draft.numbers(WIDTH), overridable))
        inputs.append(value(overridable, TensorProto.FLOAT, [WIDTH]))
        scope.pool.append(scope.op("Add", names[0], overridable))
    fill(scope, rng.choice([1, 2, 4, 8, 12, 20]))
    outputs = _outputs(scope, names, rng)
    if draft.has_strings:
        inputs.append(value("texts", TensorProto.STRING, [rows]))
    graph = helper.make_graph(
        scope.nodes, "fuzzed", inputs, outputs, scope.initializers, sparse_initializer=scope.sparse
    )
    imports = [helper.make_opsetid("", draft.opset), helper.make_opsetid("ai.onnx.ml", 3)]
    if draft.functions:
        imports.append(helper.make_opsetid("local", 1))
    proto = helper.make_model(graph, opset_imports=imports, functions=draft.functions, ir_version=10)
    return Made(
        proto=proto,
        external={location: bytes(content) for location, content in draft.external.items()},
        feeds=tuple(
            _feeds(draft, names, count, overridable) for count in ((2,) if rows == 2 else (2, rng.choice([1, 3])))
        ),
    )


def _outputs(scope: Scope, names: list[str], rng: random.Random) -> list[onnx.ValueInfoProto]:
    made = [name for name in scope.pool if name not in names]
    picked = [made[-1], *rng.sample(made, rng.randint(0, min(3, len(made))))]
    outputs = [matrix(name) if rng.random() < 0.5 else value(name) for name in dict.fromkeys(picked)]
    if rng.random() < 0.05:
        outputs.append(matrix(rng.choice(names)))  # an input, as it is
    known = {output.name for output in outputs}
    outputs += [extra for extra in scope.extra_outputs if extra.name not in known]
    rng.shuffle(outputs)
    return outputs


def _feeds(draft: Draft, names: list[str], rows: int, overridable: str | None) -> dict[str, Any]:
    feeds: dict[str, Any] = {name: draft.numbers(rows, WIDTH) for name in names}
    if overridable is not None and draft.chance(0.5):
        feeds[overridable] = draft.numbers(WIDTH)
    if draft.has_strings:
        feeds["texts"] = np.array([draft.random.choice(["a", "b", "other"]) for _ in range(rows)], dtype=object)
    return feeds
