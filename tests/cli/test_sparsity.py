"""`parallax inspect --sparsity`: what it says, in which form, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import parallax
from parallax.cli import _sparsity
from parallax.cli._timing import time_interleaved
from parallax.sparsity import ZeroForm
from tests.cli._models import affine, counting, invoke, two_inputs
from tests.cli.test_narrow import shown, tables
from tests.model._models import model, node, value, weight

SVG = "{http://www.w3.org/2000/svg}"


def pruned(path: Path, *, batch: int | str = 1) -> Path:
    """A convolution with two zero output channels of eight, a clip, a product with a zero input channel."""
    first, second = weight((8, 3, 3, 3), 1), weight((8, 5), 2)
    first[[0, 5]] = 0
    second[3] = 0
    proto = model(
        [
            node("Conv", "x w1", "c", name="first"),
            node("Relu", "c", "r", name="clip"),
            node("GlobalAveragePool", "r", "p", name="pool"),
            node("Flatten", "p", "f", name="flatten"),
            node("MatMul", "f w2", "y", name="product"),
        ],
        [value("x", (batch, 3, 8, 8))],
        [value("y", (batch, 5))],
        {"w1": first, "w2": second},
    )
    onnx.save(proto, path)
    return path


def sparsity(*arguments: object) -> dict[str, Any]:
    result = invoke("inspect", *arguments, "--sparsity", "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def by_node(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in report["operators"]}


def refused(*arguments: object) -> str:
    result = invoke("inspect", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert "; " in line
    return line


def test_the_document_holds_every_operator_with_its_zeros(tmp_path: Path) -> None:
    report = sparsity(pruned(tmp_path / "m.onnx"), "--cache-dir", tmp_path / "cache")
    assert list(report) == ["model", "examples", "summary", "thresholds", "operators", "worth", "plot"]
    assert [row["node"] for row in report["operators"]] == ["first", "clip", "pool", "flatten", "product"]
    assert all(
        list(row)
        == [
            *("node", "operator", "inside", "input", "input_zeros", "not_observed", "weight_zeros", "zeros", "flops"),
            *("flops_known", "flops_per_byte", "quadrant"),
        ]
        for row in report["operators"]
    )
    first, clip, product = (by_node(report)[name] for name in ("first", "clip", "product"))
    assert first["weight_zeros"] == {
        "share": 0.25,
        "elements": 216,
        "output_channels": 8,
        "zero_output_channels": 2,
        "input_channels": 3,
        "zero_input_channels": 0,
    }
    assert first["input_zeros"] == {"mean": 0, "deviation": 0}
    # Two channels of zeros, before and after Relu; it clips about half of the others.
    assert clip["input_zeros"]["mean"] == pytest.approx(0.25)
    assert by_node(report)["pool"]["input_zeros"]["mean"] > 0.4
    assert clip["weight_zeros"] is None
    assert product["weight_zeros"]["zero_input_channels"] == 1
    assert report["summary"]["zero_output_channels"] == 2
    assert report["summary"]["zero_input_channels"] == 1
    assert 0.25 < report["summary"]["zero_multiplications"] < 0.3
    assert report["examples"]["source"] == "random"
    assert report["examples"]["number"] == _sparsity.DEFAULT_SAMPLES
    assert "say little" in report["examples"]["note"]
    assert report["worth"]["backends"] == {}


def test_people_get_the_summary_first(tmp_path: Path) -> None:
    arguments = ("inspect", pruned(tmp_path / "m.onnx"), "--sparsity", "--cache-dir", tmp_path / "cache")
    lines = shown(*arguments, columns=160).splitlines()
    assert "of the multiplications are on exact zeros" in lines[0]
    assert "--measure" in lines[0]
    assert lines[1].startswith("whole channels that are zero: 2 of 13 output, 1 of 11 input channels")
    offered = {"slim", "padding"} & set(parallax.Options.__dataclass_fields__)
    assert ("slim=True" in lines[1]) is ("slim" in offered)
    assert any("random" in line and "say little" in line for line in lines)
    assert any(line.split()[:2] == ["first", "Conv"] for line in lines)


def test_examples_of_a_file_are_looked_at_one_by_one(tmp_path: Path) -> None:
    path = pruned(tmp_path / "m.onnx")
    fed = np.ones((4, 1, 3, 8, 8), np.float32)
    for place in range(4):
        fed[place, :, :, : 2 * place] = 0
    np.savez(tmp_path / "some.npz", x=fed)
    report = sparsity(path, "--calibration", tmp_path / "some.npz")
    shares = [0, 0.25, 0.5, 0.75]
    assert by_node(report)["first"]["input_zeros"] == {
        "mean": pytest.approx(np.mean(shares)),
        "deviation": pytest.approx(np.std(shares, ddof=1)),
    }
    assert report["examples"] == {"source": "calibration", "number": 4, "runs_each": 1, "note": ""}
    fewer = sparsity(path, "--calibration", tmp_path / "some.npz", "--samples", 2)
    assert by_node(fewer)["first"]["input_zeros"]["mean"] == pytest.approx(0.125)
    np.savez(tmp_path / "one.npz", x=fed[3])
    one = sparsity(path, "--calibration", tmp_path / "one.npz")
    assert by_node(one)["first"]["input_zeros"] == {"mean": 0.75, "deviation": 0}


def test_open_sizes_are_those_of_the_examples(tmp_path: Path) -> None:
    path = pruned(tmp_path / "m.onnx", batch="batch")
    one = by_node(sparsity(path))["first"]["flops"]
    assert by_node(sparsity(path, "--shape", "x=4,3,8,8"))["first"]["flops"] == 4 * one
    np.savez(tmp_path / "some.npz", x=np.ones((2, 3, 8, 8), np.float32))
    assert by_node(sparsity(path, "--calibration", tmp_path / "some.npz"))["first"]["flops"] == 2 * one


def test_thresholds_divide_operators(tmp_path: Path) -> None:
    path = pruned(tmp_path / "m.onnx")
    report = sparsity(path, "--min-flops", 1000, "--max-zeros", 0.3)
    assert report["thresholds"] == {"min_flops": 1000, "max_zeros": 0.3}
    assert by_node(report)["first"]["quadrant"] == "dense, heavy"
    assert by_node(report)["pool"]["quadrant"] == "sparse, light"
    assert by_node(sparsity(path, "--max-zeros", 0.1))["first"]["quadrant"].startswith("sparse")


def test_the_plot_has_a_circle_per_operator_with_work(tmp_path: Path) -> None:
    path, picture = pruned(tmp_path / "m & n.onnx"), tmp_path / "zeros.svg"
    report = sparsity(path, "--plot", picture)
    assert report["plot"] == str(picture)
    root = ElementTree.parse(picture).getroot()
    titles = [circle.find(f"{SVG}title") for circle in root.iter(f"{SVG}circle")]
    named = {title.text.split(" ")[0]: title for title in titles if title is not None}
    with_work = {row["node"] for row in report["operators"] if row["flops"]}
    assert named.keys() == with_work
    assert "first" in with_work
    assert any("m & n.onnx" in (text.text or "") for text in root.iter(f"{SVG}text"))
    places = {
        title: (float(circle.get("cx")), float(circle.get("cy")))
        for circle in root.iter(f"{SVG}circle")
        if (title := (circle.findtext(f"{SVG}title") or "").split(" ")[0])
    }
    # More zeros further right, more work further up.
    assert places["pool"][0] > places["first"][0]
    assert places["first"][1] < places["pool"][1]


def test_the_table_fits_a_narrow_screen(tmp_path: Path) -> None:
    printed = shown("inspect", pruned(tmp_path / "m.onnx"), "--sparsity", columns=60)
    assert tables(printed)
    assert all(len(line) <= 60 for line in tables(printed))
    assert "no room for" in printed


def test_a_bundle_is_looked_at_by_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    path = pruned(tmp_path / "m.onnx")
    bundle = parallax.compile(path, tmp_path / "m.plx")
    report = sparsity(bundle)
    assert by_node(report)["first"]["weight_zeros"]["zero_output_channels"] == 2
    path.unlink()
    line = refused(bundle, "--sparsity")
    assert "compiled" in line
    assert "--portable" in line


def few_rounds(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Measure quickly, and wait for no cores: how well is not what is tested here."""

    def quickly(calls: Any, *, rounds: int, cores: int, progress: Any) -> Any:
        return time_interleaved(calls, rounds=number, progress=progress)

    monkeypatch.setattr(_sparsity, "time_interleaved", quickly)


