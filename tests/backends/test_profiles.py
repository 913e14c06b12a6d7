"""Device profiles: every figure has a source, strict reading names what is wrong and where."""

from __future__ import annotations

import copy
import importlib.resources
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from parallax.backends.emulated import profile_names
from parallax.backends.emulated._coverage import Coverage
from parallax.backends.emulated._figures import Basis
from parallax.backends.emulated._profiles import load_profile
from parallax.errors import ConfigError
from parallax.graph import Node, OpGraph, TensorInfo, Verdict

FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9

PROFILES = importlib.resources.files("parallax.backends.emulated") / "profiles"

every_profile = pytest.mark.parametrize("name", profile_names())


def shipped(name: str) -> dict[str, Any]:
    text = (PROFILES / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def test_the_papers_phones_and_the_boards_are_there() -> None:
    assert set(profile_names()) == {
        *("pixel-6-gpu", "p30-pro-gpu", "redmi-k50-gpu"),
        *("jetson-agx-orin", "jetson-orin-nano", "raspberry-pi-5-gpu"),
    }


@every_profile
def test_profile_is_named_like_its_file_and_every_figure_has_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for figure in profile.figures().values():
        assert figure.source.strip()
        assert figure.value > 0
    assert any(figure.basis is Basis.CITED for figure in profile.figures().values())


@pytest.mark.parametrize(
    ("name", "gflops"),
    [
        ("pixel-6-gpu", 309),
        ("p30-pro-gpu", 202),
        ("redmi-k50-gpu", 246),
        ("jetson-agx-orin", 422),
        ("jetson-orin-nano", 144),
        ("raspberry-pi-5-gpu", 154),
    ],
)
def test_peak_of_the_processor_is_the_sum_over_its_clusters(name: str, gflops: int) -> None:
    assert round(load_profile(name).cpu_peak_flops / 1e9) == gflops


@every_profile
def test_profile_survives_pickling(name: str) -> None:
    profile = load_profile(name)
    assert pickle.loads(pickle.dumps(profile)) == profile


def test_device_twice_as_fast_takes_half_the_time_for_everything() -> None:
    profile = load_profile("pixel-6-gpu")
    once, twice = profile.rates(), profile.rates(speed=2.0)
    for flops, size in ((10**9, 10), (10, 10**8), (0, 0)):
        assert twice.operator_ns(flops, size) == pytest.approx(once.operator_ns(flops, size) / 2, abs=1)
    assert twice.transfer_ns(10**6) == pytest.approx(once.transfer_ns(10**6) / 2, abs=1)
    assert twice.launch_ns == once.launch_ns / 2
    for speed in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a speed of"):
            profile.rates(speed=speed)


def test_operator_takes_the_longer_of_arithmetic_and_memory_and_half_precision_is_quicker() -> None:
    rates = load_profile("pixel-6-gpu").rates()
    arithmetic = 1e9 * 1e9 / rates.flops_per_s["float32"]
    assert rates.operator_ns(10**9, 1) == round(rates.dispatch_ns + arithmetic)
    assert rates.operator_ns(1, 10**9) == round(rates.dispatch_ns + 1e18 / rates.bytes_per_s)
    assert rates.operator_ns(10**9, 1, "float16") < rates.operator_ns(10**9, 1)
    assert rates.operator_ns(10**9, 1, "int8") == rates.operator_ns(10**9, 1)  # nothing better is known


def test_transfers_without_copies_cost_a_fixed_time(tmp_path: Path) -> None:
    content = shipped("jetson-agx-orin")
    del content["transfer_bytes_per_s"]
    profile = load_profile(written(tmp_path, content))
    assert profile.rates().transfer_ns(10**9) == profile.transfer_ns.value


# -- files ----------------------------------------------------------------------------------------------


def written(folder: Path, content: object, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_file_of_ones_own_is_read_with_the_list_by_name_beside_it_or_within(tmp_path: Path) -> None:
    content = shipped("pixel-6-gpu") | {"name": "mine"}
    by_name = load_profile(str(written(tmp_path, content)))
    assert by_name.name == "mine"
    delegate = json.loads((PROFILES / "delegates" / "tflite-gpu.json").read_text())
    written(tmp_path, delegate, "list.json")
    beside = load_profile(written(tmp_path, content | {"delegate": "list.json"}))
    within = load_profile(written(tmp_path, content | {"delegate": delegate}))
    assert by_name == beside == within


@pytest.mark.parametrize("name", ["pixel-7-gpu", "", "delegates"])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"choose one of: jetson-agx-orin, .*redmi-k50-gpu; or give the path"):
        load_profile(name)


def changed(content: dict[str, Any], path: Sequence[str | int], value: object) -> dict[str, Any]:
    content = copy.deepcopy(content)
    inner: Any = content
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


BAD_FILES: Mapping[str, tuple[Sequence[str | int], object, str]] = {
    "newer format": (["format"], 2, "found 2.*format.*expected: 1"),
    "missing figure": (["launch_ns"], None, "'launch_ns' is missing"),
    "bare number": (["launch_ns"], 5.0, "expected an object, found 5.0.*launch_ns"),
    "no source": (["launch_ns", "source"], None, "'source' is missing.*launch_ns"),
    "empty source": (["launch_ns", "source"], " ", "a text"),
    "unknown basis": (["launch_ns", "basis"], "guessed", "'guessed'.*cited, recalled, derived, assumed"),
    "negative": (["memory_bytes", "value"], -1, "found -1.*memory_bytes: value"),
    "zero rate": (["memory_bytes_per_s", "value"], 0, "found 0.*above 0"),
    "endless": (["memory_bytes", "value"], float("inf"), "found inf"),
    "text for a number": (["memory_bytes", "value"], "8e9", "found '8e9'"),
    "true for a number": (["memory_bytes", "value"], True, "found True"),
    "share above 1": (["attainable_share", "value"], 1.5, "found 1.5.*0 to 1"),
    "no clusters": (["cpu", "clusters"], [], "a list of objects"),
    "no cores": (["cpu", "clusters", 0, "count"], 0, r"clusters\[0\]: count.*at least 1"),
    "misspelt field": (["lanch_ns"], 1, "unknown field 'lanch_ns'.*launch_ns"),
    "misspelt field within": (["launch_ns", "sauce"], "x", "unknown field 'sauce'.*launch_ns"),
    "no float32": (["peak_flops", "float32"], None, "FLOP/s in float32"),
    "unknown type": (["peak_flops", "fp8"], {}, "no element type 'fp8'"),
    "unknown delegate": (
        ["delegate"],
        "nppai",
        "no list of operators 'nppai'.*tensorrt, tensorrt-10, tflite-gpu",
    ),
    "delegate of a wrong kind": (["delegate"], 7, "found 7"),
    "flag as number": (["unified_memory"], 1, "true or false"),
    "band out of order": (["power", "static_w", "typical"], 5, "found 5.*static_w.*a number from low"),
    "bands of other clusters": (["power", "core_w", 0], None, "found 2 bands.*core_w.*3, one for each cluster"),
    "band without source": (["power", "device_w", "source"], None, "'source' is missing.*device_w"),
    "negative power": (["power", "device_w", "low"], -1, "found -1.*device_w: low"),
    "misspelt power": (["power", "statik_w"], 1, "unknown field 'statik_w'.*power"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_with_the_field_at_fault(case: str, tmp_path: Path) -> None:
    path, value, complaint = BAD_FILES[case]
    file = written(tmp_path, changed(shipped("pixel-6-gpu"), path, value))
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_profile(file)
    assert "mine.json" in str(caught.value)


BAD_LISTS: Mapping[str, tuple[Sequence[str | int], object, str]] = {
    "unknown type": (["element_types"], ["fp32"], "no element type 'fp32'"),
    "no operators": (["operators"], None, "'operators' is missing"),
    "rule no object": (["operators", "Conv"], True, "operators: Conv"),
    "ranks reversed": (["operators", "Conv", "input_ranks"], {"0": [4, 3]}, "fewest, most"),
    "ranks of no input": (["operators", "Conv", "input_ranks"], {"first": [3, 4]}, "'first'"),
    "misspelt rule": (["operators", "Conv", "constants"], [1], "unknown field 'constants'"),
    "negative input": (["operators", "Conv", "constant_inputs"], [-1], "whole numbers"),
    "rank 0": (["max_rank"], 0, "at least 1"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_list_of_operators_is_refused_with_the_field_at_fault(case: str, tmp_path: Path) -> None:
    path, value, complaint = BAD_LISTS[case]
    folder = PROFILES / "delegates"
    delegate = json.loads((folder / "tflite-gpu.json").read_text())
    content = shipped("pixel-6-gpu") | {"delegate": changed(delegate, path, value)}
    with pytest.raises(ConfigError, match=complaint):
        load_profile(written(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[1]", "expected an object"),
        ('{"format": 1, "format": 1}', "'format' stands twice"),
        ("[" * 100_000, "not JSON"),
        (" " * (1 << 20) + "{}", "more than"),
    ],
)
def test_file_that_is_no_profile_at_all_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_profile(written(tmp_path, text))


def test_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read it: .*none\.json"):
        load_profile(tmp_path / "none.json")


# -- coverage -------------------------------------------------------------------------------------------


def tensor(name: str, shape: tuple[int | str | None, ...] | None, dtype: int = FLOAT) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def judged(
    coverage: Coverage,
    op_type: str,
    inputs: Sequence[TensorInfo],
    output: TensorInfo,
    *,
    initializers: Sequence[TensorInfo] = (),
    constants: Sequence[str] = (),
    bodies: bool = False,
) -> Verdict | None:
    empty = OpGraph(
        name="body",
        nodes=(),
        inputs=(),
        overridable=(),
        outputs=(),
        tensors={},
        initializers={},
        producers={},
        consumers={},
    )
    node = Node(
        index=0,
        name="n",
        op_type=op_type,
        domain="",
        inputs=tuple(info.name for info in inputs),
        outputs=(output.name,),
        bodies=(("body", empty),) if bodies else (),
    )
    graph = OpGraph(
        name="g",
        nodes=(node,),
        inputs=tuple(info for info in inputs if info not in initializers),
        overridable=(),
        outputs=(output,),
        tensors={info.name: info for info in (*inputs, output)},
        initializers={info.name: info for info in initializers},
        producers={output.name: 0},
        consumers={info.name: (0,) for info in inputs},
    )
    found = coverage.uncovered(graph, node, constants=constants)
    if found is not None:
        assert coverage.name in found.detail or "'" in found.detail
    return None if found is None else found.verdict


X, W = tensor("x", (1, 3, 8, 8)), tensor("w", (4, 3, 3, 3))
Y = tensor("y", (1, 4, 6, 6))


@pytest.fixture(name="gpu")
def tflite_gpu() -> Coverage:
    return load_profile("pixel-6-gpu").coverage


def test_operator_is_covered_where_type_rank_and_shape_are(gpu: Coverage) -> None:
    assert judged(gpu, "Conv", [X, W], Y, initializers=[W]) is None
    assert judged(gpu, "Relu", [Y], tensor("z", (1, 4, 6, 6))) is None


def test_what_is_not_covered_is_told_apart(gpu: Coverage) -> None:
    assert judged(gpu, "NonMaxSuppression", [X], Y) is Verdict.UNSUPPORTED_OPERATOR
    assert judged(gpu, "Loop", [X], Y, bodies=True) is Verdict.CONTROL_FLOW
    assert judged(gpu, "Add", [tensor("a", (2,), INT64)] * 2, tensor("y", (2,), INT64)) is Verdict.UNSUPPORTED_TYPE
    assert judged(gpu, "Relu", [tensor("a", ("batch", 3))], tensor("y", ("batch", 3))) is Verdict.DYNAMIC_SHAPE
    assert judged(gpu, "Relu", [tensor("a", None)], tensor("y", None)) is Verdict.DYNAMIC_SHAPE
    assert judged(gpu, "Transpose", [tensor("a", (1,) * 6)], tensor("y", (1,) * 6)) is Verdict.UNSUPPORTED_FORM
    assert judged(gpu, "MaxPool", [tensor("a", (1, 3, 8))], tensor("y", (1, 3, 4))) is Verdict.UNSUPPORTED_FORM


def test_operand_that_must_be_constant_may_be_an_initializer_or_folded(gpu: Coverage) -> None:
    shape = tensor("s", (2,), INT64)
    out = tensor("y", (3, 64))
    assert judged(gpu, "Reshape", [X, shape], out) is Verdict.UNSUPPORTED_FORM
    assert judged(gpu, "Reshape", [X, shape], out, initializers=[shape]) is None
    assert judged(gpu, "Reshape", [X, shape], out, constants=["s"]) is None


def test_embedding_looks_up_one_axis_of_indices_only(gpu: Coverage) -> None:
    table = tensor("t", (1000, 8))
    rows = tensor("i", (5,), INT32)
    assert judged(gpu, "Gather", [table, rows], tensor("y", (5, 8)), initializers=[table]) is None
    grid = tensor("i", (1, 5), INT32)
    assert (
        judged(gpu, "Gather", [table, grid], tensor("y", (1, 5, 8)), initializers=[table]) is Verdict.UNSUPPORTED_FORM
    )


def test_lists_differ_as_the_delegates_do() -> None:
    gpu, nnapi, tensorrt = (load_profile(name).coverage for name in ("pixel-6-gpu", "redmi-k50-gpu", "jetson-agx-orin"))
    dynamic = [tensor("a", ("n", 3))], tensor("y", ("n", 3))
    assert judged(tensorrt, "Relu", *dynamic) is None
    assert judged(nnapi, "Relu", *dynamic) is Verdict.DYNAMIC_SHAPE
    static = [tensor("a", (1, 3))], tensor("y", (1, 3))
    assert [judged(each, "Erf", *static) for each in (gpu, nnapi, tensorrt)] == [
        Verdict.UNSUPPORTED_OPERATOR,
        Verdict.UNSUPPORTED_OPERATOR,
        None,
    ]
    assert [judged(each, "Gelu", *static) for each in (gpu, nnapi, tensorrt)] == [
        None,
        Verdict.UNSUPPORTED_OPERATOR,
        None,
    ]
