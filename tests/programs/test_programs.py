"""Programs that were written for ONNX Runtime run with one line changed, and unchanged under ``python -m parallax``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
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


def write_page(path: Path) -> None:
    """Two lines of text, dark on light."""
    cv2 = pytest.importorskip("cv2")
    page = np.full((200, 700, 3), 255, np.uint8)
    for line, text in enumerate(("Whole unless a split pays", "Same numbers 12345")):
        cv2.putText(page, text, (20, 70 + 80 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3)
    assert cv2.imwrite(str(path), page)


def _compare(script: str, argument: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the script reports under ``python -m parallax``, and by itself."""
    path = folder / "client.py"
    path.write_text(script, encoding="utf-8")
    return tuple(reported([*how, path, argument], folder) for how in (("-m", "parallax"), ()))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed")
def test_silero_vad_finds_the_same_speech(tmp_path: Path) -> None:
    np.save(tmp_path / "wave.npy", read_recording(RECORDING))
    ours, stock = _compare(SILERO, tmp_path / "wave.npy", tmp_path)
    assert list(ours["opened"]) == ["parallax"]
    assert list(stock["opened"]) == ["onnxruntime"]
    assert stock["found"], "there is speech in the recording"
    assert ours["found"] == stock["found"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="rapidocr is not installed")
def test_rapidocr_reads_the_same_text(tmp_path: Path) -> None:
    write_page(tmp_path / "page.png")
    ours, stock = _compare(RAPIDOCR, tmp_path / "page.png", tmp_path)
    assert list(ours["opened"]) == ["parallax"]
    assert list(stock["opened"]) == ["onnxruntime"]
    assert stock["found"], "there is text on the page"
    assert ours["found"] == stock["found"]
    np.testing.assert_allclose(ours["scores"], stock["scores"], rtol=1e-4, atol=1e-4)
