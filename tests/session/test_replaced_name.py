"""``onnxruntime.InferenceSession = parallax.InferenceSession``: packages that open sessions themselves then get ours.

Replacing a name in another module changes the whole process, so each way of replacing it has a process of its own.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import parallax
from tests.session._replacing import JOBS, WAYS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


@functools.cache
def _outcomes(way: str) -> tuple[dict[str, str], str]:
    """Job -> what became of it, and what was written to the standard error."""
    with tempfile.TemporaryDirectory() as folder:
        search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "tests.session._replacing", way, folder],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                env=os.environ | {"PYTHONPATH": search, "XDG_CACHE_HOME": folder},
                cwd=ROOT,
                check=False,
            )
            printed, complaints = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            printed, complaints = (late.stdout or b"").decode(), "the process hung"
    return dict(line.split(" ", 1) for line in printed.splitlines()), complaints


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("job", [job.__name__ for job in JOBS])
def test_a_client_of_onnxruntime_gets_right_answers_where_the_name_is_ours(way: str, job: str) -> None:
    outcomes, complaints = _outcomes(way)
    assert outcomes.get(job) == "right", (outcomes.get(job, "nothing was printed"), complaints[-2000:])


def test_the_package_calls_the_class_it_found_at_import_and_never_the_name() -> None:
    called = []
    for path in sorted(Path(parallax.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
            for callee in found:
                if ast.unparse(callee) in ("onnxruntime.InferenceSession", "ort.InferenceSession"):
                    called.append(f"{path.name}:{callee.lineno}")
    assert called == []
