"""``inspect --provider`` and ``devices``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parallax.backends import find_backends, open_backend
from parallax.backends.emulated import profile_names
from parallax.backends.emulated._profiles import load_profile
from parallax.model import load_model
from tests.backends._backends import obstacle, opened
from tests.cli._models import affine, choosing, invoke, value

PIXEL = "emulated:pixel-6-gpu"


def offload(*arguments: object, provider: str = PIXEL) -> dict[str, Any]:
    result = invoke("inspect", *arguments, "--provider", provider, "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)["provider"]
    return report


def convolutions(path: Path, *, gap: str, size: int = 56) -> Path:
    """Wide convolutions with one operator in the middle, a constant, and shape arithmetic beside them."""
    weights = np.ones((64, 64, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node(gap, ["a"], ["b"], name="gap"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["two"], name="two", value_float=2.0),
        helper.make_node("Mul", ["c", "two"], ["y"], name="scale"),
    ]
    shape = [1, 64, size, size]
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def by_node(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in report["per_node"]}


def placed(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["placement"]: row for row in report["placements"]}


def test_what_pays_is_taken_with_its_launches_and_transfers(tmp_path: Path) -> None:
    report = offload(convolutions(tmp_path / "m.onnx", gap="Relu"))
    nodes = by_node(report)
    assert {nodes[name]["verdict"] for name in ("first", "gap", "second")} == {"taken"}
    assert nodes["two"]["verdict"] == "constant"
    assert report["gains"]
    assert report["after"]["launches"] >= 1
    assert report["after"]["transferred_bytes"] >= 2 * 4 * 64 * 56 * 56
    rows = placed(report)
    assert rows["ours, beside the CPU"]["ms"] < rows["CPU only"]["ms"]
    assert rows["ours, beside the CPU"]["ms"] <= rows["greedy: all it supports"]["ms"]
    assert "1 region on emulated:pixel-6-gpu" in report["reason"]


def test_an_operator_that_it_lacks_is_named_with_what_lacking_it_costs(tmp_path: Path) -> None:
    report = offload(convolutions(tmp_path / "m.onnx", gap="Erf"))
    gap = by_node(report)["gap"]
    assert gap["verdict"] == "unsupported operator"
    assert gap["detail"] == "tflite-gpu has no Erf"
    # Nobody says what it would take there.
    assert gap["device_ms"] is None
    assert gap["cpu_ms"] > 0
    assert report["before"] == {"launches": 2, "transfers": 4, "transferred_bytes": 4 * 4 * 64 * 56 * 56}
    (advice,) = report["advice"]
    assert (advice["operator"], advice["nodes"], advice["change"]) == (
        "Erf",
        1,
        "replace the operator by ones the device has",
    )
    assert 0 < advice["saves_ms"] < advice["now_ms"]
    assert "emulated" in advice["figures"]


def test_a_model_that_gains_nothing_stays_on_the_cpu_and_the_numbers_say_why(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    report = offload(path)
    assert not report["gains"]
    assert report["reason"].startswith(f"no region gains anything on {PIXEL}: the model stays on the CPU (")
    rows = placed(report)
    assert rows["ours, beside the CPU"]["ms"] == rows["CPU only"]["ms"] < rows["greedy: all it supports"]["ms"]
    assert rows["ours, beside the CPU"]["launches"] == 0
    for row in report["per_node"]:
        assert row["verdict"] == "too small to pay"
        assert row["compared_device_ms"] > row["compared_cpu_ms"] > 0
        assert f"ms on {PIXEL}" in row["reason"]
    table = invoke("inspect", path, "--provider", PIXEL).stdout
    assert "No region gains anything" in table
    assert "too small to pay" in table


def test_every_node_is_in_one_group_and_groups_come_by_cost() -> None:
    report = offload("zoo:mobilenetv3-s")
    assert sum(group["nodes"] for group in report["groups"]) == len(report["per_node"]) == report["nodes"]["all"]
    for group in report["groups"]:
        assert group["nodes"] == sum(row["nodes"] for row in group["operators"])
        times = [row["cpu_ms"] for row in group["operators"]]
        assert times == sorted(times, reverse=True)
    times = [group["cpu_ms"] for group in report["groups"]]
    assert times == sorted(times, reverse=True)
    cpu_only = placed(report)["CPU only"]["ms"]
    assert sum(row["cpu_ms"] for row in report["per_node"]) == pytest.approx(cpu_only)


def test_bodies_are_reported_as_graphs_of_their_own(tmp_path: Path) -> None:
    report = offload(choosing(tmp_path / "m.onnx"))
    holder, *inside = report["per_node"]
    assert (holder["node"], holder["verdict"]) == ("choose", "control flow")
    assert sorted(row["operator"] for row in inside) == ["Add", "Mul", "Mul"]
    assert {(row["inside"], row["verdict"]) for row in inside} == {("choose", "too small to pay")}
    assert report["nodes"] == {"all": 4, "supported": 0, "taken": 0, "constant": 0, "in_bodies": 3}
    assert report["reason"].startswith(f"{PIXEL} takes no operator of this model")
    assert {(body["body"], body["nodes"], body["supported"], body["gains"]) for body in report["bodies"]} == {
        ("then_branch", 1, 1, False),
        ("else_branch", 2, 2, False),
    }


def test_a_body_that_gains_is_taken_though_its_holder_is_not(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((64, 64, 3, 3), np.float32), "w")
    shape = [1, 64, 56, 56]
    heavy = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["b"], name="second", pads=[1, 1, 1, 1]),
    ]
    light = [helper.make_node("Relu", ["x"], ["c"], name="alone")]
    choice = helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="choose",
        then_branch=helper.make_graph(heavy, "then", [], [value("b", TensorProto.FLOAT, shape)]),
        else_branch=helper.make_graph(light, "else", [], [value("c", TensorProto.FLOAT, shape)]),
    )
    inputs = [value("x", TensorProto.FLOAT, shape), value("flag", TensorProto.BOOL, [])]
    graph = helper.make_graph([choice], "g", inputs, [value("y", TensorProto.FLOAT, shape)], [weights])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    report = offload(path)
    nodes = by_node(report)
    assert nodes["choose"]["verdict"] == "control flow"
    assert nodes["first"]["verdict"] == nodes["second"]["verdict"] == "taken"
    assert nodes["alone"]["verdict"] == "too small to pay"
    assert {body["body"]: body["gains"] for body in report["bodies"]} == {"then_branch": True, "else_branch": False}
    assert report["reason"].endswith("; of its 2 bodies, 1 gains there")
    assert "bodies, as graphs of their own" in invoke("inspect", path, "--provider", PIXEL).stdout


@pytest.mark.parametrize("column", [80, 120])
def test_whatever_rests_on_an_emulated_figure_says_so(
    tmp_path: Path, column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(column))
    path = convolutions(tmp_path / "m.onnx", gap="Erf")
    report = offload(path)
    assert report["is_emulated"]
    for row in report["placements"]:
        assert ("emulated" in row["figures"]) == (row["launches"] > 0)
    text = invoke("inspect", path, "--provider", PIXEL).stdout
    shown = text[text.index(f"\non {PIXEL}") :]
    for part in ("Emulated: device figures are from the profile", "tables, emulated", "emulated ms", "ms (emulated)"):
        assert part in shown


def test_a_budget_of_the_devices_memory_leaves_out_what_has_no_room(tmp_path: Path) -> None:
    path = convolutions(tmp_path / "m.onnx", gap="Relu")
    free = offload(path)
    assert free["memory"]["budget_bytes"] is None
    assert free["memory"]["weight_bytes"] == 64 * 64 * 9 * 4 + 4
    assert free["memory"]["held_bytes"] > free["memory"]["weight_bytes"]
    report = offload(path, provider=f"{PIXEL},memory_budget=100KiB")
    assert report["memory"]["budget_bytes"] == 100 << 10
    assert report["memory"]["held_bytes"] <= 100 << 10
    assert {by_node(report)[name]["verdict"] for name in ("first", "second")} == {"out of memory"}
    result = invoke("inspect", path, "--provider", f"{PIXEL},memory_budget=100KiB")
    assert "of 100 KiB allowed" in " ".join(result.stdout.split())
    assert "out of memory" in result.stdout


def test_an_emulated_devices_figures_are_the_same_each_time(tmp_path: Path) -> None:
    path = convolutions(tmp_path / "m.onnx", gap="Relu")
    assert offload(path) == offload(path)


@pytest.mark.skipif(obstacle("openvino") is not None, reason=str(obstacle("openvino")))
def test_a_device_without_prices_is_probed_and_its_figures_say_so(tmp_path: Path) -> None:
    report = offload(convolutions(tmp_path / "m.onnx", gap="Relu"), provider="openvino")
    assert report["figures"] == "probed"
    assert report["speed"]["flops_per_s"] > 0
    assert report["speed"]["link_bytes_per_s"] is None  # it computes in the processor's memory
    assert report["note"].startswith("Probed: ")
    # On the same cores nothing runs beside it.
    assert "ours, beside the CPU" not in placed(report)


@pytest.mark.skipif(obstacle("webgpu") is not None, reason=str(obstacle("webgpu")))
def test_a_plugin_is_asked_and_probed(tmp_path: Path) -> None:
    path = convolutions(tmp_path / "m.onnx", gap="Erf", size=8)
    with opened("webgpu") as backend:
        report = offload(path, provider="webgpu")
        refused = backend.capability(load_model(path)).refused
    assert report["name"] == "WebGpuExecutionProvider"
    assert report["figures"] == "probed"
    assert report["nodes"]["supported"] == report["nodes"]["all"] - len(refused)


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("tpu", "there is no backend 'tpu'; choose among"),
        (f"{PIXEL},memory_budget", "'memory_budget' is no option of"),
        (f"{PIXEL},memory_budget=lots", "no amount of memory"),
        (f"{PIXEL},sped=3", "no option 'sped'"),
        ("emulated:pixel-99", "there is no device profile 'pixel-99'; choose one of: jetson"),
        ("cpu", "'cpu' is the CPU, which all others are compared with; name another backend; `parallax devices`"),
        ("CPUExecutionProvider", "is the CPU"),
        ("NobodysExecutionProvider", "ONNX Runtime knows no provider"),
    ],
)
def test_a_device_that_cannot_be_used_ends_with_the_remedy(tmp_path: Path, provider: str, words: str) -> None:
    result = invoke("inspect", affine(tmp_path / "m.onnx"), "--provider", provider)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not result.stdout


def test_devices_are_listed_with_what_stands_in_their_way() -> None:
    listed = json.loads(invoke("devices", "--json").stdout)["devices"]
    assert [entry["name"] for entry in listed] == [entry.name for entry in find_backends()]
    rows = {entry["name"]: entry for entry in listed}
    assert rows["CPUExecutionProvider"]["usable"]
    for name in profile_names():
        row = rows[f"emulated:{name}"]
        assert row["is_emulated"]
        assert load_profile(name).title in row["device"]
    for row in listed:
        assert row["usable"] == (row["obstacle"] is None)
        if row["usable"]:
            assert open_backend(row["name"]).info.kind.value == row["kind"]
    shown = invoke("devices").stdout
    assert all(row["name"] in shown for row in listed)
