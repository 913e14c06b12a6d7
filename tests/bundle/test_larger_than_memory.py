"""A real model in a control group with less memory than its weights take."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import parallax
from parallax import zoo
from parallax.bundle import read_bundle
from parallax.bundle._paging import can_page
from parallax.errors import ConfigError
from tests.bundle._cgroup import MemoryGroup, memory_group
from tests.bundle._models import branching, compiled, python

MIB = 1 << 20
MODEL = "vit-b16"
LIMIT = 150 * MIB
PYTHON_BYTES = 32 * MIB
"""Of an interpreter that has imported everything."""
needs_paging = pytest.mark.skipif(not can_page(), reason="this system cannot be told what to keep in memory")

RUN = """
import json, os, sys
procs, bundle, feed, runs = sys.argv[1:]
open(procs, "w").write(str(os.getpid()))
# Pages count for the group that reads them first: nobody else may have them in memory.
for folder, _, names in os.walk(bundle):
    for name in names:
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
import numpy as np
import parallax

def read_bytes():
    for line in open("/proc/self/io"):
        if line.startswith("read_bytes:"):
            return int(line.split()[1])

session = parallax.InferenceSession(bundle, verify="never")
fed = {session.get_inputs()[0].name: np.load(feed)}
first = session.run(None, fed)[0]
before = read_bytes()
same = all(np.array_equal(session.run(None, fed)[0], first) for _ in range(int(runs) - 1))
split = session._opened.split
prefetcher = None if split is None else split.executor.prefetcher
print(json.dumps({
    "first": first.tolist(),
    "same": same,
    "read": (read_bytes() - before) // max(1, int(runs) - 1),
    "advised": prefetcher is not None and not prefetcher._reader._over,
}))
"""

COMPILE = """
import os, sys
procs, model, target, limit = sys.argv[1:]
open(procs, "w").write(str(os.getpid()))
import parallax
parallax.compile(model, target, memory_limit=limit or None)
"""


@pytest.fixture(scope="module")
def model() -> Path:
    return zoo.load(MODEL)


@pytest.fixture(scope="module")
def feed() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


@pytest.fixture(scope="module")
def wanted(model: Path, feed: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: feed})[0]
    return result


@pytest.fixture(scope="module")
def unfused(model: Path, feed: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the runtime answers without the fusion that parts of a model do without."""
    session = onnxruntime.InferenceSession(
        model, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: feed})[0]
    return result


@pytest.fixture(scope="module")
def chain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parallax.compile(model, tmp_path_factory.mktemp("chain") / "model.plx", memory_limit=LIMIT)


def run_within(group: MemoryGroup, bundle: Path, feed: NDArray[np.float32], folder: Path, *, runs: int) -> Any:
    np.save(folder / "feed.npy", feed)
    return json.loads(finished(python(RUN, group.procs, bundle, folder / "feed.npy", runs)))


def finished(process: subprocess.Popen[str]) -> str:
    """What it wrote. A group with a process in it cannot be removed, so the process ends in any case."""
    try:
        output, errors = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors or "killed"
    return output


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[MemoryGroup]:
    with memory_group(limit_bytes) as group:
        yield group
        most = group.most_bytes()
        assert most is None or 0 < most <= limit_bytes


@needs_paging
@pytest.mark.parametrize("runs", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_runs_in_less_than_half_the_memory_of_the_weights_are_right(
    runs: int, chain: Path, feed: NDArray[np.float32], unfused: NDArray[np.float32], tmp_path: Path
) -> None:
    weights = read_bundle(chain).manifest.weight_bytes
    assert weights > 2 * LIMIT
    with limited(LIMIT) as group:
        found = run_within(group, chain, feed, tmp_path, runs=runs)
    assert found["same"]
    np.testing.assert_array_equal(np.array(found["first"], np.float32), unfused)
    assert found["advised"]
    assert found["read"] < weights, "some of the weights stay from run to run"


@needs_paging
def test_a_bundle_of_a_whole_model_runs_there_as_well_though_nobody_reads_ahead(
    model: Path, feed: NDArray[np.float32], wanted: NDArray[np.float32], tmp_path: Path
) -> None:
    bundle = parallax.compile(model, tmp_path / "whole.plx", memory_limit="4 GiB")
    assert read_bundle(bundle).plan.is_whole
    with limited(LIMIT) as group:
        found = run_within(group, bundle, feed, tmp_path, runs=2)
    assert found["same"]
    np.testing.assert_array_equal(np.array(found["first"], np.float32), wanted)


def test_where_there_is_memory_enough_the_chain_runs_without_advice(
    chain: Path, feed: NDArray[np.float32], unfused: NDArray[np.float32]
) -> None:
    session = parallax.InferenceSession(chain)
    split = session._opened.split
    assert split is not None
    assert split.executor.prefetcher is None
    np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: feed})[0], unfused)
    for one, other in itertools.pairwise(session.plan.segments):
        assert one.index in other.predecessors
    assert "MiB of weights do not fit" in session.plan.provenance.reason


@pytest.mark.parametrize("limit", ["", "150MiB"], ids=["whole", "chain"])
def test_compiling_takes_little_more_memory_than_the_weights(limit: str, model: Path, tmp_path: Path) -> None:
    weights = zoo.info(MODEL).weight_bytes
    with limited(weights * 13 // 10 + PYTHON_BYTES) as group:
        finished(python(COMPILE, group.procs, model, tmp_path / "model.plx", limit))
    assert read_bundle(tmp_path / "model.plx").plan.is_whole is not bool(limit)


# -- what the limit decides -----------------------------------------------------------------------------------


def test_a_model_that_fits_is_not_cut_and_its_bundle_does_not_depend_on_the_limit(tmp_path: Path) -> None:
    manifest = read_bundle(compiled(tmp_path, memory_limit="1GiB")).manifest
    assert manifest.options.memory_limit is None
    assert read_bundle(tmp_path / "model.plx").plan.is_whole


def test_a_bundle_remembers_the_limit_it_was_cut_for_and_how_to_make_it_again(tmp_path: Path) -> None:
    from parallax.bundle import rebuild_command

    bundle = read_bundle(compiled(tmp_path, width=600, memory_limit="64 MiB"))
    assert bundle.manifest.options.memory_limit == 64 * MIB
    assert bundle.plan.provenance.source == "memory"
    assert len(bundle.plan.segments) == 2, "a sixteenth of the limit each, of 5.5 MiB of weights"
    assert "--memory-limit 67108864" in rebuild_command(bundle.manifest, bundle.path)


def test_a_model_that_is_to_stay_whole_stays_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = read_bundle(compiled(tmp_path, width=600, memory_limit="64 MiB", policy="sequential"))
    assert bundle.plan.is_whole
    assert "cannot be read segment by segment" in caplog.text


def test_a_limit_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_limit"):
        parallax.compile(branching(tmp_path / "m.onnx"), tmp_path / "m.plx", memory_limit="much")
