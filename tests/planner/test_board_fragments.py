"""The boards' list of operators is TensorRT 10's: layer normalisation no longer breaks transformers into fragments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallax.backends.emulated._backend import EmulatedBackend, _folded
from parallax.backends.emulated._coverage import Coverage, read_coverage
from parallax.backends.emulated._figures import read_fields
from parallax.backends.emulated._profiles import _folder, load_profile
from parallax.graph import Capability, OpGraph, RefusedNode, Verdict
from parallax.partition import group_fusions
from parallax.partition.regions import RegionRule, estimate_device_costs, find_regions
from tests.profile.test_zoo_flops import graph_of

BOARDS = ("jetson-agx-orin", "jetson-orin-nano")

NORMS = {"vit-b16": 25, "swin-t": 29}
"""Normalisations: two per block and one at the end (ViT-B/16, 12 blocks); in Swin-T's 12 blocks, after the patches, at
each of three mergings, and at the end."""

FRAGMENTS = {"vit-b16": 26, "swin-t": 29}
"""That TensorRT 8.4 breaks them into. Swin-T's first two normalisations follow each other."""


def capability(graph: OpGraph, coverage: Coverage) -> Capability:
    """As an emulated device answers; weights, which `graph_of` leaves out, count as the constants that they are."""
    images = {"pixel_values"}
    folded = _folded(graph)
    constants = {info.name for info in graph.inputs} - images
    constants |= {name for index in folded for name in graph.nodes[index].outputs}
    found = {
        node.index: None if node.index in folded else coverage.uncovered(graph, node, constants=constants)
        for node in graph.nodes
    }
    return Capability(
        backend="board",
        taken=tuple(index for index, rejection in found.items() if rejection is None),
        refused=tuple(
            RefusedNode(node=index, reason=rejection.verdict, detail=rejection.detail)
            for index, rejection in found.items()
            if rejection is not None
        ),
    )


def fragments(graph: OpGraph, answer: Capability, board: str) -> int:
    """How many regions greedy delegation makes."""
    pricing = EmulatedBackend(load_profile(board), speed=1.0)
    device_costs = estimate_device_costs(graph, answer, pricing, cpu_ns=[1] * len(graph.nodes))
    assert device_costs is not None
    return len(find_regions(graph, group_fusions(graph), device_costs, rule=RegionRule.GREEDY).regions)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", NORMS)
def test_a_transformer_is_not_broken_at_its_normalisations(name: str, board: str) -> None:
    graph = graph_of(name)
    coverage = load_profile(board).coverage
    assert coverage.name == "tensorrt-10"
    before = capability(graph, read_coverage(read_fields(_folder() / "delegates" / "tensorrt.json")))
    after = capability(graph, coverage)
    norms = [entry for entry in before.refused if graph.nodes[entry.node].op_type == "LayerNormalization"]
    assert len(norms) == NORMS[name]
    assert {entry.reason for entry in norms} == {Verdict.UNSUPPORTED_OPERATOR}
    assert not {entry.node for entry in norms} & {entry.node for entry in after.refused}
    assert (fragments(graph, before, board), fragments(graph, after, board)) == (FRAGMENTS[name], 1)


@pytest.mark.parametrize("board", BOARDS)
def test_a_list_without_normalisation_would_break_it_there(board: str) -> None:
    coverage = load_profile(board).coverage
    rules = {name: rule for name, rule in coverage.operators.items() if name != "LayerNormalization"}
    graph = graph_of("vit-b16")
    assert fragments(graph, capability(graph, replace(coverage, operators=rules)), board) == FRAGMENTS["vit-b16"]
