"""The placer that runs a network: what it makes of a file, what it proposes, and what it refuses."""

from __future__ import annotations

import pickle
import shutil
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parallax
from parallax.errors import ConfigError
from parallax.graph import OpGraph
from parallax.partition.regions import DeviceCosts
from parallax.planner import open_placer, placer_names, policy_name
from parallax.planner._learned import VERSION_KEY, Learned
from parallax.schedule.placement import PlacementProblem, find_placement
from tests.partition._device_costs import NO, device_costs_of, priced_graphs, sized_graph
from tests.planner._networks import proposer, scheduler
from tests.planner.test_placers import CPU, PHONE, two_chains
from tests.schedule.test_yardsticks import problem_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("networks")
    proposer(made / "proposer.onnx")
    scheduler(made / "yes.onnx", bias=1.0)
    scheduler(made / "no.onnx", bias=-1.0)
    return made


def placements(placer: Learned, problem: PlacementProblem) -> dict[str, tuple[int | None, ...]]:
    return {placement.label: placement.devices for placement in placer.propose(problem)}


@settings(max_examples=25)
@given(case=priced_graphs(max_size=16))
def test_what_a_network_inclines_to_is_proposed_and_judged(folder: Path, case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    problem = problem_of(graph, device_costs)
    placer = Learned(network=str(folder / "proposer.onnx"), scheduler=str(folder / "yes.onnx"))
    proposed = placements(placer, problem)
    assert set(proposed) == {
        *("learned", "learned, cut early", "learned thresholds", "learned scheduler", "earliest finish")
    }
    # The network inclines to the device wherever that is quicker, the scheduler always; the device must take it.
    taken = [problem.takes[0][group] for group in range(len(problem.groups))]
    assert proposed["learned scheduler"] == tuple(0 if yes else None for yes in taken)
    there = [facts.device_ns[0] for facts in problem.features]
    for group, side in enumerate(proposed["learned"]):
        if side is not None:
            assert there[group] is not None
    for placement in placer.propose(problem):
        placement.check(problem)
    alone = find_placement(problem, ()).best.makespan_ns
    assert find_placement(problem, (placer,)).best.makespan_ns <= alone
    assert proposed == placements(placer, problem), "the same question has the same answer"


def test_a_scheduler_and_thresholds_decide_as_they_say(folder: Path, tmp_path: Path) -> None:
    graph, device_costs = _chain([1, 100, 10_000])
    problem = problem_of(graph, device_costs)
    cautious = Learned(network=str(folder / "proposer.onnx"), scheduler=str(folder / "no.onnx"), alone=True)
    proposed = placements(cautious, problem)
    assert "earliest finish" not in proposed
    assert set(proposed["learned scheduler"]) == {None}
    # Thresholds are logarithms to the base 10 of one more, by ten.
    never = proposer(tmp_path / "never.onnx", thresholds=(1.0, 0.9))
    assert set(placements(Learned(network=str(never)), problem)["learned thresholds"]) == {None}
    always = proposer(tmp_path / "always.onnx", thresholds=(1.0, 0.0))
    assert set(placements(Learned(network=str(always)), problem)["learned thresholds"]) == {0}
    dense = proposer(tmp_path / "dense.onnx", thresholds=(-0.1, 0.0))
    assert set(placements(Learned(network=str(dense)), problem)["learned thresholds"]) == {0}, "0 is at most 0"


def _chain(flops: list[int]) -> tuple[OpGraph, DeviceCosts]:
    graph = sized_graph(len(flops), pairwise(range(len(flops))), [4] * len(flops))
    return graph, device_costs_of([False] * len(flops), [1] * len(flops), [100] * len(flops), flops=flops)


def test_a_policy_names_a_network_and_says_which_one_it_is(folder: Path) -> None:
    assert "learned" in placer_names()
    network = folder / "proposer.onnx"
    named = f"learned,network={network},scheduler={folder / 'yes.onnx'},alone=true"
    made = open_placer(named)
    assert isinstance(made, Learned)
    assert made.alone
    told = policy_name(named)
    assert told == policy_name(made)
    assert open_placer(told) == made
    assert f"digest={made.digest}" in told
    assert open_placer(f"learned,network={network}") == Learned(network=str(network))


def test_another_network_in_the_same_place_is_not_taken_for_the_first(folder: Path, tmp_path: Path) -> None:
    path = proposer(tmp_path / "proposer.onnx")
    first = policy_name(f"learned,network={path}")
    proposer(path, column="flops")
    assert policy_name(f"learned,network={path}") != first
    with pytest.raises(ConfigError, match="has the digest"):
        open_placer(first)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("learned", "needs network"),
        ("learned,alone=true", "needs network"),
        ("learned,network=", "network=''"),
        ("learned,network={folder}/none.onnx", "cannot be read"),
        ("learned,network={folder}", "cannot be read"),
        ("learned,network={folder}/text.onnx", "no ONNX file"),
        ("learned,network={folder}/other.onnx", "no network that places"),
        ("learned,network={folder}/old.onnx", "of version 0"),
        ("learned,network={folder}/yes.onnx", "parallax scheduler, where a parallax proposer"),
        ("learned,network={folder}/proposer.onnx,scheduler={folder}/proposer.onnx", "where a parallax scheduler"),
        ("learned,network={folder}/proposer.onnx,digest=00", "has the digest"),
        ("learned,layers=3", "no setting"),
    ],
)
def test_files_that_are_no_such_network_are_refused_with_the_remedy(folder: Path, policy: str, words: str) -> None:
    (folder / "text.onnx").write_text("no protobuf\n" * 9)
    (folder / "other.onnx").write_bytes(two_chains())
    model = onnx.load(folder / "proposer.onnx")
    next(entry for entry in model.metadata_props if entry.key == VERSION_KEY).value = "0"
    onnx.save(model, folder / "old.onnx")
    with pytest.raises(ConfigError, match=words) as refused:
        open_placer(policy.format(folder=folder))
    assert refused.value.fix
    with pytest.raises(ConfigError):
        parallax.InferenceSession(two_chains(), providers=[PHONE, CPU], policy=policy.format(folder=folder))


