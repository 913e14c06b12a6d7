"""Programs that were written for ONNX Runtime run with one line changed, and unchanged under ``python -m parallax``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.voice_activity import read_recording
from tests.session._dropin import branches_answer, branches_model

RECORDING = Path(__file__).parents[2] / "examples" / "data" / "speech.wav"
PROGRAM = Path(__file__).with_name("_pipeline.py")
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
PATIENCE_S = 110


def run(command: Sequence[object], folder: Path, **environment: str) -> str:
    """What a command prints; its errors where it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def reported(command: Sequence[object], folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run(command, folder))
    return report


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(branches_model().SerializeToString())
    return path


def _check(report: dict[str, Any], stock: dict[str, Any]) -> None:
    """The same in every respect, but for the class that computed it."""
    assert report.pop("class").startswith("parallax")
    assert stock.pop("class").startswith("onnxruntime")
    own, theirs = report.pop("answers"), stock.pop("answers")
    assert own.keys() == theirs.keys()
    for way, answer in own.items():
        np.testing.assert_allclose(answer, theirs[way], rtol=1e-5, atol=1e-5, err_msg=way)
    np.testing.assert_allclose(own["binding"], branches_answer(X), rtol=1e-5, atol=1e-5)
    assert report == stock


def test_with_the_one_changed_line(model: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.py"
    text = PROGRAM.read_text(encoding="utf-8")
    assert text.count("import onnxruntime as ort\n") == 1
    changed.write_text(text.replace("import onnxruntime as ort\n", "import parallax as ort\n"), encoding="utf-8")
    plain = tmp_path / "plain.py"
    plain.write_text(text, encoding="utf-8")
    report, stock = (reported([path, model, tmp_path, "--rounds", 3], tmp_path) for path in (changed, plain))
    assert report.pop("file") == str(changed)
    stock.pop("file")
    _check(report, stock)


def test_unchanged(model: Path, tmp_path: Path) -> None:
    arguments = [PROGRAM, model, tmp_path, "--rounds", 3]
    _check(reported(["-m", "parallax", *arguments], tmp_path), reported(arguments, tmp_path))


def test_unchanged_as_a_module(model: Path, tmp_path: Path) -> None:
    package = tmp_path / "tools"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "pipeline.py").write_bytes(PROGRAM.read_bytes())
    arguments = ["-m", "tools.pipeline", model, tmp_path]
    _check(reported(["-m", "parallax", *arguments], tmp_path), reported(arguments, tmp_path))


# -- libraries that open sessions themselves --------------------------------------------------------------------------

SILERO = """
import collections, json, sys
import onnxruntime
opened = collections.Counter()
def note(session):
    opened[type(session).__module__.partition(".")[0]] += 1
import numpy, torch
from silero_vad import get_speech_timestamps, load_silero_vad
model = load_silero_vad(onnx=True)
note(model.session)
wave = numpy.load(sys.argv[1])
found = get_speech_timestamps(torch.from_numpy(wave), model, sampling_rate=16000)
print(json.dumps({"found": found, "opened": opened}))
"""

RAPIDOCR = """
import collections, gc, json, sys
import onnxruntime
from rapidocr import RapidOCR
engine = RapidOCR(params={"Global.log_level": "error"})
result = engine(sys.argv[1])
base = onnxruntime.capi.onnxruntime_inference_collection.Session
opened = collections.Counter(
    type(held).__module__.partition(".")[0] for held in gc.get_objects() if isinstance(held, base)
)
print(json.dumps({"found": list(result.txts), "scores": list(map(float, result.scores)), "opened": opened}))
"""


LINES = ("Whole unless a split pays", "Same numbers 12345")


def write_page(path: Path) -> None:
    """Two lines of text, dark on light."""
    from PIL import Image, ImageDraw, ImageFont  # comes with rapidocr

    page = Image.new("RGB", (700, 200), "white")
    for number, text in enumerate(LINES):
        place = (20, 20 + 80 * number)
        ImageDraw.Draw(page).text(place, text, fill="black", font=ImageFont.load_default(48))
    page.save(path)


PATCHES: dict[str, str] = {
    "patched first": "import parallax\nparallax.patch()\n{script}",
    # The library is loaded by then, and holds ONNX Runtime's class.
    "patched late": "import {library}\nimport parallax\nparallax.patch()\n{script}",
}


def _compare(
    library: str, script: str, argument: Path, folder: Path
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What the script reports by itself, after each time what it reports with our sessions: unchanged under
    ``python -m parallax``, and patched."""
    path = folder / "client.py"
    path.write_text(script, encoding="utf-8")
    stock = reported([path, argument], folder)
    assert list(stock["opened"]) == ["onnxruntime"]
    yield reported(["-m", "parallax", path, argument], folder), stock
    for name, form in PATCHES.items():
        patched = folder / f"{name.replace(' ', '_')}.py"
        patched.write_text(form.format(library=library, script=script), encoding="utf-8")
        yield reported([patched, argument], folder), stock


def _why_missing(*modules: str) -> str:
    """Which of these is not installed; "" where all are."""
    return next((f"{name} is not installed" for name in modules if importlib.util.find_spec(name) is None), "")


@pytest.mark.slow
@pytest.mark.skipif(bool(_why_missing("silero_vad", "torch")), reason=_why_missing("silero_vad", "torch"))
def test_silero_vad_finds_the_same_speech(tmp_path: Path) -> None:
    np.save(tmp_path / "wave.npy", read_recording(RECORDING))
    for ours, stock in _compare("silero_vad", SILERO, tmp_path / "wave.npy", tmp_path):
        assert list(ours["opened"]) == ["parallax"]
        assert len(stock["found"]) == 2, "there are two phrases in the recording"
        assert ours["found"] == stock["found"]


@pytest.mark.slow
@pytest.mark.skipif(bool(_why_missing("rapidocr")), reason=_why_missing("rapidocr"))
def test_rapidocr_reads_the_same_text(tmp_path: Path) -> None:
    write_page(tmp_path / "page.png")
    for ours, stock in _compare("rapidocr", RAPIDOCR, tmp_path / "page.png", tmp_path):
        assert list(ours["opened"]) == ["parallax"]
        assert stock["found"] == list(LINES), "that is what is on the page"
        assert ours["found"] == stock["found"]
        np.testing.assert_allclose(ours["scores"], stock["scores"], rtol=1e-4, atol=1e-4)
