"""Tensors inside a model, looked at one after the other, in bounded memory.

The model runs several times, and each run returns a few of its tensors. That takes longer than one run that returns
all of them, and holds no more at once than a stated number of bytes beside what a run holds anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import onnxruntime

from parallax._record import dataclass
from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, make_session
from parallax.engine import run_interruptibly
from parallax.errors import BackendError
from parallax.graph import OpGraph, TensorInfo, tensor_bytes
from parallax.model import Model
from parallax.sparsity._weights import Array

FETCHED_BYTES: Final = 64 << 20
"""So much may the tensors that one run returns take together, by their declared sizes, unless one alone takes more. The
runtime copies them when it hands them over, and so holds twice as much for a moment."""

_UNKNOWN_SHARE: Final = 8
"""Tensors whose size is not known count as this part of the limit: so many of them in one run at most."""

Visit = Callable[[str, Array], None]
"""Called with a tensor's name and its value, once per example. It must not keep the value."""

Progress = Callable[[int, int], None]
"""Called with (runs done, runs in all) after each run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What one run returns."""

    tensors: tuple[str, ...]
    nodes: tuple[int, ...]
    """Indices of the nodes that compute them, ascending: the others do not run."""


def plan_fetches(graph: OpGraph, names: Sequence[str], *, limit_bytes: int = FETCHED_BYTES) -> tuple[Fetch, ...]:
    """Divide tensors among runs, in the order in which the model makes them, so that early runs compute little.

    Those of one run take at most ``limit_bytes`` together; a larger one has a run to itself. At most eight of unknown
    size are in one run. O(V + E) per run.

    Args:
        graph: with types.
        names: outputs of its nodes, each once.
    """
    ordered = sorted(names, key=lambda name: graph.producers[name])
    runs: list[list[str]] = []
    taken_bytes = 0
    for name in ordered:
        size = _size_bytes(graph.tensors.get(name), graph, limit_bytes)
        if not runs or taken_bytes + size > limit_bytes:
            runs.append([])
            taken_bytes = 0
        runs[-1].append(name)
        taken_bytes += size
    return tuple(Fetch(tensors=tuple(run), nodes=_ancestors(graph, run)) for run in runs)


def _size_bytes(info: TensorInfo | None, graph: OpGraph, limit_bytes: int) -> int:
    if info is None or not info.is_static:
        return limit_bytes // _UNKNOWN_SHARE
    return tensor_bytes(graph, info.name)


def _ancestors(graph: OpGraph, names: Sequence[str]) -> tuple[int, ...]:
    """The nodes that these tensors are computed by, directly or not."""
    found: set[int] = set()
    pending = [graph.producers[name] for name in names]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(graph.predecessors[node])
    return tuple(sorted(found))


def fetch_tensors(
    model: Model,
    examples: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    visit: Visit,
    *,
    width: int = 1,
    limit_bytes: int = FETCHED_BYTES,
    progress: Progress | None = None,
) -> tuple[Fetch, ...]:
    """Run a model on examples, and have tensors inside it visited. Ctrl-C ends a run between two of its nodes.

    The model runs as it is written: no operator is fused or folded, so that every tensor exists.

    Args:
        model: in the shapes of the examples.
        examples: feeds (input name -> array), all of the same shapes.
        names: of tensors that `Model.can_split_at` allows, outputs of nodes of the main graph.
        visit: see `Visit`; tensors in the order of the model, the examples of each in their order.
        width: threads of one run.
        limit_bytes: see `plan_fetches`.

    Returns: what was fetched in each run.

    Raises:
        BackendError: ONNX Runtime cannot open the model, or run it on the examples.
        UnsupportedModelError: the model can be run whole only.
    """
    graph = model.inferred()
    fetches = plan_fetches(graph, names, limit_bytes=limit_bytes)
    inputs = [info.name for info in (*graph.inputs, *graph.overridable)]
    options = RuntimeOptions(
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        log_severity_level=4,
        # Packed weights would be a second copy of them, for a session that runs a few times.
        config=(("session.disable_prepacking", "1"),),
    )
    for number, fetch in enumerate(fetches):
        with _told(model):
            segment = model.extract(fetch.nodes, inputs, fetch.tensors, name=f"observed {number}")
            session = make_session(segment, width=width, options=options)
        for count, feeds in enumerate(examples):
            with _told(model):
                values = run_interruptibly(functools.partial(session.run, list(fetch.tensors), dict(feeds)))
            for name, value in zip(fetch.tensors, values, strict=True):
                visit(name, value)
            del values, value  # before the next run makes its own ...
            if progress is not None:
                progress(number * len(examples) + count + 1, len(fetches) * len(examples))
        del session, segment  # ... and before the next session holds the weights, too
    return fetches


@contextmanager
def _told(model: Model) -> Iterator[None]:
    """Have what ONNX Runtime says against the model or its feeds told as an error of ours."""
    try:
        yield
    except FOREIGN_EXCEPTIONS as error:
        raise BackendError(
            f"ONNX Runtime cannot run the model to look at its tensors: {' '.join(str(error).split())}",
            where=None if model.path is None else str(model.path),
            fix="check the shapes and values of the inputs, and that `parallax run` runs the model",
        ) from error
