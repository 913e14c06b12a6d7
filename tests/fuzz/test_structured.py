"""Random structured models give ONNX Runtime's answers in every mode of Parallax, or are refused by both.

``python -m tests.fuzz 0 3000`` prints how many models, runs and faults there were.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz._models import make_model
from tests.fuzz._modes import Counts, try_model

SEEDS = 3000
CHUNK = 50


def check(seeds: range, folder: Path) -> None:
    counts = Counts()
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        try_model(seed, make_model(seed), place, counts)
    assert not counts.faults, "\n".join(counts.faults)
    assert counts.invalid <= len(seeds) / 5, "the generator makes too much that ONNX Runtime refuses"
    assert counts.runs > 4 * (counts.models - counts.invalid)
    assert counts.split["split"] > len(seeds) / 8


def test_sixteen_models_answer_alike_in_every_mode(tmp_path: Path) -> None:
    check(range(1_000_000, 1_000_016), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_three_thousand_models_answer_alike_in_every_mode(first: int, tmp_path: Path) -> None:
    check(range(first, first + CHUNK), tmp_path)


def test_a_seed_gives_the_same_model_each_time() -> None:
    first, second = make_model(7), make_model(7)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
    assert first.external == second.external
