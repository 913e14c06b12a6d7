"""``import parallax as ort``: what onnxruntime exports and is not defined here comes from there, when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import parallax

EXPORTED = sorted(
    name
    for name, value in vars(onnxruntime).items()
    if not name.startswith("_") and getattr(value, "__module__", "").startswith("onnxruntime")
)
OURS = {"InferenceSession"}


def test_there_is_something_to_export() -> None:
    assert {"SessionOptions", "RunOptions", "OrtValue", "IOBinding", "get_available_providers"} <= set(EXPORTED)
    assert len(EXPORTED) > 40


@pytest.mark.parametrize("name", [name for name in EXPORTED if name not in OURS])
def test_what_onnxruntime_exports_comes_from_there(name: str) -> None:
    assert getattr(parallax, name) is getattr(onnxruntime, name)
    assert name in dir(parallax)


def test_what_is_defined_here_is_ours() -> None:
    assert parallax.InferenceSession is not onnxruntime.InferenceSession
    assert set(parallax.__all__) <= set(dir(parallax))
    assert parallax.capi is onnxruntime.capi  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["contextlib", "SesionOptions", "_register_bundled_cuda_plugin_ep", "__wrapped__"])
def test_what_onnxruntime_does_not_export_is_no_attribute(name: str) -> None:
    assert not hasattr(parallax, name)
    with pytest.raises(ImportError):
        exec(f"from parallax import {name}")


def test_names_of_modules_of_ours_win_and_load_no_runtime() -> None:
    script = "import sys\nfrom parallax import cli, errors\nprint('onnxruntime' in sys.modules, cli.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["False", "parallax.cli"]


def test_a_name_is_imported_from_onnxruntime_when_it_is_asked_for() -> None:
    script = """
import sys
import parallax as ort
assert "onnxruntime" not in sys.modules
assert ort.get_available_providers()
from parallax import SessionOptions
import onnxruntime
assert SessionOptions is onnxruntime.SessionOptions
onnxruntime.tomorrow = onnxruntime.SessionOptions
assert ort.tomorrow is SessionOptions, "asked anew each time"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_the_stars_are_ours_alone(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec("from parallax import *", names)
    assert "SessionOptions" not in names
