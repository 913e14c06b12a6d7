"""What Tab offers: asked as the shells ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parallax import zoo
from parallax.cli._completing import complete_bundle, complete_model, complete_zoo_name

BASH = shutil.which("bash")

ASK = """
eval "$(_PARALLAX_COMPLETE=source_bash parallax)"
COMP_WORDS=({words}); COMP_CWORD={cword}
_parallax_completion parallax
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("model.onnx", "model.txt", "other.onnx"):
        (tmp_path / name).touch()
    (tmp_path / "compiled.plx").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "inner.onnx").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_are_files_bundles_folders_and_names_of_the_zoo(folder: Path) -> None:
    assert complete_model("mo") == ["model.onnx", "models/"]
    assert complete_model("c") == ["compiled.plx"]
    assert complete_model("models/") == ["models/inner.onnx"]
    assert complete_model("zoo:res") == ["zoo:resnet18"]
    assert {f"zoo:{name}" for name in zoo.names()} < set(complete_model(""))
    assert complete_model("gone/") == []


def test_bundles_and_zoo_names_are_offered_where_only_those_are_taken(folder: Path) -> None:
    assert complete_bundle("") == ["compiled.plx", "models/"]
    assert complete_zoo_name("mobile") == ["mobilenetv2", "mobilenetv3-s"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parallax` on the path, as an installed one is."""
    place = tmp_path / "bin"
    place.mkdir()
    script = place / "parallax"
    script.write_text(f"#!{sys.executable}\nfrom parallax.cli import main\nmain()\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")


def ask_bash(words: list[str], cword: int) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        [str(BASH), "--norc", "-c", ASK.format(words=quoted, cword=cword)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None or os.name == "nt", reason="there is no bash here")
@pytest.mark.usefixtures("folder", "program")
@pytest.mark.parametrize(
    ("words", "cword", "offered"),
    [
        (["parallax", "ben"], 1, ["bench"]),
        (["parallax", "bench", "--max"], 2, ["--max-time"]),
        (["parallax", "compile", "m.onnx", "--split", "a"], 4, ["auto", "always"]),
        (["parallax", "zoo", "export", "res"], 3, ["resnet18"]),
        # Bash ends a word at a colon, and puts what it is answered behind that.
        (["parallax", "bench", "zoo", ":", "yo"], 4, ["yolov8n"]),
        (["parallax", "run", "zoo", ":", "res"], 4, ["resnet18"]),
        (["parallax", "run", "other"], 2, ["other.onnx"]),
    ],
)
def test_bash_is_answered(words: list[str], cword: int, offered: list[str]) -> None:
    assert ask_bash(words, cword) == offered


@pytest.mark.skipif(BASH is None or os.name == "nt", reason="there is no bash here")
@pytest.mark.usefixtures("folder", "program")
def test_bash_is_given_all_of_the_zoo_behind_the_colon() -> None:
    assert ask_bash(["parallax", "inspect", "zoo", ":"], 3) == list(zoo.names())
