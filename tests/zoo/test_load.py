from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from parallax import zoo
from parallax.errors import ConfigError
from parallax.zoo._card import read_structure_bytes
from parallax.zoo._structure import read_structure, recipe_of

SMALL = "mobilenetv3-s"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_same_bytes_in_any_cache(tmp_path: Path) -> None:
    first, second = (zoo.load(SMALL, cache_dir=tmp_path / folder) for folder in "ab")
    assert first != second
    assert first.name == second.name
    assert digest(first) == digest(second)


def test_second_load_reuses_the_file(tmp_path: Path) -> None:
    made: list[int] = []
    first = zoo.load(SMALL, cache_dir=tmp_path)
    before = first.stat().st_mtime_ns
    assert zoo.load(SMALL, cache_dir=tmp_path, progress=lambda written, total: made.append(written)) == first
    assert first.stat().st_mtime_ns == before
    assert made == []


def test_nothing_but_the_model_is_left_in_the_cache(tmp_path: Path) -> None:
    path = zoo.load(SMALL, cache_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size == zoo.info(SMALL).file_bytes


def test_progress_grows_to_the_whole_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = zoo.load(SMALL, cache_dir=tmp_path, progress=lambda written, total: seen.append((written, total)))
    size = path.stat().st_size
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {size}
    assert seen[-1] == (size, size)


def test_interrupted_load_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(written: int, total: int) -> None:
        if written > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.load(SMALL, cache_dir=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_cut_short_file_is_made_again(tmp_path: Path) -> None:
    path = zoo.load(SMALL, cache_dir=tmp_path)
    whole = digest(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    assert zoo.load(SMALL, cache_dir=tmp_path) == path
    assert digest(path) == whole


def test_processes_that_load_at_once_all_get_the_whole_model(tmp_path: Path) -> None:
    script = (
        "import hashlib, pathlib, sys; from parallax import zoo; "
        "print(hashlib.sha256(zoo.load(sys.argv[1], cache_dir=sys.argv[2]).read_bytes()).hexdigest())"
    )
    command = [sys.executable, "-c", script, SMALL, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=100)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (path,) = tmp_path.iterdir()
    assert answers == {digest(path)}


def test_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"cannot write zoo model 'mobilenetv3-s'.*pass another cache_dir"):
        zoo.load(SMALL, cache_dir=tmp_path / "file" / "cache")


def test_whole_model_keeps_small_constants_and_draws_the_rest() -> None:
    whole = onnx.load(zoo.load(SMALL))
    structure = read_structure(read_structure_bytes(SMALL))
    assert whole.graph.node == structure.graph.node
    drawn = 0
    for tensor, stored in zip(whole.graph.initializer, structure.graph.initializer, strict=True):
        recipe = recipe_of(stored)
        assert (tensor.name, list(tensor.dims)) == (stored.name, list(stored.dims))
        assert not tensor.metadata_props
        if recipe is None:
            assert tensor == stored
            continue
        drawn += 1
        values = onnx.numpy_helper.to_array(tensor)
        spread = 5 * recipe.deviation / np.sqrt(values.size)
        assert float(values.mean()) == pytest.approx(recipe.mean, abs=spread + 0.2 * recipe.deviation)
        assert np.float32(recipe.low) <= values.min()
        assert values.max() <= np.float32(recipe.high)
    assert drawn > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_whole_model_passes_the_onnx_checker(name: str) -> None:
    path = zoo.load(name)
    onnx.checker.check_model(str(path), full_check=True)
