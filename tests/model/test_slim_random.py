"""Random pruned models, slimmed: ONNX Runtime's answers to the models as they were, and a reason for each removal."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from parallax.model import load_model, slim_model
from tests.model._pruned import pruned_model
from tests.model.test_slim import assert_same

SCHEDULED = 300
"""Random models in the slow suite ..."""
QUICK = 40
"""... and in the fast one."""


def _check(seed: int) -> tuple[int, int]:
    """One random model: equal, and each removal justified by zeros of its weights, or by what reads it."""
    made, zeroed, feeds = pruned_model(seed)
    given = load_model(made)
    slimmed = slim_model(given)
    assert slimmed.slimming is not None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    inputs = {one.name: list(one.input) for one in made.graph.node}
    for removal in slimmed.slimming.removals:
        weight = constants[inputs[removal.node][1]]
        along = 0 if removal.op_type == "Conv" else 1
        if removal.op_type == "Gemm":
            along = 0
        of_channel = np.moveaxis(weight, along, 0).reshape(weight.shape[along], -1)
        assert 0 < removal.count < removal.of == len(of_channel)
        if removal.why == "all weights of them are 0":
            assert removal.count <= int((of_channel == 0).all(axis=1).sum())
    if not slimmed.slimming.removals:
        assert slimmed.whole() == given.whole()
        return zeroed, 0
    assert_same(slimmed, made, feeds)
    return zeroed, slimmed.slimming.channels


@pytest.mark.parametrize("seed", range(QUICK))
def test_random_pruned_models_compute_the_same(seed: int) -> None:
    _check(seed)


@pytest.mark.slow
def test_three_hundred_random_pruned_models_compute_the_same() -> None:
    """Of all channels that were zeroed, a good part goes: the rules are of use."""
    counted = [_check(seed) for seed in range(SCHEDULED)]
    zeroed, gone = (sum(column) for column in zip(*counted, strict=True))
    assert sum(1 for _, count in counted if count) > SCHEDULED / 2
    assert gone > zeroed / 4
