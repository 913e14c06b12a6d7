"""Bundles with regions on devices: emulated ones, one that compiles its parts itself, and one that fails on purpose."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import parallax
from parallax.backends import FaultPolicy, open_backend
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.ort import read_entry
from parallax.bundle import AskedDevice, cache_folder, is_safe_to_open, read_bundle, read_manifest
from parallax.cli import app
from parallax.events import Event, SegmentEnded
from parallax.schedule import CPU_BACKEND
from tests._threads import in_threads
from tests._tuning import let_the_last_win
from tests.bundle._models import copied, forge, forge_plan
from tests.engine._faulty import installed
from tests.session.test_devices import CPU, PHONE, SIZE, chain, expected, feeds, two_branches

BOARD = "emulated:jetson-agx-orin"
FORCED: dict[str, Any] = {"min_gain": 0, "threads": 2}


def written(folder: Path, model: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model)
    return path


def phone_bundle(folder: Path, **options: Any) -> Path:
    model = written(folder, two_branches())
    return parallax.compile(model, folder / "model.plx", providers=[PHONE, CPU], **(FORCED | options))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all that the phone takes on it; tests that change it work on copies."""
    return phone_bundle(tmp_path_factory.mktemp("phone"), portable=True)


def check_answers(session: parallax.InferenceSession, model: bytes, rows: int = 64, seeds: int = 3) -> None:
    for seed in range(seeds):
        (answer,) = session.run(None, feeds(rows, seed))
        np.testing.assert_allclose(answer, expected(model, feeds(rows, seed))[0], rtol=1e-4, atol=1e-4)


def backends(session: parallax.InferenceSession) -> set[str]:
    return {segment.backend for segment in session.plan.segments}


@pytest.mark.parametrize("providers", [None, [PHONE, CPU], [(PHONE, {}), CPU], [CPU, PHONE]], ids=str)
def test_a_bundle_runs_its_regions_on_its_device(bundle: Path, providers: list[Any] | None) -> None:
    session = parallax.InferenceSession(bundle, providers=providers)
    assert backends(session) == {PHONE, CPU_BACKEND}
    assert session.get_providers() == [PHONE, CPU]
    check_answers(session, two_branches())
    # The plan is the one that a session on the model would have.
    own = parallax.InferenceSession(two_branches(), providers=[PHONE, CPU], **FORCED)
    assert [segment.nodes for segment in session.plan.segments] == [segment.nodes for segment in own.plan.segments]


def test_the_regions_take_the_time_that_the_device_takes(tmp_path: Path) -> None:
    slow = [(PHONE, {"speed": 0.02}), CPU]
    model = written(tmp_path, two_branches(batch=512))
    seen: list[Event] = []
    made = parallax.compile(model, tmp_path / "m.plx", providers=slow, **FORCED)
    session = parallax.InferenceSession(made, observers=[seen.append])
    session.run(None, feeds(512))
    seen.clear()
    session.run(None, feeds(512))
    ended = [event for event in seen if isinstance(event, SegmentEnded)]
    segments = session.plan.segments
    on_phone = [event for event in ended if segments[event.segment].backend == PHONE]
    assert on_phone
    backend = open_backend(PHONE, {"speed": 0.02})
    assert isinstance(backend, EmulatedBackend)
    manifest = read_manifest(made)[0]
    for event in on_phone:
        region = manifest.segments[event.segment].region
        assert region is not None
        least = sum(
            backend.rates.operator_ns(flops, size)
            for flops, size in zip(region.flops, region.touched_bytes, strict=True)
        )
        assert event.end_ns - event.begin_ns >= least


