"""Every model of the zoo is planned as it was recorded; see `tools/golden_plans.py` for what is recorded, and how."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parallax
from parallax import zoo
from parallax.backends.emulated import _backend as emulated
from parallax.errors import ConfigError
from parallax.profile import product_flops
from parallax.schedule import CPU_BACKEND
from tools import golden_plans
from tools.golden_plans import (
    DEVICES,
    FOLDER,
    as_text,
    compare,
    describe_plan,
    differences,
    explain,
    golden_path,
    planned_shapes,
    read_document,
    record,
)

ROOT = Path(__file__).parents[2]

QUICK = ("lstm-if-loop", "mobilenetv2", "mobilenetv3-s", "resnet18", "yolov8n")
"""Models that are planned for all devices and numbers of cores within a few seconds."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.names()]
)
def test_a_zoo_model_is_planned_as_recorded(name: str) -> None:
    found = compare(name)
    assert not found, explain(name, found)


def test_all_plans_were_recorded_with_the_pinned_libraries() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(zoo.names())
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = dict(re.findall(r"^(onnx|onnxruntime)==(\S+)", pins, re.MULTILINE))
    for name in zoo.names():
        document = json.loads(golden_path(name).read_text("utf-8"))
        assert (document["model"], document["made_with"]) == (name, pinned)
        assert as_text(document) == golden_path(name).read_text("utf-8"), "edited by hand"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("min_gain", [None, 0.0])
def test_a_session_runs_the_plan_that_was_recorded(
    device: str, cores: int, min_gain: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "host_gemm_flops", lambda: product_flops(cores))
    name = "lstm-if-loop"
    session = parallax.InferenceSession(
        zoo.load(name),
        providers=None if device == CPU_BACKEND else [device],
        threads=cores,
        min_gain=min_gain,
        shapes=planned_shapes(name),
        cache_dir=tmp_path,
    )
    made = {"device": device, "cores": cores, "min_gain": min_gain, **describe_plan(session.plan)}
    assert json.loads(json.dumps(made)) in read_document(name)["plans"]


def test_plans_do_not_depend_on_the_order_of_sets() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "golden_plans.py"), "--check", "--json", "lstm-if-loop"],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {"lstm-if-loop": {"differences": []}}


def test_a_difference_is_told_by_case_segment_and_field() -> None:
    recorded = read_document("resnet18")
    changed = json.loads(json.dumps(recorded))
    number, plan = next((at, plan) for at, plan in enumerate(recorded["plans"]) if len(plan["segments"]) > 3)
    segments = changed["plans"][number]["segments"]
    segments[2][golden_plans.COLUMNS.index("cost_ns")] += 5
    cost = plan["segments"][2][golden_plans.COLUMNS.index("cost_ns")]
    (line,) = differences(recorded, changed, ["conv"] * 100)
    assert line.startswith(f"{plan['device']}, {plan['cores']} core")
    assert f"segment 2 (nodes {plan['segments'][2][0]}, the first of them 'conv')" in line
    assert line.endswith(f": cost_ns: {cost} was recorded, {cost + 5} is made")
    told = explain("resnet18", [line])
    assert line in told
    assert "python tools/golden_plans.py resnet18" in told


def test_other_segments_and_a_missing_plan_are_told() -> None:
    recorded = read_document("resnet18")
    changed = json.loads(json.dumps(recorded))
    number, plan = next((at, plan) for at, plan in enumerate(recorded["plans"]) if len(plan["segments"]) > 3)
    first = changed["plans"][number]["segments"].pop(0)
    lines = differences(recorded, changed, ["conv"] * 100)
    count = len(plan["segments"])
    assert any(f"number of segments: {count} was recorded, {count - 1} is made" in line for line in lines)
    assert any(f"segment 0, only recorded: nodes {first[0]}" in line for line in lines)
    changed["plans"].pop()
    assert differences(recorded, changed, [])[-1].endswith("recorded, and not made any more")
    candidates = json.loads(json.dumps(recorded))
    entry = next(entry for entry in candidates["candidates"] if entry["plans"])
    entry["plans"][0][3] += 1
    assert [line.partition(": ")[2][:13] for line in differences(recorded, candidates, [])] == [
        "only recorded",
        "only made now",
    ]


def test_another_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.0.0")
    with pytest.raises(ConfigError, match=r"onnxruntime \S+ \(installed: 1\.0\.0\)"):
        read_document("resnet18")


def test_plans_are_recorded_whole_and_only_where_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = golden_path("resnet18").read_bytes()
    monkeypatch.setattr(golden_plans, "FOLDER", tmp_path)
    assert record("resnet18")
    assert [path.name for path in tmp_path.iterdir()] == ["resnet18.json"]
    assert golden_path("resnet18").read_bytes() == recorded
    assert not record("resnet18")
