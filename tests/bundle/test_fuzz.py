"""A thousand damaged or forged bundles: each is refused, or gives the right answer, and no process dies of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from tests.bundle._models import branching
from tests.bundle._mutations import UNNOTICEABLE
from tests.bundle.test_arrangement import odd_sizes

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300
"""For one batch; a bundle that takes longer hangs."""
BATCH = 50

STOCK = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 4
for path in sys.argv[1:]:
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        print("refused")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What came of one seed."""

    seed: int
    subject: str
    kind: str
    outcome: str

    @property
    def word(self) -> str:
        """The first word of the outcome."""
        return self.outcome.partition(":")[0]


def choosing(path: Path) -> Path:
    """y = x plus one of two tables, which lie in the bodies of an If."""
    rng = np.random.default_rng(5)

    def branch(name: str) -> Any:
        table = numpy_helper.from_array(rng.standard_normal((300, 8)).astype(np.float32), f"{name}_table")
        y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [300, 8])
        return helper.make_graph([helper.make_node("Add", ["x", table.name], [y.name])], name, [], [y], [table])

    node = helper.make_node("If", ["which"], ["y"], then_branch=branch("one"), else_branch=branch("other"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [300, 8])
    which = helper.make_tensor_value_info("which", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [300, 8])
    model = helper.make_model(
        helper.make_graph([node], "choosing", [x, which], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save_model(model, path)
    return path


def make_subjects(folder: Path) -> None:
    """Small bundles of every form, with feeds and the answers that the runtime gives to them."""
    split = {"min_gain": 0, "threads": 2}
    rows = {"x": np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)}
    tables = {"x": np.ones((3, 96), np.float32), "place": np.array([7])}
    chosen = {"x": np.random.default_rng(8).standard_normal((300, 8)).astype(np.float32), "which": np.array(True)}
    for name, make, feeds, options in (
        ("whole", branching, rows, {}),
        ("split", branching, rows, split),
        ("portable", branching, rows, {**split, "portable": True}),
        ("mapped", odd_sizes, tables, {}),
        ("mapped_split", odd_sizes, tables, split),
        ("bodies", choosing, chosen, {}),
        ("device", branching, rows, {**split, "shapes": {"x": (3, 64)}, "providers": ["emulated:pixel-6-gpu"]}),
    ):
        place = folder / name
        place.mkdir(parents=True)
        model = make(place / "model.onnx")
        parallax.compile(model, place / "m.plx", cache_dir=folder.parent / "cache", **options)
        answers = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
        np.savez(place / "feeds.npz", **feeds)
        np.savez(place / "answers.npz", **{f"{number:03}": answer for number, answer in enumerate(answers)})


def try_batch(folder: Path, first: int, stop: int) -> list[Case]:
    """What came of seeds from ``first`` on: of all, or up to the one that its process ended with."""
    command = [sys.executable, "-m", "tests.bundle._fuzz_worker", str(folder), str(first), str(stop)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
        fate = f"crash: the process ended with {process.returncode}: {errors[-500:]}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        fate = f"hang: nothing for {PATIENCE_S} s"
    begun: dict[str, Any] | None = None
    cases = []
    for line in output.splitlines():
        told = json.loads(line)
        if begun is None:
            begun = told
        else:
            cases.append(Case(**{**begun, "outcome": told["outcome"]}))
            begun = None
    if begun is not None:
        cases.append(Case(**begun, outcome=fate))
    elif len(cases) < stop - first:
        raise AssertionError(f"the worker failed between two bundles: {fate}")
    return cases


def try_all(folder: Path, seeds: range) -> list[Case]:
    """What came of each seed, in processes of some dozens, so that one who dies is known by its seed."""
    cases: list[Case] = []
    at = seeds.start
    while at < seeds.stop:
        found = try_batch(folder, at, min(at + BATCH, seeds.stop))
        cases += found
        at = found[-1].seed + 1
    return cases


def dies_in_the_runtime_alone(work: Path) -> bool:
    """Whether plain ONNX Runtime dies of a graph of the bundle that a worker left behind."""
    graphs = sorted(map(str, work.glob("m.plx/g-*/segments/*.onnx")))
    return subprocess.run([sys.executable, "-c", STOCK, *graphs], capture_output=True).returncode < 0


def faults(cases: Iterable[Case], work: Path) -> list[Case]:
    """The cases that end in anything but a refusal, the right answer, or what ONNX Runtime alone does too.

    ``work`` is the folder in which the worker left each seed's bundle.
    """
    return [
        case
        for case in cases
        if case.word not in ("right", "refused")
        and not (case.word == "other" and case.kind in UNNOTICEABLE)
        and not (case.word == "crash" and dies_in_the_runtime_alone(work / str(case.seed)))
    ]


def check(tmp_path: Path, seeds: range) -> None:
    make_subjects(tmp_path / "subjects")
    cases = try_all(tmp_path / "subjects", seeds)
    assert [case.seed for case in cases] == list(seeds)
    print(f"{len(cases)} damaged bundles:", dict(Counter(case.word for case in cases)))
    for kind in sorted({case.kind for case in cases}):
        print(f"  {kind}:", dict(Counter(case.word for case in cases if case.kind == kind)))
    assert not faults(cases, tmp_path / "work")


def test_no_damage_to_a_bundle_ends_in_anything_but_a_refusal_or_the_right_answer(tmp_path: Path) -> None:
    check(tmp_path, range(40))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_damaged_bundles_are_refused_or_answer_rightly(tmp_path: Path) -> None:
    check(tmp_path, range(1000))
