from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from parallax import zoo
from tests.cli._models import affine, affine_of, choosing, invoke, save, two_inputs, value
from tests.session.test_devices import two_branches


def read_archive(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def test_outputs_are_those_of_the_model(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    result = invoke(
        "run", path, "-i", f"x={tmp_path / 'x.npy'}", "--save", tmp_path / "out.npz", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0
    assert result.stderr == ""
    np.testing.assert_array_equal(read_archive(tmp_path / "out.npz")["y"], affine_of(x))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), affine_of(x))


def test_json_is_one_document_with_shapes_ranges_latency_and_plan(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    result = invoke("run", path, "-i", "x=2", "--runs", 3, "--json")
    report = json.loads(result.stdout)
    (output,) = report["outputs"]
    assert output == {"name": "y", "type": "float32", "shape": [2, 3], "min": 6, "mean": 6, "max": 6, "not_finite": 0}
    assert report["latency_ms"]["runs"] == 3
    assert 0 < report["latency_ms"]["min"] <= report["latency_ms"]["median"] <= report["latency_ms"]["max"]
    assert report["plan"]["uncut"] is True
    assert report["plan"]["reason"]


def test_values_that_are_not_finite_are_counted_and_json_stays_valid(tmp_path: Path) -> None:
    result = invoke("run", affine(tmp_path / "m.onnx"), "-i", "x=1,2,3,4,5,nan", "--json")
    (output,) = json.loads(result.stdout)["outputs"]
    assert output["not_finite"] == 1
    assert output["max"] == 30


def test_the_same_seed_gives_the_same_outputs(tmp_path: Path) -> None:
    path = two_inputs(tmp_path / "m.onnx")
    totals = []
    for number, seed in enumerate((3, 3, 4)):
        target = tmp_path / f"{number}.npz"
        assert invoke("run", path, "--seed", seed, "--save", target).exit_code == 0
        totals.append(read_archive(target)["total"])
    np.testing.assert_array_equal(totals[0], totals[1])
    assert not np.array_equal(totals[0], totals[2])


def test_made_up_inputs_are_noted_on_stderr_only(tmp_path: Path) -> None:
    result = invoke("run", two_inputs(tmp_path / "m.onnx"), "--json")
    json.loads(result.stdout)
    assert "note: input 'table' was not given: using random float32[1, 4]" in result.stderr


def test_shapes_size_what_is_made_up(tmp_path: Path) -> None:
    result = invoke("run", two_inputs(tmp_path / "m.onnx"), "--json", "-s", "table=5,4", "-s", "index=7")
    (output,) = json.loads(result.stdout)["outputs"]
    assert output["shape"] == [5, 7]


def test_control_flow_runs(tmp_path: Path) -> None:
    path = choosing(tmp_path / "m.onnx")
    for flag, expected in ((1, 4.0), (0, 8.0)):
        report = json.loads(invoke("run", path, "-i", "x=2", "-i", f"flag={flag}", "--json").stdout)
        assert report["outputs"][0]["mean"] == expected


def test_a_trace_holds_one_event_per_segment_and_timed_run(tmp_path: Path) -> None:
    result = invoke("run", affine(tmp_path / "m.onnx"), "--runs", 4, "--trace", tmp_path / "trace.json", "--json")
    report = json.loads(result.stdout)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == report["trace_spans"] == 4 * len(report["plan"]["segments"])


def test_a_zoo_model_gets_its_example_inputs_and_onnxruntimes_numbers(tmp_path: Path) -> None:
    result = invoke("run", "zoo:mobilenetv3-s", "--save", tmp_path / "out.npz", "--threads", 1)
    assert result.exit_code == 0
    assert "was not given" not in result.stderr
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(zoo.load("mobilenetv3-s")), options)
    expected = session.run(None, zoo.example_inputs("mobilenetv3-s"))
    saved = read_archive(tmp_path / "out.npz")
    for entry, array in zip(session.get_outputs(), expected, strict=True):
        np.testing.assert_allclose(saved[entry.name], array, rtol=1e-4, atol=1e-4)


def test_names_that_are_no_file_names_are_made_so(tmp_path: Path) -> None:
    name = "../out/y:0"
    path = save(
        [helper.make_node("Relu", ["x"], [name])],
        [value("x", TensorProto.FLOAT, [2])],
        [value(name, TensorProto.FLOAT, [2])],
        tmp_path / "m.onnx",
    )
    assert invoke("run", path, "-o", tmp_path / "here").exit_code == 0
    (written,) = (tmp_path / "here").iterdir()
    assert written.suffix == ".npy"


def test_a_provider_runs_what_gains_there_and_the_plan_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_branches(batch=512, fallbacks=30))
    result = invoke("run", path, "--provider", "emulated:jetson-agx-orin", "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    assert "emulated:jetson-agx-orin" in plan["reason"]
    assert "emulated:jetson-agx-orin" in {segment["backend"] for segment in plan["segments"]}


def test_an_unknown_provider_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    result = invoke("run", affine(tmp_path / "m.onnx"), "--provider", "emulated:toaster")
    assert result.exit_code == 2
    assert "pixel-6-gpu" in result.stderr


def test_a_bundle_is_written_for_a_provider_and_opened_with_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_branches(batch=512, fallbacks=30))
    device, bundle = "emulated:jetson-agx-orin", tmp_path / "m.plx"
    result = invoke("compile", path, "-o", bundle, "--provider", device, "--json")
    assert result.exit_code == 0, result.stderr
    assert device in {segment["backend"] for segment in json.loads(result.stdout)["plan"]["segments"]}
    for providers in ((), ("--provider", device)):
        result = invoke("run", bundle, *providers, "--json")
        assert result.exit_code == 0, result.stderr
        assert device in {segment["backend"] for segment in json.loads(result.stdout)["plan"]["segments"]}
    result = invoke("run", bundle, "--provider", "emulated:pixel-6-gpu")
    assert result.exit_code == 2
    assert "compiled for emulated:jetson-agx-orin, not for emulated:pixel-6-gpu" in " ".join(result.stderr.split())
    result = invoke("bundle", "info", bundle)
    assert f"parts of it run on {device}" in " ".join(result.stdout.split())
