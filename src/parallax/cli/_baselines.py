"""Plain ONNX Runtime sessions to compare with, set up as its documentation advises.

Threads and execution modes: https://onnxruntime.ai/docs/performance/tune-performance/threading.html
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parallax.backends.ort import StockSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One way to run a model with ONNX Runtime's CPU provider.

    ``streams`` is a file for ``session.node_partition_config_file``, which spreads nodes over logical
    streams; those run at once only in parallel mode.
    """

    label: str
    threads: int
    inter_op_threads: int | None = None
    """None: sequential mode."""
    streams: str | None = None
    inter_op_spinning: bool = True
    """Whether idle inter-op threads spin, which is the runtime's default; on few cores they take them from others."""

    def options(self) -> onnxruntime.SessionOptions:
        """Session options for this baseline; everything not named here is at the runtime's default."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # its warnings are about the model, and the same for everyone
        if self.inter_op_threads is not None:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
            options.inter_op_num_threads = self.inter_op_threads
        if not self.inter_op_spinning:
            options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if self.streams is not None:
            options.add_session_config_entry("session.node_partition_config_file", self.streams)
        return options

    def open(self, path: str | os.PathLike[str]) -> onnxruntime.InferenceSession:
        opened: onnxruntime.InferenceSession = StockSession(
            os.fspath(path), self.options(), providers=["CPUExecutionProvider"]
        )
        return opened


def thread_counts(threads: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``threads`` itself."""
    counts = {1, threads}
    power = 2
    while power < threads:
        counts.add(power)
        power *= 2
    return tuple(sorted(counts))


def runtime_baselines(threads: int) -> tuple[Baseline, ...]:
    """ONNX Runtime on 1, 2, 4, ... ``threads`` threads, and its parallel mode on ``threads``."""
    plain = tuple(
        Baseline(label=f"ONNX Runtime, {n} thread{'s' if n > 1 else ''}", threads=n) for n in thread_counts(threads)
    )
    if threads == 1:
        return plain  # with one inter-op thread parallel mode is the sequential one
    return (*plain, Baseline(label="ONNX Runtime, ORT_PARALLEL", threads=threads, inter_op_threads=threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two sets of outputs differ; ``relative`` is the largest |a - b| / (largest |b| of that output)."""

    identical: bool
    relative: float
    detail: str = ""

    def within(self, tolerance: float) -> bool:
        return self.identical or (not self.detail and self.relative <= tolerance)


def compare_outputs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
    """Compare outputs by name. NaN equals NaN; other than numeric arrays are compared for equality."""
    identical = True
    worst = 0.0
    for name, expected in theirs.items():
        actual = ours[name]
        if not (isinstance(actual, np.ndarray) and isinstance(expected, np.ndarray)):
            if not _same_value(actual, expected):
                return Difference(identical=False, relative=float("inf"), detail=f"output {name!r} differs")
            continue
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            detail = (
                f"output {name!r} is {actual.dtype}{list(actual.shape)}, not {expected.dtype}{list(expected.shape)}"
            )
            return Difference(identical=False, relative=float("inf"), detail=detail)
        if _same_array(actual, expected):
            continue
        identical = False
        if expected.dtype.kind not in "fc":
            return Difference(identical=False, relative=float("inf"), detail=f"output {name!r} differs")
        finite = np.isfinite(expected)
        agree = np.array_equal(np.isfinite(actual), finite)
        if not (agree and np.array_equal(actual[~finite], expected[~finite], equal_nan=True)):
            return Difference(identical=False, relative=float("inf"), detail=f"output {name!r}: NaN or inf in one only")
        largest = float(np.max(np.abs(expected[finite].astype(np.float64)), initial=0.0))
        gap = float(
            np.max(np.abs(actual[finite].astype(np.float64) - expected[finite].astype(np.float64)), initial=0.0)
        )
        worst = max(worst, gap / largest if largest else gap)
    return Difference(identical=identical, relative=worst)


def _same_array(actual: NDArray[Any], expected: NDArray[Any]) -> bool:
    if expected.dtype.kind in "fc":
        return bool(np.array_equal(actual, expected, equal_nan=True))
    return bool(np.array_equal(actual, expected))


def _same_value(actual: Any, expected: Any) -> bool:
    if isinstance(actual, list) and isinstance(expected, list):
        return len(actual) == len(expected) and all(map(_same_value, actual, expected))
    if isinstance(actual, np.ndarray) and isinstance(expected, np.ndarray):
        return actual.dtype == expected.dtype and _same_array(actual, expected)
    return bool(actual == expected)
