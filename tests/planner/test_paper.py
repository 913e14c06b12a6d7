"""The paper's system as a policy of sessions: right answers, its own steps and arenas, and whatever it costs."""

from __future__ import annotations

import json
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.backends import open_backend
from parallax.bundle import read_bundle
from parallax.errors import ConfigError
from parallax.memory import MemoryModel
from parallax.model import load_model
from parallax.planner import PlanDevice, PlanRequest, open_placer, plan_model
from parallax.schedule import CPU_BACKEND, PAPER_POLICY, Plan, verify_plan
from parallax.schedule.placement import PaperPolicy
from tests.cli._models import invoke
from tests.engine._flow_models import decoder, decoder_feeds
from tests.planner.test_placers import tiny, two_chains
from tests.session.test_devices import CPU, PHONE, expected, feeds, two_branches

EASY = PaperPolicy(min_nodes=1, min_macs=1, max_bytes_per_mac=1e9)
"""Regions of anything."""

CHAINS = {"x": np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)}


def agrees(session: parallax.InferenceSession, model: bytes, fed: dict[str, Any]) -> None:
    for _ in range(2):
        for got, want in zip(session.run(None, fed), expected(model, fed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def steps(plan: Plan) -> list[list[int]]:
    """Segments of each step: those that wait for the same ones."""
    found: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for segment in plan.segments:
        depth = 1 + max((last[before] for before in segment.predecessors), default=-1)
        last[segment.index] = depth
        found.setdefault(depth, []).append(segment.index)
    return [found[key] for key in sorted(found)]


def test_a_session_on_the_cpu_alone_runs_the_layers_and_says_that_it_is_a_baseline() -> None:
    model = two_chains()
    session = parallax.InferenceSession(model, policy=PAPER_POLICY, threads=2)
    plan = session.plan
    verify_plan(plan)
    assert plan.policy == PAPER_POLICY
    assert "baseline" in plan.provenance.reason
    assert plan.provenance.source == "forced"
    assert plan.provenance.chosen_ns is not None
    # Both chains side by side on a core each.
    assert sorted(len(step) for step in steps(plan))[-1] == 2
    assert {segment.width for segment in plan.segments if "side by side" in segment.reason} == {1}
    assert "side by side" in plan.provenance.reason
    agrees(session, model, CHAINS)


def test_it_is_run_even_where_the_whole_model_is_quicker() -> None:
    # Two chains of tiny operators: side by side costs more than it gains, which the default policy knows.
    model = two_branches(batch=1, depth=6)
    paper = parallax.InferenceSession(model, policy=PaperPolicy(max_imbalance=1e9), threads=2)
    assert len(paper.plan.segments) > 1
    chosen, whole = paper.plan.provenance.chosen_ns, paper.plan.provenance.whole_ns
    assert chosen is not None
    assert whole is not None
    assert chosen > whole
    assert parallax.InferenceSession(model, threads=2).plan.is_whole
    agrees(paper, model, feeds(1))


def test_with_a_device_only_what_passes_the_thresholds_runs_there() -> None:
    model = two_branches(batch=64)
    strict = parallax.InferenceSession(model, providers=[PHONE, CPU], policy=PAPER_POLICY, threads=2)
    assert {segment.backend for segment in strict.plan.segments} == {CPU_BACKEND}
    assert re.search(r"\b0 of \d+ fragments", strict.plan.provenance.reason)
    easy = parallax.InferenceSession(model, providers=[PHONE, CPU], policy=EASY, threads=2)
    assert {segment.backend for segment in easy.plan.segments} == {CPU_BACKEND, PHONE}
    for session in (strict, easy):
        agrees(session, model, feeds())


def test_of_several_devices_the_first_is_used() -> None:
    names = ("emulated:jetson-orin-nano", PHONE)
    devices = {name: PlanDevice(backend=open_backend(name)) for name in names}
    request = PlanRequest(model=load_model(two_chains()), cores=2, policy=PAPER_POLICY, placer=EASY, devices=devices)
    backends = {segment.backend for segment in plan_model(request).plan.segments}
    assert names[0] in backends
    assert names[1] not in backends


def test_a_device_without_prices_is_judged_by_the_thresholds_alone() -> None:
    """The paper's thresholds ask for operators, work and bytes, not for times."""

    class Unpriced:
        def __init__(self) -> None:
            self._backend = open_backend(PHONE)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

        def price(self, work: Any) -> None:
            return None

        def transfer_ns(self, size_bytes: int) -> None:
            return None

    backend: Any = Unpriced()
    request = PlanRequest(
        model=load_model(two_branches()),
        cores=2,
        policy=PAPER_POLICY,
        placer=EASY,
        devices={PHONE: PlanDevice(backend=backend)},
    )
    assert PHONE in {segment.backend for segment in plan_model(request).plan.segments}


def test_memory_that_is_not_free_runs_branches_one_by_one() -> None:
    model = load_model(two_chains())
    request = PlanRequest(model=model, cores=2, policy=PAPER_POLICY, placer=PaperPolicy(free_bytes=1 << 30))
    plenty = plan_model(request).plan
    assert len(plenty.segments) > 1
    tight = plan_model(replace(request, placer=PaperPolicy(free_bytes=4096))).plan
    assert tight.is_whole
    assert "one by one" in tight.provenance.reason
    # The margin counts: a chain takes two tensors of a MiB.
    both = 2 * 2 * (1 << 20)
    fits = plan_model(replace(request, placer=PaperPolicy(free_bytes=2 * both, margin=0.5))).plan
    assert len(fits.segments) == len(plenty.segments)
    short = plan_model(replace(request, placer=PaperPolicy(free_bytes=2 * both, margin=0.51))).plan
    assert short.is_whole


def test_threads_are_capped() -> None:
    model = load_model(two_chains())
    request = PlanRequest(model=model, cores=8, policy=PAPER_POLICY, placer=open_placer(PAPER_POLICY))
    assert max(segment.width for segment in plan_model(request).plan.segments) == 6
    capped = replace(request, placer=PaperPolicy(max_threads=1))
    assert {segment.width for segment in plan_model(capped).plan.segments} == {1}


def test_every_branch_has_an_arena_of_its_own() -> None:
    model = load_model(two_chains())
    plan = plan_model(PlanRequest(model=model, cores=2, policy=PAPER_POLICY, placer=PaperPolicy())).plan
    arena = MemoryModel(plan, model.inferred(), place_outputs=False).plan({}).arena
    assert arena.planner == "branch_arenas"
    ours = MemoryModel(replace(plan, policy="adaptive"), model.inferred(), place_outputs=False).plan({}).arena
    assert ours.planner != "branch_arenas"
    assert ours.arena_bytes <= arena.arena_bytes


def test_plans_survive_json() -> None:
    plan = plan_model(
        PlanRequest(model=load_model(two_chains()), cores=2, policy=PAPER_POLICY, placer=PaperPolicy())
    ).plan
    assert Plan.from_json(json.dumps(plan.to_json())) == plan
    assert plan.has_branch_arenas


@pytest.mark.parametrize("other", [{"tune": True}, {"min_gain": 0.1}, {"split": "never"}, {"split": "always"}], ids=str)
@pytest.mark.parametrize("policy", [PAPER_POLICY, PaperPolicy(margin=0.3)], ids=str)
def test_what_says_something_else_of_planning_is_refused(policy: Any, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exclude each other") as refused:
        parallax.Options(policy=policy, **other)
    assert refused.value.fix


def test_a_model_that_cannot_be_divided_stays_whole_with_the_reason() -> None:
    session = parallax.InferenceSession(tiny(), policy=PAPER_POLICY, threads=2)
    assert session.plan.is_whole
    assert "baseline" in session.plan.provenance.reason
    np.testing.assert_array_equal(session.run(None, {"x": np.ones(4, np.float32)})[0], -np.ones(4, np.float32))


@pytest.mark.parametrize("providers", [[CPU], [PHONE, CPU]], ids=["cpu", "phone"])
def test_bodies_of_control_flow_are_planned_alike(providers: list[str]) -> None:
    proto = decoder()
    model = proto.SerializeToString()
    session = parallax.InferenceSession(model, providers=providers, policy=EASY, threads=2)
    for seed in range(2):
        fed = decoder_feeds(np.random.default_rng(seed))
        for got, want in zip(session.run(None, fed), expected(model, fed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_open_dimensions_planned_for_one_shape_run_in_others() -> None:
    model = two_branches(batch="N", depth=6)
    session = parallax.InferenceSession(
        model, policy=PaperPolicy(max_imbalance=1e9), threads=2, shapes={"x": (64, 256)}
    )
    assert len(session.plan.segments) > 1
    for batch in (64, 3, 128):
        agrees(session, model, feeds(batch))


def test_a_budget_holds_beside_it() -> None:
    model = two_chains()
    session = parallax.InferenceSession(model, policy=PAPER_POLICY, threads=2, memory_budget="64MiB")
    assert session.plan.policy == PAPER_POLICY
    agrees(session, model, CHAINS)


def test_a_session_can_be_pickled_and_called_from_many_threads() -> None:
    model = two_chains()
    first = parallax.InferenceSession(model, policy=PaperPolicy(margin=0.3), threads=2)
    session = pickle.loads(pickle.dumps(first))
    assert session.plan.segments == first.plan.segments
    want = expected(model, CHAINS)[0]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(session.run(None, CHAINS)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    for answer in answers:
        np.testing.assert_allclose(answer, want, rtol=1e-4, atol=1e-4)


def test_a_bundle_keeps_the_plan_and_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_chains())
    policy = PaperPolicy(margin=0.3)
    bundle = parallax.compile(path, tmp_path / "m.plx", policy=policy, threads=2)
    recorded = read_bundle(bundle)
    assert recorded.manifest.options.policy == "parallax-paper,margin=0.3"
    assert recorded.plan.policy == PAPER_POLICY
    for options in ({}, {"policy": policy}):
        session = parallax.InferenceSession(bundle, threads=2, **options)
        assert session.plan.policy == PAPER_POLICY
        agrees(session, path.read_bytes(), CHAINS)
    with pytest.raises(ConfigError, match="policy"):
        parallax.InferenceSession(bundle, threads=2, policy=PAPER_POLICY)


def test_the_cache_of_bundles_tells_policies_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_chains())
    plain = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path, threads=2)
    paper = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path, threads=2, policy=PAPER_POLICY)
    again = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path, threads=2, policy=PAPER_POLICY)
    assert plain.plan.policy != PAPER_POLICY
    assert paper.plan == again.plan
    assert paper.plan.policy == PAPER_POLICY
    agrees(again, path.read_bytes(), CHAINS)


def test_inspect_shows_its_plan_with_and_without_devices(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_chains())
    words = ("inspect", path, "--threads", "2", "--policy", "parallax-paper,free_bytes=1000000000")
    for providers in ((), ("--provider", PHONE)):
        result = invoke(*words, *providers, "--json")
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)["session"]
        assert "baseline" in shown["reason"]
        # All of it passes the thresholds on the phone, in one region.
        assert len(shown["segments"]) == (1 if providers else 3)
        assert "the plan of a session on" in invoke(*words, *providers).stdout
    refused = invoke("inspect", path, "--policy", "heft")
    assert refused.exit_code != 0
    assert "--provider" in refused.output


def test_bench_times_policies_beside_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_branches())
    result = invoke("bench", path, "--runs", 1, "--threads", 2, "--no-tune", "--policy", PAPER_POLICY, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    label = f"Parallax, {PAPER_POLICY}"
    assert label in [row["label"] for row in report["timings"]]
    assert report["policies"][label]["policy"] == PAPER_POLICY
    assert not report["best_of_onnxruntime"].startswith("Parallax")
    shown = invoke("bench", path, "--runs", 1, "--threads", 2, "--no-tune", "--policy", PAPER_POLICY)
    assert f"plan of {label}" in shown.stdout
