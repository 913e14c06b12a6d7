"""The cost model as a value: interpolation, bounds, JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import ConfigError, InternalError
from parallax.graph import CostModel


def model(widths=(1, 4), durations=((400, 100), (100, 100)), latencies=(500, 200), **fields) -> CostModel:
    values = {"source": "measured", "scales": (1.0,) * len(widths), "known_fraction": 1.0, **fields}
    return CostModel(widths=widths, durations_ns=durations, latencies_ns=latencies, **values)


def test_known_widths_answer_exactly():
    assert model().node_ns(1) == (400, 100)
    assert model().node_ns(4) == (100, 100)
    assert model().latency_ns(4) == 200


def test_widths_between_follow_amdahls_law():
    # 400 / w: wholly parallel work between its known ends.
    assert model().node_ns(2) == (200, 100)
    assert model().latency_ns(2) == 300


def test_widths_beyond_the_known_ones_are_clamped():
    assert model(widths=(2, 4)).node_ns(1) == (400, 100)
    assert model().node_ns(64) == (100, 100)


def test_a_latency_nobody_measured_is_none():
    assert model(latencies=(None, None)).latency_ns(2) is None


def test_a_width_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        model().node_ns(0)


@pytest.mark.parametrize("fields", [{"widths": ()}, {"widths": (4, 1)}, {"widths": (0, 1)}, {"latencies": (1,)}])
def test_ill_formed_models_are_refused(fields):
    with pytest.raises(InternalError):
        model(**fields)


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(InternalError, match="number of nodes"):
        model(durations=((1, 2), (1,)))


rows = st.integers(0, 2**40)


@given(st.data())
def test_json_and_back_is_the_same_model(data):
    widths = tuple(sorted(data.draw(st.sets(st.integers(1, 256), min_size=1, max_size=5))))
    nodes = data.draw(st.integers(0, 5))
    costs = CostModel(
        source=data.draw(st.sampled_from(["tables", "measured"])),
        widths=widths,
        durations_ns=tuple(tuple(data.draw(rows) for _ in range(nodes)) for _ in widths),
        latencies_ns=tuple(data.draw(st.none() | rows) for _ in widths),
        scales=tuple(data.draw(st.floats(0.01, 100)) for _ in widths),
        known_fraction=data.draw(st.floats(0, 1)),
        fusion_safe=data.draw(st.none() | st.frozensets(st.text(max_size=5), max_size=3)),
    )
    assert CostModel.from_json(json.loads(json.dumps(costs.to_json()))) == costs


@pytest.mark.parametrize(
    "change",
    [{"format": 0}, {"widths": "1"}, {"durations_ns": [[1.5], [1]]}, {"latencies_ns": [-1, 2]}, {"scales": [True, 1]}],
)
def test_json_of_another_form_is_refused(change):
    with pytest.raises(ConfigError, match="measure anew"):
        CostModel.from_json(model().to_json() | change)


def test_json_with_a_missing_field_is_refused():
    value = model().to_json()
    del value["widths"]
    with pytest.raises(ConfigError, match="not a cost model"):
        CostModel.from_json(value)
