"""``cache=True``: the second session on a model starts from a bundle."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.bundle import MANIFEST_NAME, cache_folder, prune_cache
from parallax.bundle import _cache as bundle_cache
from parallax.opening._source import SessionSource
from tests.bundle._models import branching, compiled, expected, feeds


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were loaded: "cache" to compile them, "session" to open them."""
    noted: list[str] = []
    load: Any = vars(bundle_cache)["load_model"]
    look, read = SessionSource.look, SessionSource.read

    def load_and_note(source: Any, **options: Any) -> Any:
        noted.append("cache")
        return load(source, **options)

    def look_and_note(source: SessionSource) -> Any:
        seen = look(source)
        if seen is not None:
            noted.append("session")
        return seen

    def read_and_note(source: SessionSource) -> Any:
        noted.append("session")
        return read(source)

    monkeypatch.setattr(bundle_cache, "load_model", load_and_note)
    monkeypatch.setattr(SessionSource, "look", look_and_note)
    monkeypatch.setattr(SessionSource, "read", read_and_note)
    return noted


def open_cached(model: Path, cache: Path, **options: Any) -> parallax.InferenceSession:
    return parallax.InferenceSession(model, cache=True, cache_dir=cache, **options)


def settle(*paths: Path) -> None:
    """As if the files had been there for an hour."""
    for path in paths:
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 3_600_000_000_001))
    time.sleep(0.15)


@pytest.mark.parametrize("options", [{}, {"min_gain": 0, "threads": 2}], ids=["whole", "cut"])
def test_the_second_session_does_not_look_at_the_model(
    options: dict[str, Any], loads: list[str], tmp_path: Path
) -> None:
    model = branching(tmp_path / "m.onnx")
    settle(model)
    want = parallax.InferenceSession(model, **options).run(None, feeds())[0]
    loads.clear()
    first = open_cached(model, tmp_path / "cache", **options)
    assert loads == ["cache"], "compiled, and opened from the bundle"
    second = open_cached(model, tmp_path / "cache", **options)
    assert loads == ["cache"]
    for session in (first, second):
        np.testing.assert_array_equal(session.run(None, feeds())[0], want)
        assert (len(session.plan.segments) > 1) is bool(options)
    assert len(list(cache_folder(tmp_path / "cache").iterdir())) == 1


def test_another_model_under_the_same_name_gets_a_bundle_of_its_own(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    settle(model)
    open_cached(model, tmp_path / "cache")
    branching(model, seed=1)
    np.testing.assert_array_equal(
        open_cached(model, tmp_path / "cache").run(None, feeds())[0], expected(model, feeds())
    )
    assert len(list(cache_folder(tmp_path / "cache").iterdir())) == 2


def test_other_weights_in_the_external_data_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    model = branching(tmp_path / "m.onnx", external=True)
    settle(model, tmp_path / "weights" / "w.bin")
    open_cached(model, tmp_path / "cache")
    graph = model.read_bytes()
    branching(model, external=True, seed=1)
    model.write_bytes(graph)
    np.testing.assert_array_equal(
        open_cached(model, tmp_path / "cache").run(None, feeds())[0], expected(model, feeds())
    )


def test_the_same_model_elsewhere_shares_the_bundle(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        open_cached(branching(tmp_path / name), tmp_path / "cache")
    assert len(list(cache_folder(tmp_path / "cache").iterdir())) == 1


def test_other_options_get_a_bundle_of_their_own(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    for options in ({}, {"policy": "sequential"}, {"threads": 1}, {"shapes": {"x": (3, 64)}}):
        open_cached(model, tmp_path / "cache", **options)
    assert len(list(cache_folder(tmp_path / "cache").iterdir())) == 4


def test_a_damaged_cached_bundle_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = branching(tmp_path / "m.onnx")
    open_cached(model, tmp_path / "cache")
    bundle = next(cache_folder(tmp_path / "cache").iterdir())
    graph = next(bundle.glob("g-*/segments/*.onnx"))
    graph.write_bytes(b"x" * graph.stat().st_size)
    with caplog.at_level(logging.WARNING):
        session = open_cached(model, tmp_path / "cache")
    assert "making a cached bundle anew" in caplog.text
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(model, feeds()))
    assert not next(bundle.glob("g-*/segments/*.onnx")).read_bytes().startswith(b"xx")


def test_a_cache_that_cannot_be_written_costs_nothing_but_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(tmp_path / "m.onnx")
    (tmp_path / "cache").write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        session = open_cached(model, tmp_path / "cache")
    assert "can be cached" in caplog.text
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(model, feeds()))


def test_a_model_that_is_refused_is_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(parallax.ModelFileError):
        open_cached(tmp_path / "m.onnx", tmp_path / "cache")
    with pytest.raises(parallax.ModelFileError):
        open_cached(tmp_path / "missing.onnx", tmp_path / "cache")


def test_the_cache_is_of_no_effect_where_it_could_be_wrong(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    parallax.InferenceSession(model, options, cache=True, cache_dir=tmp_path / "cache")
    parallax.InferenceSession(model.read_bytes(), cache=True, cache_dir=tmp_path / "cache")
    parallax.InferenceSession(model, disabled_optimizers=["ConstantFolding"], cache=True, cache_dir=tmp_path / "cache")
    assert not cache_folder(tmp_path / "cache").exists()


def test_what_needs_the_whole_model_of_a_cut_cached_one_reads_the_model(tmp_path: Path) -> None:
    session = open_cached(branching(tmp_path / "m.onnx"), tmp_path / "cache", min_gain=0, threads=2)
    assert len(session.plan.segments) > 1
    binding = session.io_binding()
    binding.bind_cpu_input("x", feeds()["x"])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected(tmp_path / "m.onnx", feeds()))


def test_bundles_used_longest_ago_are_removed_beyond_the_limit(tmp_path: Path) -> None:
    names = ["old", "used", "new"]
    places = []
    for seed, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        places.append(compiled(folder).rename(tmp_path / f"{name}.plx"))
        os.utime(places[-1] / MANIFEST_NAME, ns=(seed, seed))
    os.utime(places[0] / MANIFEST_NAME)  # used again
    size = sum(path.stat().st_size for path in places[0].rglob("*") if path.parent.name != "old.plx" and path.is_file())
    assert prune_cache(tmp_path, limit_bytes=3 * size) == ()
    assert [path.name for path, _ in prune_cache(tmp_path, limit_bytes=2 * size)] == ["used.plx"]
    assert [path.name for path, _ in prune_cache(tmp_path, limit_bytes=0, keep=places[2])] == ["old.plx"]
    parallax.InferenceSession(places[2])
