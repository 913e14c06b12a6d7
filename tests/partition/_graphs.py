"""Small graphs for the tests of `parallax.partition`: built by name, drawn at random, and brute-force oracles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hypothesis import strategies as st

from parallax.graph import Dag, Node, OpGraph, TensorInfo

INT64, FLOAT = 7, 1


def op_graph(
    nodes: Iterable[tuple[str, str, Sequence[str], Sequence[str]]],
    *,
    outputs: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    initializers: Sequence[str] = (),
    bodies: Mapping[str, OpGraph] | None = None,
    captures: Mapping[str, Sequence[str]] | None = None,
) -> OpGraph:
    """A graph from (name, op type, inputs, outputs) rows in topological order; unknown names are model inputs."""
    built: list[Node] = []
    producers: dict[str, int] = {}
    consumers: dict[str, list[int]] = {}
    inputs: dict[str, None] = {}
    for index, (name, op_type, reads, writes) in enumerate(nodes):
        captured = tuple((captures or {}).get(name, ()))
        body = (bodies or {}).get(name)
        built.append(
            Node(
                index=index,
                name=name,
                op_type=op_type,
                domain="",
                inputs=tuple(reads),
                outputs=tuple(writes),
                captures=captured,
                bodies=(("then_branch", body),) if body is not None else (),
            )
        )
        for tensor in (*reads, *captured):
            if tensor:
                consumers.setdefault(tensor, []).append(index)
                if tensor not in producers and tensor not in initializers:
                    inputs[tensor] = None
        producers.update(dict.fromkeys(writes, index))
    info = {name: TensorInfo(name=name, dtype=FLOAT, shape=shape) for name, shape in (shapes or {}).items()}
    return OpGraph(
        name="test",
        nodes=tuple(built),
        inputs=tuple(info.get(name, TensorInfo(name=name)) for name in inputs),
        overridable=(),
        outputs=tuple(info.get(name, TensorInfo(name=name)) for name in outputs),
        tensors=info,
        initializers={name: info.get(name, TensorInfo(name=name)) for name in initializers},
        producers=producers,
        consumers={name: tuple(sorted(set(readers))) for name, readers in consumers.items()},
    )


def graph_of_edges(size: int, edges: Iterable[tuple[int, int]]) -> OpGraph:
    """One node ``n{i}`` writing ``t{i}`` per index; sinks are outputs of the model, sources read ``x``."""
    reads: list[list[str]] = [[] for _ in range(size)]
    is_sink = [True] * size
    for tail, head in edges:
        reads[head].append(f"t{tail}")
        is_sink[tail] = False
    return op_graph(
        [(f"n{index}", "Relu", reads[index] or ["x"], [f"t{index}"]) for index in range(size)],
        outputs=[f"t{index}" for index in range(size) if is_sink[index]],
    )


@st.composite
def edge_lists(draw: st.DrawFn, max_size: int = 60) -> tuple[int, list[tuple[int, int]]]:
    """A random DAG: mostly short edges (as in real models), some long ones, often several components."""
    size = draw(st.integers(0, max_size))
    edges: set[tuple[int, int]] = set()
    for head in range(1, size):
        for distance in draw(st.lists(st.one_of(st.integers(1, 4), st.integers(1, max_size)), max_size=3)):
            if distance <= head:
                edges.add((head - distance, head))
    return size, sorted(edges)


@st.composite
def dags(draw: st.DrawFn, max_size: int = 60) -> Dag:
    size, edges = draw(edge_lists(max_size))
    return Dag.from_edges(size, edges)


def reachability(dag: Dag) -> list[set[int]]:
    """For each node all its descendants, the slow and obvious way."""
    below: list[set[int]] = [set() for _ in range(len(dag))]
    for node in range(len(dag) - 1, -1, -1):
        for target in dag.successors[node]:
            below[node] |= {target} | below[target]
    return below
