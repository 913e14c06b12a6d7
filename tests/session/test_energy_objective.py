"""Sessions and bundles whose plans are chosen by modelled joules."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import parallax
from parallax.bundle import cache_folder, read_bundle
from parallax.schedule import CPU_BACKEND
from tests.bundle._models import forge
from tests.planner.test_by_energy import transposes
from tests.session.test_devices import CPU, SIZE, chain, expected, feeds, two_branches

PHONE, OTHER = (
    (name, {"host_flops": "6e10"}) for name in ("emulated:pixel-6-gpu", "emulated:redmi-k50-gpu")
)  # a processor that is stated, so that every machine makes the same plans


def check_answers(session: parallax.InferenceSession, model: bytes, rows: int) -> None:
    for seed in range(3):
        fed = feeds(rows, seed)
        np.testing.assert_allclose(session.run(None, fed)[0], expected(model, fed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["energy", "edp"])
@pytest.mark.parametrize("providers", [None, [PHONE, CPU], [PHONE, OTHER, CPU]], ids=["CPU", "phone", "two devices"])
@pytest.mark.parametrize("rows", [64, 512])
def test_answers_are_onnx_runtimes_and_the_plan_says_what_was_compared(
    objective: Any, providers: Any, rows: int
) -> None:
    for model in (two_branches(batch=rows), chain(rows=rows)):
        session = parallax.InferenceSession(model, providers=providers, threads=2, objective=objective)
        check_answers(session, model, rows)
        shown = " ".join(str(session.plan).split())
        assert f'objective="{objective}": ' in shown
        assert "mJ" in shown
        assert "modelled" in shown
        assert "compared, the quickest first" in shown
        assert "tune=True compares joules" in " ".join(session.explain().split())


def test_a_device_that_draws_less_gets_the_model_though_it_is_slower() -> None:
    model = two_branches(batch=512, fallbacks=0)
    by_time = parallax.InferenceSession(model, providers=[PHONE, CPU], threads=2)
    assert PHONE[0] not in {segment.backend for segment in by_time.plan.segments}
    by_joules = parallax.InferenceSession(model, providers=[PHONE, CPU], threads=2, objective="energy")
    assert {segment.backend for segment in by_joules.plan.segments} == {PHONE[0]}
    check_answers(by_joules, model, 512)


def test_the_whole_model_runs_on_the_threads_that_were_chosen() -> None:
    model = transposes()
    session = parallax.InferenceSession(model, threads=2, objective="energy")
    assert session.get_session_options().intra_op_num_threads == 1
    assert [segment.width for segment in session.plan.segments] == [1]
    x = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    (want,) = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, {"x": x})
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)
    copy = pickle.loads(pickle.dumps(session))
    assert [segment.width for segment in copy.plan.segments] == [1]


@pytest.mark.parametrize(
    ("model", "given", "why"),
    [
        (two_branches(), {"disabled_optimizers": ["ConstantFolding"]}, "there is no other plan to compare with"),
        (two_branches(), {"split": "always"}, "the one that was asked for"),
        (two_branches(), {"policy": "parallax-paper"}, "the policy is a baseline"),
        (two_branches(batch="n"), {}, "depends on the shape of 'x' (shapes= says"),
        (two_branches(), {"providers": [("emulated:pixel-6-gpu", {"speed": 3}), CPU]}, "set by hand"),
    ],
)
def test_where_joules_cannot_decide_the_plan_says_why(model: bytes, given: dict[str, Any], why: str) -> None:
    session = parallax.InferenceSession(model, threads=2, objective="energy", **given)
    told = session.plan.provenance.reason
    assert 'objective="energy" is of no effect: ' in told
    assert why in told
    check_answers(session, model, 64)


def test_with_shapes_a_model_that_leaves_them_open_is_judged_in_those() -> None:
    model = two_branches(batch="n")
    session = parallax.InferenceSession(
        model, providers=[PHONE, CPU], threads=2, objective="energy", shapes={"x": (64, SIZE)}
    )
    assert session.plan.provenance.source == "energy"
    for rows in (64, 3, 64, 17):
        check_answers(session, model, rows)


def test_with_session_options_the_number_of_threads_is_the_callers() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = parallax.InferenceSession(transposes(), options, objective="energy")
    assert session.plan.provenance.source == "energy"
    assert session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("providers", [None, [PHONE, CPU]], ids=["CPU", "phone"])
def test_what_the_runtime_refuses_is_refused_in_its_words(providers: Any) -> None:
    proto = onnx.load_from_string(two_branches())
    proto.graph.node[0].op_type = "MatMull"
    refused = proto.SerializeToString()
    with pytest.raises(Exception, match="MatMull") as theirs:
        onnxruntime.InferenceSession(refused, providers=[CPU])
    with pytest.raises(theirs.type, match="MatMull"):
        parallax.InferenceSession(refused, providers=providers, threads=2, objective="energy")


def test_a_memory_budget_has_the_last_word() -> None:
    model = two_branches(batch=512)
    session = parallax.InferenceSession(
        model, providers=[PHONE, CPU], threads=2, objective="energy", memory_budget="64MiB"
    )
    assert session.memory().budget_bytes == 64 << 20
    check_answers(session, model, 512)


def test_a_device_that_may_hold_little_gets_as_much_as_fits() -> None:
    model = two_branches(batch=512, fallbacks=0)
    tight = (PHONE[0], {**PHONE[1], "memory_budget": 2 << 20})
    session = parallax.InferenceSession(model, providers=[tight, CPU], threads=2, objective="energy")
    assert session.plan.provenance.source == "energy"
    assert {segment.backend for segment in session.plan.segments} <= {PHONE[0], CPU_BACKEND}
    check_answers(session, model, 512)


def test_adapting_is_of_no_effect_beside_it() -> None:
    session = parallax.InferenceSession(
        two_branches(batch=512), providers=[PHONE, CPU], threads=2, objective="energy", adapt=True
    )
    assert "adapt=True is of no effect" in session.plan.provenance.reason
    assert session.adaptation is not None
    assert session.adaptation.ended is not None


# Bundles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("providers", [None, [PHONE, CPU]], ids=["CPU", "phone"])
def test_a_bundle_keeps_the_plan_and_its_threads(tmp_path: Path, providers: Any) -> None:
    model = transposes() if providers is None else two_branches(batch=512, fallbacks=0)
    path = tmp_path / "m.onnx"
    path.write_bytes(model)
    bundle = parallax.compile(path, tmp_path / "m.plx", providers=providers, threads=2, objective="energy")
    manifest = read_bundle(bundle).manifest
    assert manifest.options.objective == "energy"
    for given in ({}, {"objective": "energy"}, {"objective": "latency"}):
        session = parallax.InferenceSession(bundle, **given)
        assert session.plan.provenance.source == "energy"
        own = parallax.InferenceSession(model, providers=providers, threads=2, objective="energy")
        assert [(one.nodes, one.backend, one.width) for one in session.plan.segments] == [
            (one.nodes, one.backend, one.width) for one in own.plan.segments
        ]
        if providers is not None:
            check_answers(session, model, 512)
    with pytest.raises(parallax.ConfigError, match="objective= is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, objective="edp")
    assert "objective" in str(parallax.InferenceSession(bundle).plan)


def test_a_bundle_that_was_made_for_time_is_not_one_for_joules(tmp_path: Path) -> None:
    bundle = parallax.compile(two_branches(), tmp_path / "m.plx", threads=2)
    with pytest.raises(parallax.ConfigError, match="objective= is decided when a bundle is compiled") as caught:
        parallax.InferenceSession(bundle, objective="energy")
    assert caught.value.fix is not None
    assert "compile a bundle with it" in caught.value.fix


def test_a_bundle_from_elsewhere_is_made_anew_for_the_same_objective(tmp_path: Path) -> None:
    bundle = parallax.compile(transposes(), tmp_path / "m.plx", threads=2, objective="energy", portable=True)
    forge(bundle, lambda manifest: manifest.update(runtime_version="0.1"))
    session = parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
    assert session.plan.provenance.source == "energy"
    assert [segment.width for segment in session.plan.segments] == [1]
    (made,) = cache_folder(tmp_path / "cache").iterdir()
    assert read_bundle(made).manifest.options.objective == "energy"


def test_a_bundle_of_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    bundle = parallax.compile(two_branches(), tmp_path / "m.plx", threads=2, objective="energy")
    forge(bundle, lambda manifest: manifest["options"].update(objective="throughput"))
    with pytest.raises(parallax.BundleError, match="unknown objective 'throughput'"):
        parallax.InferenceSession(bundle)


def test_the_cache_keeps_a_bundle_for_each_objective(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(transposes())
    widths = []
    for objective in ("latency", "energy", "energy", "edp", "throughput"):
        session = parallax.InferenceSession(
            path, threads=2, cache=True, cache_dir=tmp_path / "cache", objective=objective
        )
        widths.append(session.plan.segments[0].width)
    assert widths == [2, 1, 1, 1, 2]
    made = [read_bundle(folder).manifest.options.objective for folder in cache_folder(tmp_path / "cache").iterdir()]
    assert sorted(made) == ["edp", "energy", "latency"]


def test_the_command_that_makes_a_bundle_again_names_the_objective(tmp_path: Path) -> None:
    from parallax.bundle._identity import rebuild_command

    bundle = parallax.compile(two_branches(), tmp_path / "m.plx", threads=2, objective="edp")
    words = shlex.split(rebuild_command(read_bundle(bundle).manifest, bundle))
    assert words[words.index("--objective") + 1] == "edp"
