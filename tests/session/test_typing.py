"""What type checkers know of sessions: a typo is an error, and what is right is none."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parallax
from parallax import types
from parallax.backends.ort import StockSession
from parallax.backends.ort._declared import DeclaredSession

ROOT = Path(__file__).parents[2]

RIGHT = """
import asyncio
from collections.abc import Callable

import numpy as np

import parallax
import parallax as ort
from parallax.types import Feeds, MemorySize, Progress, Split, TensorArgument


def first(session: parallax.InferenceSession, feeds: Feeds) -> np.ndarray:
    argument: TensorArgument = session.get_inputs()[0]
    print(argument.name.upper(), argument.shape, argument.type, session.get_modelmeta().producer_name)
    outputs = session.run(None, feeds)
    outputs.append(1)
    session.run([argument.name], {argument.name: np.zeros(3)}, run_options=None)
    made: np.ndarray = outputs[0]
    return made


def open_it(path: str, budget: MemorySize, split: Split, progress: Progress) -> parallax.InferenceSession:
    options = ort.SessionOptions()
    ort.get_available_providers()
    providers = [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    return ort.InferenceSession(path, options, providers, memory_budget=budget, split=split, progress=progress)


async def awaited(session: parallax.InferenceSession) -> int:
    with session as again:
        outputs = await again.arun(None, {})
    return len(outputs)


def watched(session: parallax.InferenceSession, done: Callable[[object, object, str], None]) -> str:
    session.run_async(None, {}, done, "mine")
    session.plan.provenance.reason.upper()
    with parallax.patch() as patched:
        print(patched.missed)
    return session.explain() + str(session.get_providers()[0].upper())
"""

WRONG = (
    ("session.rum(None, {})", 'has no attribute "rum"'),
    ("session.run(None)", "Missing positional argument"),
    ("session.run(None, {}, run_option=None)", "Unexpected keyword argument"),
    ("session.run(1, {})", "incompatible type"),
    ("session.run(None, [1])", "incompatible type"),
    ("session.run(None, {}).shape", 'has no attribute "shape"'),
    ("session.get_input()", 'has no attribute "get_input"'),
    ("session.get_inputs()[0].nmae", 'has no attribute "nmae"'),
    ("session.get_inputs()[0].name + 1", "Unsupported operand"),
    ("session.get_outputs()[0].shap", 'has no attribute "shap"'),
    ("session.run_async(None, {}, print)", "Missing positional argument"),
    ("session.get_providers().nmae", 'has no attribute "nmae"'),
    ("session.plan.provenance.resaon", 'has no attribute "resaon"'),
    ("session.explain().nmae", 'has no attribute "nmae"'),
    ("session.closed()", 'has no attribute "closed"'),
    ('parallax.InferenceSession("m", memory_buget="1MiB")', "Unexpected keyword argument"),
    ('parallax.InferenceSession("m", threads="2")', "incompatible type"),
    ('parallax.InferenceSession("m", split="sometimes")', "incompatible type"),
    ("parallax.InferenceSession(5)", "incompatible type"),
    ('parallax.compile("m", "b", thread=2)', "Unexpected keyword argument"),
    ("parallax.Options(tune=1)", "incompatible type"),
    ("parallax.SesionOptions()", 'has no attribute "SesionOptions"'),
    ("parallax.types.Feds", 'has no attribute "Feds"'),
)


@pytest.mark.slow
def test_mypy_finds_each_typo_and_nothing_else(tmp_path: Path) -> None:
    lines = [
        "import parallax",
        "import parallax.types",
        "session: parallax.InferenceSession",
        *(call for call, _ in WRONG),
    ]
    wrong, right = tmp_path / "wrong.py", tmp_path / "right.py"
    wrong.write_text("\n".join(lines) + "\n", encoding="utf-8")
    right.write_text(RIGHT, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary", right, wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, cwd=ROOT)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        named = re.match(r".*?(\w+\.py):(\d+): error: (.*)", line)
        assert named is not None or ": note: " in line, done.stdout + done.stderr
        if named is not None:
            found.setdefault(named[1] + named[2], []).append(named[3])
    offset = len(lines) - len(WRONG) + 1
    for position, (call, complaint) in enumerate(WRONG):
        told = found.pop(f"wrong.py{offset + position}", [])
        assert any(complaint in text for text in told), (call, told)
    assert not found, "nothing else is wrong"


def _public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_what_is_declared_of_onnxruntimes_class_is_what_it_has() -> None:
    declared, real = _public(DeclaredSession), _public(StockSession)
    assert set(real) <= set(declared), "declare what this version of ONNX Runtime has"
    for name, parameters in real.items():
        assert declared[name] == parameters, name


def test_the_types_are_described_where_they_are_classes_of_ours() -> None:
    for name in types.__all__:
        assert getattr(types, name) is not None
    assert parallax.types is types
