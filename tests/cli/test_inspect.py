from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from _graphs import serial_chains
from onnx import TensorProto, helper

from tests.cli._models import branching, choosing, invoke, save, two_inputs, value
from tests.model._pruned import losing


def inspect(*arguments: object) -> dict[str, Any]:
    result = invoke("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_operators_are_counted_with_their_work(tmp_path: Path) -> None:
    report = inspect(branching(tmp_path / "m.onnx"), "--shape", "x=16,8")
    rows = {row["operator"]: row for row in report["operators"]}
    assert {name: row["nodes"] for name, row in rows.items()} == {"Relu": 1, "Sin": 3, "Cos": 3, "Add": 1}
    assert rows["Add"]["flops"] == 16 * 8
    assert rows["Add"]["bytes"] == 3 * 16 * 8 * 4
    assert report["flops"] == sum(row["flops"] for row in rows.values())
    assert report["nodes_with_unknown_cost"] == 0


def test_classes_branches_and_layers_of_a_diamond(tmp_path: Path) -> None:
    operators = inspect(branching(tmp_path / "m.onnx"))["structure"]["operators"]
    assert operators["classes"] == {"sequential": 6, "splitter": 1, "merger": 1, "split-merge": 0}
    assert operators["branches"] == 4
    assert operators["layers"] == 3
    assert operators["parallel_layers"] == 1
    assert operators["widest_layer"] == 2


def test_the_rules_answer_for_each_layer_of_several_branches(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    paper = inspect(path, "--shape", "x=16,8", "--rule", "paper")["prediction"]
    cost = inspect(path, "--shape", "x=16,8", "--rule", "cost")["prediction"]
    assert [layer["branches"] for layer in paper["layers"]] == [2]
    # Three equal operators a side satisfy the paper; microseconds of work do not pay for lanes.
    assert [layer["parallel"] for layer in paper["layers"]] == [2]
    assert paper["rule"] == "paper"
    assert cost["rule"] == "cost"
    assert all(layer["reason"] for layer in paper["layers"] + cost["layers"])


def test_open_sizes_are_listed_where_they_occur(tmp_path: Path) -> None:
    report = inspect(two_inputs(tmp_path / "m.onnx"))
    assert report["dynamic_dims"] == {"batch": ["table[0]", "total[0]"], "n": ["index[0]", "total[1]"]}


def test_given_shapes_close_open_sizes(tmp_path: Path) -> None:
    report = inspect(two_inputs(tmp_path / "m.onnx"), "--shape", "table=2,4", "--shape", "index=3")
    assert report["inputs"][0]["shape"] == [2, 4]
    assert report["nodes_with_unknown_cost"] == 0


def test_control_flow_is_listed_with_its_bodies(tmp_path: Path) -> None:
    report = inspect(choosing(tmp_path / "m.onnx"))
    (row,) = report["control_flow"]
    assert row["node"] == "choose"
    assert row["operator"] == "If"
    assert {body["name"]: body["nodes"] for body in row["bodies"]} == {"then_branch": 1, "else_branch": 2}
    assert row["captures"] == ["x"]
    assert report["nodes"] == 1
    assert report["nodes_with_bodies_included"] == 4
    assert report["structure"]["operators"]["classes"]["split-merge"] == 1


def test_a_model_that_the_runtime_refuses_can_still_be_inspected(tmp_path: Path) -> None:
    path = save(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        tmp_path / "m.onnx",
    )
    result = invoke("inspect", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["nodes_with_unknown_cost"] == 1
    assert "note: ONNX Runtime cannot open this model" in result.stderr


def test_tables_name_every_part_and_hold_no_escape_codes(tmp_path: Path) -> None:
    result = invoke("inspect", choosing(tmp_path / "m.onnx"))
    for part in ("operators", "control flow", "structure", "predicted from tables", "then_branch (1 operators)"):
        assert part in result.stdout
    assert "\x1b" not in result.stdout
    # Shapes in brackets are text, not markup.
    assert "input x: float32 [4]" in result.stdout


def test_fused_operators_lie_in_one_group() -> None:
    structure = inspect("zoo:resnet18")["structure"]
    # Each Relu is fused into the convolution before it, so fewer groups than operators.
    assert structure["units"]["nodes"] < structure["operators"]["nodes"]


def test_the_first_line_says_whether_it_is_worth_it_and_what_to_type_next(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    lines = invoke("inspect", path, "--shape", "x=16,8", "--threads", 2).stdout.splitlines()
    assert lines[0].startswith("worth it: ")
    assert f"Next: parallax tune {path} --shape=x=16,8" in lines[0] or "Next: parallax compile" in lines[0]
    assert lines[1].startswith("here: whole model, 2 threads (2 cores here)")
    assert "parallax devices" in lines[1]
    assert lines[2].startswith("right: ")
    assert f"parallax bench {path}" in lines[2]


def test_answers_are_in_the_document_too(tmp_path: Path) -> None:
    report = inspect(branching(tmp_path / "m.onnx"), "--shape", "x=16,8")
    assert next(iter(report)) == "answers"
    worth = report["answers"]["worth_it"]
    assert worth["answer"] in ("yes", "perhaps", "no")
    assert worth["basis"] == "predicted"
    assert all(entry["text"] and entry["next"] for entry in report["answers"].values())


def wide_branches(path: Path) -> Path:
    """Four chains of operators that use one thread each."""
    onnx.save(serial_chains(), path)
    return path


def test_a_model_that_gains_by_itself_is_worth_it(tmp_path: Path) -> None:
    report = inspect(wide_branches(tmp_path / "m.onnx"), "--threads", 4)
    worth = report["answers"]["worth_it"]
    assert worth["answer"] == "yes"
    assert worth["times_faster"] > 1.15
    assert worth["next"].startswith("bench ")
    assert report["answers"]["here"]["text"].startswith("split into ")
    alone = inspect(wide_branches(tmp_path / "m.onnx"), "--threads", 1)["answers"]
    assert alone["worth_it"]["answer"] == "no"
    assert alone["here"]["text"].startswith("whole model, 1 thread (1 core here)")


def test_with_a_device_the_answer_is_about_that_device(tmp_path: Path) -> None:
    report = inspect("zoo:yolov8n", "--provider", "emulated:pixel-6-gpu")
    worth = report["answers"]["worth_it"]
    placements = report["provider"]["placements"]
    assert worth["times_faster"] == placements[0]["ms"] / placements[-1]["ms"]
    assert "emulated" in worth["text"]
    assert worth["next"] == "bench zoo:yolov8n --provider emulated:pixel-6-gpu"
    assert (
        inspect(branching(tmp_path / "m.onnx"), "--provider", "emulated:pixel-6-gpu")["answers"]["worth_it"]["answer"]
        == "no"
    )


def test_a_model_that_the_runtime_refuses_is_worth_nothing_that_is_known(tmp_path: Path) -> None:
    path = save(
        [helper.make_node("NoSuchOperator", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [value("x", TensorProto.FLOAT, [4])],
        [value("z", TensorProto.FLOAT, [4])],
        tmp_path / "m.onnx",
    )
    assert inspect(path)["answers"]["here"]["text"]


def test_a_bundle_is_inspected_too(tmp_path: Path) -> None:
    bundle = tmp_path / "m.plx"
    assert invoke("compile", branching(tmp_path / "m.onnx"), "-o", bundle).exit_code == 0
    shown = invoke("inspect", bundle).stdout
    assert shown.startswith("worth it: yes, it was compiled for this machine")
    assert "compiled from" in shown
    assert "plan: whole model" in shown
    report = inspect(bundle)
    assert report["fits_here"]
    assert report["answers"]["worth_it"]["answer"] == "yes"
    for option in (["--shape", "x=4,8"], ["--provider", "emulated:pixel-6-gpu"], ["--rule", "paper"]):
        result = invoke("inspect", bundle, *option)
        assert result.exit_code == 2
        assert "is compiled" in result.stderr


def test_a_bundle_for_elsewhere_is_not_worth_it_and_says_how_to_make_it_anew(tmp_path: Path) -> None:
    bundle = tmp_path / "m.plx"
    assert invoke("compile", branching(tmp_path / "m.onnx"), "-o", bundle, "--threads", 1).exit_code == 0
    worth = json.loads(invoke("inspect", bundle, "--threads", 3, "--json").stdout)["answers"]["worth_it"]
    assert worth["answer"] == "no"
    assert worth["next"].startswith("compile ")


def test_what_zeros_make_superfluous_is_listed_with_reasons(tmp_path: Path) -> None:
    made, _ = losing()
    onnx.save(made, tmp_path / "m.onnx")
    report = inspect(tmp_path / "m.onnx", "--slim")
    slimming = report["slimming"]
    assert slimming["summary"].startswith("slimmed: ")
    assert slimming["channels"] == sum(row["count"] for row in slimming["removals"]) > 0
    assert all(row["why"] for row in (*slimming["removals"], *slimming["refusals"]))
    assert report["flops"] < inspect(tmp_path / "m.onnx")["flops"]
    assert "slimming" not in inspect(tmp_path / "m.onnx")
    shown = invoke("inspect", tmp_path / "m.onnx", "--slim").stdout
    assert slimming["summary"] in shown
    assert slimming["removals"][0]["node"] in shown


def test_a_bundle_is_slim_or_not_already(tmp_path: Path) -> None:
    made, _ = losing()
    onnx.save(made, tmp_path / "m.onnx")
    bundle = tmp_path / "m.plx"
    assert invoke("compile", tmp_path / "m.onnx", "--output", bundle, "--slim").exit_code == 0
    assert json.loads(invoke("bundle", "info", bundle, "--json").stdout)["options"]["slim"] is True
    refused = invoke("inspect", bundle, "--slim")
    assert refused.exit_code != 0
    assert "--slim does not apply to it" in refused.output
