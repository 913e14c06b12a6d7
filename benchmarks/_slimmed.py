"""Reference models with weights set to 0, as pruning leaves them, on ONNX Runtime and on Parallax with ``slim=True``.

Half of the inner channels of each block, or half of the neurons between the two matrix products of each feed-forward
network, are *structured* zeros: what they belong to can be removed. Nine tenths of all weights at random are not:
no kernel at hand gains by them, and nothing is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from _common import dump_timing, ms, open_inputs, samples_of, say
from _figures import Figure
from _intervals import figure_of_medians, median_of, paired
from onnx import numpy_helper

import parallax
from parallax import zoo
from parallax.cli import Baseline, compare_outputs, time_interleaved

OURS, RUNTIME, DENSE = "Parallax, slim=True", "ONNX Runtime", "ONNX Runtime, weights as they were"
TOLERANCE = 1e-4
"""Of an output's magnitude."""


class Zeroing:
    """Sets weights of a model to 0."""

    def __init__(self, model: onnx.ModelProto, seed: int = 0) -> None:
        self.model = model
        self._rng = np.random.default_rng(seed)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def _store(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self._weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _zero(self, name: str, gone: np.ndarray[Any, Any], axis: int) -> None:
        value = numpy_helper.to_array(self._weights[name]).copy()
        np.moveaxis(value, axis, 0)[gone] = 0
        self._store(name, value)

    def _half(self, count: int) -> np.ndarray[Any, Any]:
        return self._rng.permutation(count)[: count // 2]

    def inner_channels(self) -> None:
        """Half of the outputs of each convolution that one convolution reads, by an activation and nothing else."""
        for node in self.model.graph.node:
            if node.op_type != "Conv":
                continue
            readers = self._readers.get(node.output[0], [])
            if [reader.op_type for reader in readers] == ["Relu"]:
                readers = self._readers.get(readers[0].output[0], [])
                if [reader.op_type for reader in readers] == ["Conv"]:
                    gone = self._half(self._weights[node.input[1]].dims[0])
                    for name in node.input[1:]:
                        self._zero(name, gone, 0)

    def neurons(self) -> None:
        """Half of the columns, and of the bias, of each matrix that has more columns than rows."""
        for node in self.model.graph.node:
            if node.op_type != "MatMul" or node.input[1] not in self._weights:
                continue
            rows, columns = self._weights[node.input[1]].dims
            if columns > rows:
                gone = self._half(columns)
                self._zero(node.input[1], gone, 1)
                for reader in self._readers[node.output[0]]:
                    for name in reader.input:
                        if name in self._weights:
                            self._zero(name, gone, 0)

    def weights_at_random(self, share: float = 0.9) -> None:
        """This share of the weights of each convolution and matrix product."""
        for node in self.model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in self._weights:
                value = numpy_helper.to_array(self._weights[node.input[1]])
                self._store(node.input[1], np.where(self._rng.random(value.shape) < share, value.dtype.type(0), value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model to measure."""

    model: str
    """Of the zoo."""
    what: str
    prune: Callable[[Zeroing], None]
    bound: float | None
    """At most this of ONNX Runtime's time."""


CASES: Final[Mapping[str, Case]] = {
    "resnet18-channels": Case(
        model="resnet18",
        what="ResNet-18, half of the inner channels of each block zeroed",
        prune=Zeroing.inner_channels,
        bound=0.65,
    ),
    "distilbert-neurons": Case(
        model="distilbert",
        what="DistilBERT, half of the neurons of each feed-forward network zeroed",
        prune=Zeroing.neurons,
        bound=0.75,
    ),
    "resnet18-random": Case(
        model="resnet18",
        what="ResNet-18, nine tenths of the weights zeroed at random",
        prune=Zeroing.weights_at_random,
        bound=None,
    ),
    "distilbert-random": Case(
        model="distilbert",
        what="DistilBERT, nine tenths of the weights zeroed at random",
        prune=Zeroing.weights_at_random,
        bound=None,
    ),
}


def make_zeroed(case: Case, folder: Path) -> Path:
    """The model of a case, written into ``folder``."""
    zeroing = Zeroing(onnx.load(zoo.load(case.model)))
    case.prune(zeroing)
    path = folder / f"{case.model}.onnx"
    onnx.save(zeroing.model, path)
    return path


def measure_slimmed(name: str, *, runs: int, threads: int, folder: Path) -> dict[str, Any]:
    """One row: samples of all three, what was removed, and how far the outputs are from ONNX Runtime's."""
    case = CASES[name]
    path = make_zeroed(case, folder)
    feeds = zoo.example_inputs(case.model)
    say(f"{name}: opening")
    ours = parallax.InferenceSession(path, slim=True, threads=threads, shapes=open_inputs(path, feeds))
    runtime = Baseline(label=RUNTIME, threads=threads).open(path)
    dense = Baseline(label=DENSE, threads=threads).open(Path(zoo.load(case.model)))
    names = [output.name for output in ours.get_outputs()]
    difference = compare_outputs(
        dict(zip(names, ours.run(names, feeds), strict=True)),
        dict(zip(names, runtime.run(names, feeds), strict=True)),
    )
    say(f"{name}: timing")
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.run(None, feeds),
        RUNTIME: lambda: runtime.run(None, feeds),
        DENSE: lambda: dense.run(None, feeds),
    }
    timings = time_interleaved(calls, rounds=runs, cores=threads)
    return {
        "model": name,
        "timings": {label: dump_timing(timing) for label, timing in timings.items()},
        "reason": ours.plan.provenance.reason,
        "relative_difference": difference.relative,
        "output_detail": difference.detail,
    }


def slimmed_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What the rows of `measure_slimmed` stand for."""
    figures: list[Figure] = []
    for row in rows:
        case = CASES[row["model"]]
        is_equal = not row["output_detail"] and row["relative_difference"] <= TOLERANCE
        note = "" if is_equal else "its outputs are NOT those of ONNX Runtime"
        if case.bound is not None:
            figures.append(
                figure_of_medians(
                    f"sparsity.slim.{row['model']}",
                    f"{case.what}, slim=True, against ONNX Runtime: share of its time",
                    [[paired(samples_of(row, OURS), samples_of(row, RUNTIME))]],
                    bound=case.bound,
                    note=note,
                )
            )
            continue
        figures.append(
            figure_of_medians(
                f"sparsity.zeros.{row['model']}",
                f"{case.what}: ONNX Runtime's time as a share of that with the weights as they were",
                [[paired(samples_of(row, RUNTIME), samples_of(row, DENSE))]],
                headline=False,
                note=note,
            )
        )
    return figures


def slimmed_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `measure_slimmed` as a table has it: what, ONNX Runtime's time, ours, ratio, difference."""
    ours, runtime = samples_of(row, OURS), samples_of(row, RUNTIME)
    return [
        CASES[row["model"]].what + ", slim=True",
        *(ms(median_of([samples])) for samples in (runtime, ours)),
        f"{median_of([paired(ours, runtime)]):.3f}",
        row["output_detail"] or f"{row['relative_difference']:.1e} of scale",
    ]