def test_what_is_in_the_manifest_is_what_the_bundle_needs(bundle: Path) -> None:
    manifest = read_manifest(bundle)[0]
    assert [device.name for device in manifest.devices] == [PHONE]
    assert manifest.options.devices == (AskedDevice(name=PHONE),)
    assert any(segment.region is not None for segment in manifest.segments)
    result = CliRunner().invoke(app, ["bundle", "info", str(bundle), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["devices"][0]["name"] == PHONE
    assert "--provider emulated:pixel-6-gpu" in json.loads(result.stdout)["rebuild"]


def test_pools_of_an_emulated_devices_regions_wait_asleep(bundle: Path) -> None:
    """Else they would take the cores from what is opened next."""
    session = parallax.InferenceSession(bundle)
    split = session._opened.split
    assert split is not None
    regions = [
        opened
        for segment, opened in zip(session.plan.segments, split.sessions, strict=True)
        if segment.backend == PHONE
    ]
    assert regions
    for opened in regions:
        answers = opened.model._make_fallback()
        assert read_entry(answers.session.session_options, "session.intra_op.allow_spinning") == "0"


def test_eight_threads_copies_and_forks_share_it(bundle: Path) -> None:
    model = two_branches()
    session = parallax.InferenceSession(bundle)
    wanted = [expected(model, feeds(seed=seed))[0] for seed in range(8)]

    def work(number: int) -> None:
        for _ in range(4):
            np.testing.assert_allclose(session.run(None, feeds(seed=number))[0], wanted[number], rtol=1e-4, atol=1e-4)

    in_threads(8, work)
    copy = pickle.loads(pickle.dumps(session))
    assert backends(copy) == {PHONE, CPU_BACKEND}
    check_answers(copy, model, seeds=1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_allclose(pool.apply(_first_answer, (session,)), wanted[0], rtol=1e-4, atol=1e-4)
    check_answers(session, model, seeds=1)


def _first_answer(session: parallax.InferenceSession) -> Any:
    return session.run(None, feeds())[0]


def test_a_budget_narrows_it_or_refuses_it(bundle: Path) -> None:
    session = parallax.InferenceSession(bundle, memory_budget="64MiB")
    assert backends(session) == {PHONE, CPU_BACKEND}
    check_answers(session, two_branches())
    with pytest.raises(parallax.BudgetError):
        parallax.InferenceSession(bundle, memory_budget=1000)


def test_several_devices_in_one_bundle(tmp_path: Path) -> None:
    model = two_branches(batch=512, depth=8)
    path = written(tmp_path, model)
    policy = _Alternating()
    with pytest.raises(parallax.ConfigError, match="no name that would do it again"):
        parallax.compile(path, tmp_path / "m.plx", providers=[PHONE, BOARD, CPU], policy=policy)
    devices = [(PHONE, {"speed": 1000}), (BOARD, {"speed": 1000}), CPU]
    made = parallax.compile(path, tmp_path / "m.plx", providers=devices, policy="heft", min_gain=0.01, threads=2)
    session = parallax.InferenceSession(made)
    needed = [device.name for device in read_manifest(made)[0].devices]
    assert needed
    assert set(needed) <= {PHONE, BOARD}
    assert backends(session) >= set(needed)
    check_answers(session, model, rows=512)


class _Alternating:
    """A placer that no bundle can name."""

    def propose(self, problem: Any) -> Iterator[Any]:
        return iter(())


def test_a_whole_model_on_a_device(tmp_path: Path) -> None:
    model = two_branches(batch=512, fallbacks=0)
    path = written(tmp_path, model)
    made = parallax.compile(path, tmp_path / "m.plx", providers=[(PHONE, {"speed": 1000})], split="never", threads=2)
    session = parallax.InferenceSession(made, split="never")
    assert [segment.backend for segment in session.plan.segments] == [PHONE]
    check_answers(session, model, rows=512)


def test_a_device_that_gains_nothing_is_not_needed(tmp_path: Path) -> None:
    model = two_branches(batch=1, depth=2)
    made = parallax.compile(written(tmp_path, model), tmp_path / "m.plx", providers=[PHONE, CPU])
    assert read_manifest(made)[0].devices == ()
    for providers, shown in ((None, [CPU]), ([PHONE, CPU], [PHONE, CPU])):
        session = parallax.InferenceSession(made, providers=providers)
        assert session.plan.is_whole
        assert "no region gains anything" in session.plan.provenance.reason
        assert session.get_providers() == shown
        check_answers(session, model, rows=1)


def test_open_dimensions_run_in_all_shapes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = two_branches(batch="n")
    made = parallax.compile(
        written(tmp_path, model), tmp_path / "m.plx", providers=[PHONE], shapes={"x": (64, SIZE)}, **FORCED
    )
    session = parallax.InferenceSession(made)
    assert PHONE in backends(session)
    for rows in (64, 3, 64, 17):
        check_answers(session, model, rows=rows, seeds=1)
    assert not caplog.records


# -- other devices than it was compiled for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("providers", "complaint"),
    [
        ([BOARD, CPU], f"compiled for {PHONE}, not for {BOARD}"),
        ([PHONE, BOARD, CPU], f"not for {BOARD}"),
        ([CPU], f"runs a part of its model on {PHONE}"),
        ([(PHONE, {"speed": 3}), CPU], "options of emulated:pixel-6-gpu are decided"),
        ([(PHONE, {"memory_budget": "1MiB"}), CPU], "options of emulated:pixel-6-gpu are decided"),
    ],
    ids=str,
)
def test_other_devices_are_refused_with_what_to_do(bundle: Path, providers: list[Any], complaint: str) -> None:
    with pytest.raises(parallax.ConfigError, match=complaint) as caught:
        parallax.InferenceSession(bundle, providers=providers)
    assert caught.value.fix


def test_a_bundle_for_the_cpu_is_for_no_device(tmp_path: Path) -> None:
    made = parallax.compile(written(tmp_path, two_branches()), tmp_path / "m.plx")
    with pytest.raises(parallax.ConfigError, match="compiled for the CPU, not for emulated:pixel-6-gpu"):
        parallax.InferenceSession(made, providers=[PHONE])


@pytest.mark.parametrize(
    ("providers", "complaint"),
    [
        (["emulated:toaster"], "pixel-6-gpu"),
        (["CUDAExecutionProvider", CPU], "as a whole"),
        ([(CPU, {"memory_budget": "1MiB"})], "gets the whole model"),
    ],
    ids=str,
)
def test_what_is_not_there_is_not_compiled_for(providers: list[Any], complaint: str, tmp_path: Path) -> None:
    model = written(tmp_path, two_branches())
    with pytest.raises(parallax.ConfigError, match=complaint):
        parallax.compile(model, tmp_path / "m.plx", providers=providers)
    assert not (tmp_path / "m.plx").exists()


def test_another_version_of_a_device_is_refused_with_the_command_that_makes_it_anew(tmp_path: Path) -> None:
    made = phone_bundle(tmp_path)
    before = read_manifest(made)[0].options
    forge(made, lambda manifest: manifest["devices"][0].update(version="onnxruntime 0.1"))
    with pytest.raises(parallax.BundleMismatchError, match=r"version of emulated:pixel-6-gpu.*0\.1") as caught:
        parallax.InferenceSession(made)
    program, *arguments = shlex.split(str(caught.value).partition("make it anew: ")[2])
    assert program == "parallax"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert read_manifest(made)[0].options == before
    check_answers(parallax.InferenceSession(made), two_branches())


def test_a_portable_bundle_is_made_anew_for_another_version(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = copied(bundle, tmp_path / "m.plx")
    forge(made, lambda manifest: manifest["devices"][0].update(version="onnxruntime 0.1"))
    with caplog.at_level(logging.WARNING):
        session = parallax.InferenceSession(made, cache_dir=tmp_path / "cache")
    assert "version of emulated:pixel-6-gpu" in caplog.text
    assert backends(session) == {PHONE, CPU_BACKEND}
    check_answers(session, two_branches())


def missing(made: Path) -> None:
    """Have a bundle need a device that is nowhere."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["devices"][0]["name"] = manifest["options"]["devices"][0]["name"] = "emulated:toaster"

    forge(made, edit)


def test_a_device_that_is_not_here_is_an_error_with_the_command(tmp_path: Path) -> None:
    made = phone_bundle(tmp_path)
    missing(made)
    with pytest.raises(parallax.BundleMismatchError, match="emulated:toaster cannot be used here") as caught:
        parallax.InferenceSession(made)
    assert "--provider emulated:toaster" in str(caught.value)


def test_a_portable_bundle_is_made_anew_without_a_device_that_is_not_here(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = copied(bundle, tmp_path / "m.plx")
    missing(made)
    for _ in range(2):
        session = parallax.InferenceSession(made, cache_dir=tmp_path / "cache")
        assert backends(session) == {CPU_BACKEND}
        check_answers(session, two_branches())
    assert "without emulated:toaster" in caplog.text


# -- what a bundle's word is enough for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "is_safe"),
    [
        (AskedDevice(name=PHONE), True),
        (AskedDevice(name="openvino:GPU.1"), True),
        (AskedDevice(name="CUDAExecutionProvider", options=(("device_id", "1"),)), True),
        (AskedDevice(name=PHONE, options=(("speed", "0.25"),), memory_bytes=7), True),
        (AskedDevice(name="emulated:/tmp/mine.json"), False),
        (AskedDevice(name="emulated:mine.json"), False),
        (AskedDevice(name=f"{PHONE}?float16=1"), True),
        (AskedDevice(name=f"{PHONE}?float16=slow.json"), False),
        (AskedDevice(name=f"{PHONE}?float16=1&condition=slow.json"), False),
        (AskedDevice(name="emulated:mine.json?float16=1"), False),
        (AskedDevice(name="openvino:GPU?float16=1"), False),
        (AskedDevice(name=f"{PHONE}?condition=slow.json"), False),
        (AskedDevice(name=PHONE, options=(("condition", "slow.json"),)), False),
        (AskedDevice(name=PHONE, options=(("speed", "/etc/passwd"),)), False),
        (AskedDevice(name="QNNExecutionProvider", options=(("backend_path", "evil.so"),)), False),
    ],
    ids=str,
)
def test_a_bundle_leads_to_no_file_on_its_own_word(device: AskedDevice, is_safe: bool) -> None:
    assert is_safe_to_open(device) is is_safe


@pytest.mark.parametrize("place", ["name", "option"])
def test_a_condition_is_followed_where_the_caller_names_it(place: str, tmp_path: Path) -> None:
    condition = tmp_path / "slow.json"
    condition.write_text(json.dumps({"format": 1, "steps": [{"at_s": 0, "device": 2, "launch": 1}]}))
    device: Any = f"{PHONE}?condition={condition}" if place == "name" else (PHONE, {"condition": str(condition)})
    model = written(tmp_path, two_branches())
    made = parallax.compile(model, tmp_path / "m.plx", providers=[device, CPU], **FORCED)
    with pytest.raises(parallax.ConfigError, match="word is not enough") as caught:
        parallax.InferenceSession(made)
    assert "slow.json" in str(caught.value.fix)
    session = parallax.InferenceSession(made, providers=[device, CPU])
    assert backends(session) == {PHONE, CPU_BACKEND}
    check_answers(session, two_branches())


def test_a_switch_of_a_device_is_a_number_to_a_bundle(tmp_path: Path) -> None:
    model = written(tmp_path, two_branches())
    made = parallax.compile(model, tmp_path / "m.plx", providers=[(PHONE, {"float16": True}), CPU], **FORCED)
    assert read_manifest(made)[0].options.devices == (AskedDevice(name=PHONE, options=(("float16", "1"),)),)
    lists: list[list[Any] | None] = [None, [(PHONE, {"float16": True}), CPU], [(PHONE, {"float16": 1}), CPU]]
    for providers in lists:
        assert backends(parallax.InferenceSession(made, providers=providers)) == {PHONE, CPU_BACKEND}


def test_half_precision_in_the_name_of_a_device_need_not_be_named_again(tmp_path: Path) -> None:
    name = f"{PHONE}?float16=1"
    model = written(tmp_path, two_branches())
    made = parallax.compile(model, tmp_path / "m.plx", providers=[name, CPU], **FORCED)
    lists: list[list[Any] | None] = [None, [name, CPU]]
    for providers in lists:
        session = parallax.InferenceSession(made, providers=providers)
        assert session.get_providers() == [name, CPU]
        assert backends(session) == {PHONE, CPU_BACKEND}
        check_answers(session, two_branches())


def device(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["devices"][0].update(values)


def asked(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["options"]["devices"][0].update(values)


def region(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: _region(manifest).update(values)


def _region(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry["region"] for entry in manifest["segments"] if entry["region"] is not None)
    return found


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no device": lambda manifest: manifest.update(devices=[]),
    "a device twice": lambda manifest: manifest["devices"].append(manifest["devices"][0]),
    "a device that nothing runs on": lambda manifest: manifest["devices"].append(
        manifest["devices"][0] | {"name": BOARD, "backend": BOARD}
    ),
    "a device that was not asked for": device(name=BOARD),
    "a device of no name": device(name=""),
    "a device of a name with lines": device(name="a\nb"),
    "the processor as a device": device(backend="cpu"),
    "no version": device(version=""),
    "an option that leads to a file": device(opening_options=[["condition", "/etc/passwd"]]),
    "a speed in words": device(opening_options=[["speed", "quick"]]),
    "no speed": device(opening_options=[["speed", "0"]]),
    "a speed beyond any": device(opening_options=[["speed", "9e999"]]),
    "an option twice": asked(options=[["speed", "1"], ["speed", "2"]]),
    "an option of no name": asked(options=[["", "1"]]),
    "no memory": asked(memory_bytes=0),
    "memory beyond any": asked(memory_bytes=1 << 60),
    "asked for twice": lambda manifest: manifest["options"]["devices"].append(manifest["options"]["devices"][0]),
    "a policy of files": lambda manifest: manifest["options"].update(policy="learned,network=x"),
    "a policy with a path": lambda manifest: manifest["options"].update(policy="greedy,partitions=/etc"),
    "a split that is none": lambda manifest: manifest["options"].update(split="always"),
    "a region of another device": region(device=1),
    "a region of no device": region(device=-1),
    "a region less": lambda manifest: manifest["segments"][_first(manifest)].update(region=None),
    "a region more": lambda manifest: manifest["segments"][_first(manifest, on_cpu=True)].update(
        region=_region(manifest)
    ),
    "negative work": lambda manifest: _region(manifest)["flops"].__setitem__(0, -1),
    "work beyond any": lambda manifest: _region(manifest)["touched_bytes"].__setitem__(0, 1 << 60),
    "an operator of a long name": lambda manifest: _region(manifest)["operators"].__setitem__(0, "M" * 5000),
    "an operator without work": lambda manifest: _region(manifest)["flops"].pop(),
    "an operator more": lambda manifest: _region(manifest)["operators"].append("MatMul"),
    "nothing moves": region(moved_bytes=[]),
    "less than nothing moves": lambda manifest: _region(manifest).update(
        moved_bytes=[-1] * len(_region(manifest)["moved_bytes"])
    ),
    "a shape of what is not read": region(shapes=[["nowhere", [1]]]),
    "two shapes of one input": lambda manifest: _region(manifest).update(shapes=_region(manifest)["shapes"] * 2),
    "a shape below zero": lambda manifest: _region(manifest).update(
        shapes=[[name, [-1]] for name, _ in _region(manifest)["shapes"]]
    ),
}


def _first(manifest: dict[str, Any], *, on_cpu: bool = False) -> int:
    return next(index for index, entry in enumerate(manifest["segments"]) if (entry["region"] is None) is on_cpu)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_manifest_that_says_of_devices_what_cannot_be_is_refused(
    edit: Callable[[dict[str, Any]], object], bundle: Path, tmp_path: Path
) -> None:
    made = copied(bundle, tmp_path / "m.plx")
    forge(made, lambda manifest: edit(manifest), rehash=False)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(made)


PLAN_EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another device": lambda plan: _planned(plan).update(backend=BOARD),
    "the processor": lambda plan: _planned(plan).update(backend="cpu"),
    "a device for the processor's": lambda plan: _planned(plan, CPU_BACKEND).update(backend=PHONE),
    "rows in a shape": lambda plan: plan.update(rows_permille=500, rows_shapes=[["x", [1]]]),
    "layers left whole, and no rows": lambda plan: plan.update(rows_whole=["x"]),
    "parts in slices": lambda plan: plan.update(
        stretches=[{"output": "y", "axis": 0, "slices": 2, "inputs": []}], rows_permille=None, constants_shapes=None
    ),
    "rows in rounds": lambda plan: plan.update(rows_permille=500, rows_rounds=2),
    "weights that are read while it runs": lambda plan: plan["provenance"].update(source="memory"),
}


def _planned(plan: dict[str, Any], backend: str = PHONE) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in plan["segments"] if entry["backend"] == backend)
    return found


@pytest.mark.parametrize("edit", PLAN_EDITS.values(), ids=PLAN_EDITS)
def test_a_plan_and_a_manifest_that_do_not_agree_on_devices_are_refused(
    edit: Callable[[dict[str, Any]], object], bundle: Path, tmp_path: Path
) -> None:
    made = copied(bundle, tmp_path / "m.plx")
    forge_plan(made, edit)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(made)


def test_a_region_that_says_it_is_emulated_and_is_not_is_refused(tmp_path: Path) -> None:
    with installed(tmp_path):
        made = parallax.compile(
            written(tmp_path, two_branches()), tmp_path / "m.plx", providers=["faulty:fails", CPU], **FORCED
        )

        def edit(manifest: dict[str, Any]) -> None:
            for entry in manifest["segments"]:
                if entry["region"] is not None:
                    entry["region"]["is_emulated"] = True

        forge(made, edit)
        with pytest.raises(parallax.BundleError, match="no emulated device"):
            parallax.InferenceSession(made)


# -- devices that compile their parts when the bundle is opened -------------------------------------------------------


@pytest.mark.parametrize("kind", ["fails", "random", "nans", "refuses"])
def test_what_a_device_fails_at_the_processor_computes(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = two_branches()
    with installed(tmp_path):
        made = parallax.compile(
            written(tmp_path, model), tmp_path / "m.plx", providers=[f"faulty:{kind}", CPU], **FORCED
        )
        session = parallax.InferenceSession(made, faults=FaultPolicy(tolerated=1_000_000, checks_nan=True))
        manifest = read_manifest(made)[0]
        assert manifest.held_weight_bytes > 0
        assert session.memory().weights_private_bytes == manifest.held_weight_bytes
        check_answers(session, model, seeds=6)
        is_refused = kind == "refuses"
        assert (f"faulty:{kind}" in backends(session)) is not is_refused
        assert any("instead" in record.getMessage() for record in caplog.records)
    with pytest.raises(parallax.BundleMismatchError, match=f"faulty:{kind} cannot be used here"):
        parallax.InferenceSession(made)


def test_openvino_compiles_its_part_when_the_bundle_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = two_branches()
    made = parallax.compile(
        written(tmp_path, model), tmp_path / "m.plx", providers=["openvino", CPU], split="always", threads=2
    )
    session = parallax.InferenceSession(made)
    assert "openvino" in backends(session)
    assert session.get_providers() == ["openvino", CPU]
    check_answers(session, model)
    forge(made, lambda manifest: manifest["devices"][0].update(hardware="an abacus"))
    with pytest.raises(parallax.BundleMismatchError, match=r"hardware of openvino: made for 'an abacus'"):
        parallax.InferenceSession(made)


def test_weights_of_types_that_numpy_lacks_are_kept(tmp_path: Path) -> None:
    """bfloat16, which is cast before anything computes with it."""
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / 16
    odd = onnx.TensorProto(name="odd", data_type=TensorProto.BFLOAT16, dims=values.shape)
    odd.raw_data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    nodes = [
        helper.make_node("Cast", ["odd"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "plain"], ["b"]),
        helper.make_node("Erf", ["x"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, SIZE])],
        [odd, numpy_helper.from_array(values, "plain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with installed(tmp_path):
        made = parallax.compile(
            written(tmp_path, model), tmp_path / "m.plx", providers=["faulty:random", CPU], **FORCED
        )
        check_answers(parallax.InferenceSession(made), model)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_has_a_bundle_per_device_and_its_options(tmp_path: Path) -> None:
    model = written(tmp_path, two_branches())
    cache = tmp_path / "cache"
    lists: list[list[Any]] = [[PHONE, CPU], [(PHONE, {"speed": 3}), CPU], [BOARD, CPU], [CPU]]
    for number, providers in enumerate(lists, start=1):
        for _ in range(2):
            session = parallax.InferenceSession(model, cache=True, cache_dir=cache, providers=providers, **FORCED)
            names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
            assert session.get_providers() == names
            assert backends(session) - {CPU_BACKEND} == set(names[:-1])
            check_answers(session, two_branches(), seeds=1)
        assert len(list(cache_folder(cache).iterdir())) == number
    session.set_providers([PHONE, CPU])
    assert backends(session) == {PHONE, CPU_BACKEND}
    check_answers(session, two_branches(), seeds=1)
    session.set_providers([CPU])
    assert backends(session) == {CPU_BACKEND}
    assert len(list(cache_folder(cache).iterdir())) == len(lists)


def test_a_cached_bundle_of_another_version_of_the_device_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = written(tmp_path, two_branches())
    options: dict[str, Any] = {"cache": True, "cache_dir": tmp_path / "cache", "providers": [PHONE, CPU], **FORCED}
    parallax.InferenceSession(model, **options)
    (made,) = cache_folder(tmp_path / "cache").iterdir()
    forge(made, lambda manifest: manifest["devices"][0].update(version="onnxruntime 0.1"))
    with caplog.at_level(logging.WARNING):
        session = parallax.InferenceSession(model, **options)
    assert "version of emulated:pixel-6-gpu" in caplog.text
    assert backends(session) == {PHONE, CPU_BACKEND}
    assert read_manifest(made)[0].devices[0].version != "onnxruntime 0.1"


# -- tuned ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, whatever else the machine is doing: plans with rows shared come last."""
    let_the_last_win(monkeypatch)


@pytest.mark.usefixtures("rows_win")
def test_a_tuned_plan_with_shared_rows_is_kept(tmp_path: Path) -> None:
    model = chain(2)
    made = parallax.compile(
        written(tmp_path, model),
        tmp_path / "m.plx",
        providers=[(PHONE, {"speed": 1000}), CPU],
        tune=True,
        threads=2,
        portable=True,
        cache_dir=tmp_path / "cache",
    )
    for options in ({}, {"memory_budget": "1GiB"}):
        session = parallax.InferenceSession(made, **options)
        assert session.plan.rows_permille is not None
        assert backends(session) == {PHONE, CPU_BACKEND}
        check_answers(session, model, rows=512)
        assert session.memory().run_peak_bytes

    def work(number: int) -> None:
        check_answers(session, model, rows=512, seeds=2)

    in_threads(8, work)
    assert read_bundle(made).plan.provenance.source == "measured"


@pytest.mark.usefixtures("rows_win")
def test_in_open_shapes_a_bundle_shares_no_rows(tmp_path: Path) -> None:
    model = chain(2, rows="n")
    made = parallax.compile(
        written(tmp_path, model),
        tmp_path / "m.plx",
        providers=[(PHONE, {"speed": 1000}), CPU],
        tune=True,
        threads=2,
        shapes={"x": (512, SIZE)},
        cache_dir=tmp_path / "cache",
    )
    session = parallax.InferenceSession(made)
    assert session.plan.rows_permille is None
    for rows in (512, 7):
        check_answers(session, model, rows=rows, seeds=1)
