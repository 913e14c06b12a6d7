"""Branches and layers of real models: golden numbers, to be changed only with a reason."""

from __future__ import annotations

import pytest

from parallax import zoo
from parallax.model import load_model
from parallax.partition import find_branches, group_fusions
from parallax.partition._branches import verify_branches, verify_layers
from parallax.partition._fusion_groups import verify_groups
from parallax.partition.candidates import by_branches
from parallax.partition.candidates._segments import every_group, verify_partition


@pytest.mark.parametrize(
    ("name", "branches", "layers", "parallel_layers", "max_branches"),
    [
        # Of the eight residual blocks only the three that halve the image have a convolution on the skip.
        ("resnet18", 29, 26, 3, 2),
        ("yolov8n", 234, 190, 30, 3),
        ("mobilenetv2", 31, 31, 0, 1),
    ],
)
def test_branches_and_layers_of_reference_models(
    name: str, branches: int, layers: int, parallel_layers: int, max_branches: int
) -> None:
    graph = load_model(zoo.load(name)).graph
    groups = group_fusions(graph, tiny_elements=0)
    verify_groups(graph, groups)
    found = find_branches(groups.dag, control_flow=groups.control_flow)
    verify_branches(groups.dag, found)
    verify_layers(found)
    for cut in (by_branches(groups), every_group(groups)):
        verify_partition(groups, cut)
    counts = (len(found.branches), len(found.layers), found.parallel_layers, found.max_branches)
    assert counts == (branches, layers, parallel_layers, max_branches)