def test_what_is_measured_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rounds(monkeypatch, 2)
    # Whether others used the cores meanwhile is not what is tested here.
    monkeypatch.setattr(_sparsity, "NOISY_SHARE", 1e9)
    path = pruned(tmp_path / "m.onnx")
    report = sparsity(path, "--measure", "--cache-dir", tmp_path / "cache")
    entry = report["worth"]["backends"]["cpu"]
    assert len(entry["timings"]) == 3 * len(ZeroForm)
    for row in entry["timings"]:
        assert 0 < row["low"] <= row["time_ratio"] <= row["high"]
        below = row["time_ratio"] < 0.97 and row["high"] < 1
        assert row["price_factor"] == (row["time_ratio"] if below else 1)
    assert entry["changes_prices"] is any(row["price_factor"] != 1 for row in entry["timings"])
    again = sparsity(path, "--cache-dir", tmp_path / "cache")
    assert again["worth"]["backends"] == report["worth"]["backends"]
    printed = invoke("inspect", path, "--sparsity", "--cache-dir", tmp_path / "cache").stdout
    assert ("no kernel here uses that (measured)" in printed) is not entry["changes_prices"]
    assert "time with zeros on cpu" in printed
    assert ZeroForm.BLOCKS.value in printed


def test_noisy_figures_are_shown_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rounds(monkeypatch, 1)
    monkeypatch.setattr(_sparsity, "NOISY_SHARE", -1.0)
    result = invoke(
        "inspect", pruned(tmp_path / "m.onnx"), "--sparsity", "--measure", "--json", "--cache-dir", tmp_path / "cache"
    )
    assert "not kept" in result.stderr
    assert json.loads(result.stdout)["worth"]["backends"]["cpu"]["timings"]
    assert sparsity(tmp_path / "m.onnx", "--cache-dir", tmp_path / "cache")["worth"]["backends"] == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", 2], "--samples"),
        (["--calibration", "some.npz"], "--calibration"),
        (["--min-flops", 0], "--min-flops"),
        (["--max-zeros", 0.5], "--max-zeros"),
        (["--plot", "a.svg"], "--plot"),
        (["--measure"], "--measure"),
    ],
)
def test_options_about_zeros_need_the_question(options: list[object], says: str, tmp_path: Path) -> None:
    line = refused(affine(tmp_path / "m.onnx"), *options)
    assert says in line
    assert "add --sparsity" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rule", "paper"], "--rule"),
        (["--policy", "heft"], "--policy"),
        (["--provider", "emulated:pixel-6-gpu"], "--measure"),
        (["--provider", "emulated:pixel-6-gpu", "--measure"], "emulated"),
        (["--plot", "{folder}/gone/zeros.svg"], "no folder"),
        (["--calibration", "{folder}/gone.npz"], "no input file"),
        (["--calibration", "{folder}/text.npz"], "cannot read"),
        (["--calibration", "{folder}/other.npz"], "no input 'z'"),
        (["--calibration", "{folder}/types.npz"], "takes float32"),
        (["--calibration", "{folder}/shapes.npz"], "size 5 along axis 1"),
        (["--calibration", "{folder}/none.npz"], "no example"),
        (["--calibration", "{folder}/types.npz", "--shape", "x=2,3"], "--shape"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.ones((2, 3), np.float32), z=np.ones(3))
    np.savez(tmp_path / "types.npz", x=np.ones((2, 3), np.float64))
    np.savez(tmp_path / "shapes.npz", x=np.ones((2, 5), np.float32))
    np.savez(tmp_path / "none.npz", x=np.ones((0, 2, 3), np.float32))
    given = [option.format(folder=tmp_path) for option in options]
    assert says in refused(affine(tmp_path / "m.onnx"), "--sparsity", *given)


