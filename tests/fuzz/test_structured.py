"""Random structured models give ONNX Runtime's answers in every mode of Parallax, or are refused by both.

``python -m tests.fuzz 0 3150`` prints how many models, runs and faults there were.
"""

from __future__ import annotations

import pytest

from tests.fuzz import _dying
from tests.fuzz._chunks import run_seeds
from tests.fuzz._counts import Kind
from tests.fuzz._models import make_model

SEEDS = 3150
"""Of which ONNX Runtime refuses about 2.5%: 3,000 are left."""
CHUNK = 50


def check(seeds: range) -> None:
    counts = run_seeds(seeds)
    assert not counts.faults, "\n".join(map(str, counts.faults))
    assert len(counts.excluded) <= 2, f"ONNX Runtime itself dies of {counts.excluded}"
    assert len(counts.invalid) <= len(seeds) / 5, "the generator makes too much that ONNX Runtime refuses"
    assert sum(counts.runs.values()) > 4 * counts.valid
    assert counts.split["split"] > len(seeds) / 8


def test_sixteen_models_answer_alike_in_every_mode() -> None:
    check(range(1_000_000, 1_000_016))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_three_thousand_models_answer_alike_in_every_mode(first: int) -> None:
    check(range(first, first + CHUNK))


def test_a_seed_gives_the_same_model_each_time() -> None:
    first, second = make_model(7), make_model(7)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
    assert first.external == second.external


def test_a_model_that_ends_the_process_is_told_from_the_rest_and_from_one_that_ends_onnx_runtime() -> None:
    counts = run_seeds(range(1_000_000, 1_000_005), child=_dying.__name__, stock_processes=2)
    assert counts.models == 3
    assert counts.excluded == [_dying.WITH_STOCK]
    assert [(fault.seed, fault.kind) for fault in counts.faults] == [(_dying.WITH_PARALLAX, Kind.DIED)]
