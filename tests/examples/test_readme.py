"""The README's blocks, in order, by copy and paste, in an empty folder with nothing prepared.

Shell blocks run in bash, Python blocks all in one interpreter, as a reader would have it. What no test can run (another
machine's devices, an hour of benchmarks) has a line above it that says why: ``<!-- readme-test: skip, REASON -->``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FENCE = re.compile(
    r"^(?:<!-- readme-test: skip, (?P<reason>[^\n]*?) -->\n)?```(?P<language>sh|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
ANY_FENCE = re.compile(r"^```(\w+)$", re.MULTILINE)
LONGEST_S = 900
LARGE = {"sympy", "mpmath", "onnx-ir", "torch"}
"""What no installation is to bring along."""


class Block(NamedTuple):
    """Something to copy and paste."""

    line: int
    language: str
    code: str
    reason: str | None
    """Why no test can run it."""


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(line, found["language"], found["code"], found["reason"])


ALL = list(blocks(README.read_text(encoding="utf-8")))


def test_every_block_of_code_is_found() -> None:
    languages = ANY_FENCE.findall(README.read_text(encoding="utf-8"))
    assert len(ALL) == sum(language in ("sh", "python") for language in languages) > 10
    assert set(languages) <= {"sh", "python"}


def test_python_blocks_compile() -> None:
    for block in ALL:
        if block.language == "python":
            compile(textwrap.dedent(block.code), f"README.md, line {block.line}", "exec")


def test_what_is_not_run_says_why() -> None:
    for block in ALL:
        assert block.reason is None or len(block.reason.split()) >= 3, f"README.md, line {block.line}"


# A measurement that other programs spoiled ends with 3, as docs/command-line.md says: other tests may run beside this.
BUSY = 3

RUNNER = """
import json, subprocess, sys
prelude, blocks = json.load(open(sys.argv[1]))
space = {"__name__": "__main__"}
for line, language, code in blocks:
    print(f"--- README.md, line {line}", flush=True)
    if language == "python":
        exec(compile("\\n" * line + code, "README.md", "exec"), space)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", prelude + code], check=True)
print("--- the end", flush=True)
"""


PRELUDE = f"""
parallax() {{
    command parallax "$@" || [ $? -eq {BUSY} ]
}}
"""


def run_blocks(folder: Path, python: Path, wheel: Path) -> str:
    """Run all blocks in ``folder`` with the commands that are installed beside ``python``; returns what was printed.

    What they install from a checkout (".[openvino]") is installed from the wheel that was made of it.
    """
    import json

    (folder / "runner.py").write_text(RUNNER)
    listed = [
        (block.line, block.language, block.code.replace("pip install '.[", f"pip install '{wheel}["))
        for block in ALL
        if block.reason is None
    ]
    (folder / "blocks.json").write_text(json.dumps([PRELUDE, listed]))
    place = folder / "place"
    place.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    done = subprocess.run(
        [str(python), str(folder / "runner.py"), str(folder / "blocks.json")],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert done.stdout.rstrip().endswith("--- the end")
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.timeout(1800)
def test_from_a_wheel_in_a_fresh_environment_every_block_runs(tmp_path: Path) -> None:
    packed = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if packed.returncode and "hatchling" in packed.stderr + packed.stdout:
        pytest.skip("the build backend is not installed")
    assert packed.returncode == 0, packed.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    installed = subprocess.run(
        [*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stderr[-3000:]
    listed = subprocess.run([*pip[:3], "list", "--format", "freeze"], capture_output=True, text=True, check=True).stdout
    brought = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert not brought & LARGE, "nothing imports them"
    printed = run_blocks(tmp_path, python, wheel)
    # What the first screen promises.
    assert "worth it: " in printed
    assert "outputs: equal to ONNX Runtime's, bit for bit" in printed or "outputs: within" in printed