def test_inputs_with_different_numbers_of_examples_are_refused(tmp_path: Path) -> None:
    arrays = {
        "table": np.ones((3, 2, 4), np.float32),
        "index": np.zeros((2, 1), np.int64),
        "bias": np.ones(3, np.float32),
    }
    np.savez(tmp_path / "some.npz", **arrays)
    line = refused(two_inputs(tmp_path / "m.onnx"), "--sparsity", "--calibration", tmp_path / "some.npz")
    assert "'table': 3" in line
    assert "'index': 2" in line
    arrays["index"] = np.zeros((3, 1), np.int64)
    np.savez(tmp_path / "some.npz", **arrays)
    assert sparsity(tmp_path / "m.onnx", "--calibration", tmp_path / "some.npz")["examples"]["number"] == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_stops_it_with_one_line_and_130(tmp_path: Path) -> None:
    made = onnx.load(counting(tmp_path / "endless.onnx"))
    made.graph.node.append(onnx.helper.make_node("Relu", ["y"], ["z"]))
    made.graph.output[0].name = "z"
    onnx.save(made, tmp_path / "endless.onnx")
    command = [sys.executable, "-m", "parallax", "inspect", str(tmp_path / "endless.onnx"), "--sparsity"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "was not given" in process.stderr.readline()  # from here on it opens the model and runs it
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert out == ""
