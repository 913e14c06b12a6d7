"""``python -m parallax SCRIPT.py``: a script runs as ``python`` would run it, with our session class."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parallax.cli._program import is_program

ASKS = """
import json, os, sys
import onnxruntime, pathlib
main = sys.modules["__main__"]
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "name": __name__, "file": __file__, "package": __package__,
    "is_main": main.__dict__ is globals(), "spec": None if __spec__ is None else __spec__.name, "doc": __doc__,
    "class": onnxruntime.InferenceSession.__module__.partition(".")[0], "annotations": "annotations" in globals(),
    "loader": type(__loader__).__name__,
}))
"""


def python(*words: object, folder: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, timeout=100, cwd=folder, **more
    )


def asked(*words: object, folder: Path) -> dict[str, Any]:
    done = python(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "script.py"
    path.write_text(f'"""What it is."""\n{ASKS}')
    return path


@pytest.mark.parametrize("form", ["absolute", "relative", "link", "no suffix"])
def test_a_script_finds_what_python_gives_it(script: Path, tmp_path: Path, form: str) -> None:
    word: object = script
    if form == "relative":
        word = script.relative_to(tmp_path)
    elif form == "link":
        (tmp_path / "link.py").symlink_to(script)
        word = "link.py"
    elif form == "no suffix":
        word = script.rename(script.with_name("script"))
    ours = asked("-m", "parallax", word, "--threads", "2", "-m", folder=tmp_path)
    theirs = asked(word, "--threads", "2", "-m", folder=tmp_path)
    assert (ours.pop("class"), theirs.pop("class")) == ("parallax", "onnxruntime")
    assert ours == theirs
    assert ours["argv"] == [str(word), "--threads", "2", "-m"]


@pytest.mark.parametrize("name", ["tools.script", "tools"])
def test_a_module_finds_what_python_gives_it(script: Path, tmp_path: Path, name: str) -> None:
    package = tmp_path / "tools"
    package.mkdir()
    (package / "__init__.py").touch()
    for target in ("script.py", "__main__.py"):
        (package / target).write_bytes(script.read_bytes())
    ours = asked("-m", "parallax", "-m", name, "-v", folder=tmp_path)
    theirs = asked("-m", name, "-v", folder=tmp_path)
    assert (ours.pop("class"), theirs.pop("class")) == ("parallax", "onnxruntime")
    assert ours == theirs


@pytest.mark.parametrize(
    "text",
    [
        "import sys\n\ndef fail():\n    raise ValueError('it broke')\n\nfail()\n",
        "def fail(:\n",
        "import sys\nsys.exit(7)\n",
        "import sys\nsys.exit('no luck')\n",
        "raise SystemExit\n",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(10)\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('second') from error\n",
        "import atexit\natexit.register(print, 'the end')\nprint('the beginning')\n",
    ],
    ids=["error", "syntax", "status", "message", "plain exit", "interrupt", "chained", "atexit"],
)
def test_it_ends_as_it_would_without_us(text: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(text)
    ours, theirs = python("-m", "parallax", path, folder=tmp_path), python(path, folder=tmp_path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


SPAWNS = """
import multiprocessing

def double(number):
    return 2 * number

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""


def test_processes_that_it_spawns_find_its_functions(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWNS)
    done = python("-m", "parallax", "script.py", folder=tmp_path)
    assert done.stdout == "[2, 4]\n", done.stderr


@pytest.mark.parametrize("words", [("nothing.py",), ("-m",), ("-m", "no_such_module"), ("-m", "no.such.module")])
def test_a_program_that_is_not_there_is_one_line_and_exit_code_2(words: tuple[str, ...], tmp_path: Path) -> None:
    done = python("-m", "parallax", *words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "python -m parallax" in line


def test_commands_stay_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("inspect", "bundle", "script", "model.onnx"):
        Path(name).write_bytes(b"\x08\x00" if name.endswith(".onnx") else b"print(1)\n")
    for words in ([], ["inspect", "m.onnx"], ["bundle", "info"], ["--help"], ["--version"], ["model.onnx"], ["zoo"]):
        assert not is_program(words), words
    for words in (["script"], ["./inspect"], ["-m", "inspect"], ["there_is_none.py"], ["inspect.py"]):
        assert is_program(words), words


def test_the_version_is_shown_as_ever(tmp_path: Path) -> None:
    done = python("-m", "parallax", "--version", folder=tmp_path, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0
    assert done.stdout.startswith("parallax ")
