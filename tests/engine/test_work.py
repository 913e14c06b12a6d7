"""What delegates' segments amount to: the work in them, what crosses to a device and back, what may stay there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from parallax.engine._work import kept_outputs, segment_works, static_shapes
from parallax.graph import OpGraph
from parallax.schedule import CPU_BACKEND, Plan, Provenance, Segment
from tests.profile.graphs import make_graph

NPU, GPU = "npu", "gpu"
ROWS = {"x": 16, "a": 20, "b": 24, "c": 28, "d": 32, "e": 36, "y": 40}
"""Sizes all differ, so that what moves is known by its bytes."""
BYTES = {name: 4 * rows for name, rows in ROWS.items()}


def graph() -> OpGraph:
    """x makes a and b; a and b make c; a and x make d; c and d make y, and c makes e, which is returned too."""
    made = make_graph(
        [
            ("Relu", ["x"], ["a"], {}),
            ("Neg", ["x"], ["b"], {}),
            ("Add", ["a", "b"], ["c"], {}),
            ("Add", ["a", "x"], ["d"], {}),
            ("Sub", ["c", "d"], ["y"], {}),
            ("Abs", ["c"], ["e"], {}),
        ],
        {name: (rows,) for name, rows in ROWS.items()},
    )
    assert made.output_names == {"y", "e"}
    return made


def plan_of(graph: OpGraph, placed: Sequence[tuple[str, Sequence[int]]]) -> Plan:
    """Segments of these nodes on these backends, with the inputs and outputs that follow from that."""
    home = {node: index for index, (_, nodes) in enumerate(placed) for node in nodes}
    segments = []
    for index, (backend, nodes) in enumerate(placed):
        read = [name for node in nodes for name in graph.nodes[node].inputs]
        made = [name for node in nodes for name in graph.nodes[node].outputs]
        outside = {name for node, at in home.items() if at != index for name in graph.nodes[node].inputs}
        segments.append(
            Segment(
                index=index,
                name=f"segment_{index}",
                nodes=tuple(nodes),
                inputs=tuple(dict.fromkeys(name for name in read if name not in made)),
                outputs=tuple(name for name in made if name in outside or name in graph.output_names),
                predecessors=(),
                width=1,
                priority=0,
                lane=None,
                cost_ns=0,
                backend=backend,
                reason="",
            )
        )
    provenance = Provenance(
        source="forced", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
    )
    return Plan(
        format_version=1,
        structure_digest="",
        policy="adaptive",
        cores=1,
        lanes=1,
        backfill=True,
        segments=tuple(segments),
        provenance=provenance,
    )


def moved(plan: Plan, made: OpGraph, indices: Sequence[int]) -> Mapping[int, list[int]]:
    return {index: sorted(work.moved_bytes) for index, work in segment_works(plan, made, indices).items()}


def sizes(*names: str) -> list[int]:
    return sorted(BYTES[name] for name in names)


def test_what_comes_from_the_processor_and_what_goes_back_is_moved() -> None:
    made = graph()
    plan = plan_of(made, [(CPU_BACKEND, [0, 1]), (NPU, [2]), (CPU_BACKEND, [3, 4, 5])])
    assert moved(plan, made, [1]) == {1: sizes("a", "b", "c")}


def test_a_model_input_is_moved_to_the_device_and_a_model_output_from_it() -> None:
    made = graph()
    plan = plan_of(made, [(NPU, [0, 1, 2, 3, 4, 5])])
    assert moved(plan, made, [0]) == {0: sizes("x", "y", "e")}


def test_what_stays_on_the_device_is_not_moved() -> None:
    made = graph()
    plan = plan_of(made, [(NPU, [0, 1]), (NPU, [2, 3]), (NPU, [4, 5])])
    # The input goes there once, though two segments read it; the tensors between them never leave.
    assert moved(plan, made, [0, 1, 2]) == {0: sizes("x"), 1: [], 2: sizes("y", "e")}


def test_what_two_segments_of_a_device_read_is_moved_with_the_first_of_them_whichever_are_asked_for() -> None:
    made = graph()
    plan = plan_of(made, [(CPU_BACKEND, [0, 1]), (NPU, [2, 5]), (NPU, [3, 4])])
    assert moved(plan, made, [1, 2]) == {1: sizes("a", "b", "e"), 2: sizes("x", "y")}
    assert moved(plan, made, [2]) == {2: sizes("x", "y")}


def test_two_devices_have_nothing_in_common() -> None:
    made = graph()
    plan = plan_of(made, [(NPU, [0, 1]), (GPU, [2, 3]), (NPU, [4, 5])])
    assert moved(plan, made, [0, 1, 2]) == {
        0: sizes("x", "a", "b"),
        1: sizes("a", "b", "x", "c", "d"),
        2: sizes("c", "d", "y", "e"),
    }


def test_the_work_is_each_operators_and_constants_are_computed_when_they_are_loaded() -> None:
    made = graph()
    plan = plan_of(made, [(CPU_BACKEND, [0, 1]), (NPU, [2, 3]), (CPU_BACKEND, [4, 5])])
    (work,) = segment_works(plan, made, [1]).values()
    assert [operator.op_type for operator in work.operators] == ["Add", "Add"]
    assert [operator.flops for operator in work.operators] == [ROWS["c"], ROWS["d"]]
    assert [operator.touched_bytes for operator in work.operators] == [
        BYTES["a"] + BYTES["b"] + BYTES["c"],
        BYTES["a"] + BYTES["x"] + BYTES["d"],
    ]
    weights = make_graph(
        [("Relu", ["w"], ["v"], {}), ("Mul", ["x", "v"], ["y"], {})],
        {"w": (8,), "v": (8,), "x": (8,), "y": (8,)},
    )
    weights = replace(
        weights,
        initializers={"w": weights.tensors["w"]},
        inputs=tuple(info for info in weights.inputs if info.name == "x"),
    )
    (work,) = segment_works(plan_of(weights, [(NPU, [0, 1])]), weights, [0]).values()
    assert [operator.op_type for operator in work.operators] == ["Mul"]


def test_work_that_is_not_known_counts_nothing() -> None:
    made = make_graph([("SomethingNew", ["x"], ["y"], {})], {"x": None, "y": None})
    (work,) = segment_works(plan_of(made, [(NPU, [0])]), made, [0]).values()
    (operator,) = work.operators
    assert (operator.flops, operator.touched_bytes, work.moved_bytes) == (0, 0, (0, 0))


def test_only_what_its_own_device_reads_may_stay_there() -> None:
    made = graph()
    plan = plan_of(made, [(NPU, [0, 1]), (NPU, [2]), (CPU_BACKEND, [3, 4]), (NPU, [5])])
    assert kept_outputs(plan, made.output_names, frozenset()) == [
        frozenset({"b"}),  # the processor reads a
        frozenset(),  # and c
        frozenset(),
        frozenset(),  # returned
    ]


def test_in_the_processors_memory_all_may_stay_but_what_is_returned() -> None:
    made = graph()
    plan = plan_of(made, [(NPU, [0, 1]), (NPU, [2]), (CPU_BACKEND, [3, 4]), (NPU, [5])])
    assert kept_outputs(plan, made.output_names, frozenset({NPU})) == [
        frozenset({"a", "b"}),
        frozenset({"c"}),
        frozenset(),
        frozenset(),
    ]


def test_shapes_are_static_where_every_size_is_a_number() -> None:
    made = make_graph(
        [("Relu", ["x"], ["y"], {}), ("Relu", ["y"], ["z"], {}), ("Relu", ["z"], ["s"], {})],
        {"x": (2, 3), "y": ("n", 3), "z": None, "s": ()},
    )
    assert static_shapes(made, ["x", "y", "z", "s", "unknown"]) == {"x": (2, 3), "s": ()}