def test_a_session_is_planned_by_a_network_and_answers_as_ever(folder: Path) -> None:
    policy = f"learned,network={folder / 'proposer.onnx'},scheduler={folder / 'yes.onnx'}"
    session = parallax.InferenceSession(two_chains(), providers=[PHONE, CPU], policy=policy, threads=1)
    assert PHONE in {segment.backend for segment in session.plan.segments}
    assert "as learned,network=" in session.plan.provenance.reason
    feeds = {put.name: np.ones([d or 1 for d in put.shape], np.float32) for put in session.get_inputs()}
    whole = parallax.InferenceSession(two_chains(), split="never", threads=1)
    for ours, theirs in zip(session.run(None, feeds), whole.run(None, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    again = pickle.loads(pickle.dumps(session))
    assert again.plan == session.plan


def test_a_placer_that_was_made_goes_on_when_its_file_is_gone(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(folder / "proposer.onnx", tmp_path))
    placer = Learned(network=str(path))
    path.unlink()
    problem = problem_of(*_chain([10, 20]))
    assert len(list(placer.propose(problem))) == 4


def test_threads_ask_one_network_at_the_same_time(folder: Path) -> None:
    placer = Learned(network=str(folder / "proposer.onnx"), scheduler=str(folder / "yes.onnx"))
    problem = problem_of(*_chain([10, 20, 30]))
    expected = placements(placer, problem)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(placements(placer, problem))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@given(share=st.floats(0, 1))
@settings(max_examples=5)
def test_a_model_of_which_a_device_takes_nothing_stays_on_the_cpu(folder: Path, share: float) -> None:
    graph, device_costs = _chain([10, 20])
    refused = replace(device_costs, declined=(NO, NO))
    placer = Learned(network=str(folder / "proposer.onnx"), scheduler=str(folder / "yes.onnx"))
    for devices in placements(placer, problem_of(graph, refused, zeros={"x": share})).values():
        assert set(devices) == {None}
