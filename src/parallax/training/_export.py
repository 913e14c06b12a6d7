"""Trained networks as ONNX files that `policy="learned"` runs, checked against what was trained."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir
import torch
from torch import nn

from parallax.backends.ort import RuntimeOptions, open_source
from parallax.errors import InternalError
from parallax.planner import KIND_KEY, PROPOSER, SCHEDULER, VERSION_KEY
from parallax.schedule.placement import (
    BRANCH_COLUMNS,
    FEATURES_VERSION,
    MACHINE_COLUMNS,
    MAX_BRANCHES,
    OBSERVATION_SIZE,
)
from parallax.training._network import ProposerNetwork
from parallax.training._scheduling import mean_action

TOLERANCE: Final = 1e-5
"""By how much the file's outputs may differ from the network's, absolutely and relatively."""

_OPSET: Final = 20
_LENGTHS: Final = (1, 2, 17, MAX_BRANCHES)
"""Numbers of branches that the file is checked with."""


def proposer_file(network: ProposerNetwork) -> bytes:
    """The ONNX file of a proposer. The same weights give the same bytes. Takes seconds.

    Raises: InternalError if ONNX Runtime computes something else from it than torch.
    """
    network = network.eval()
    stated = copy.deepcopy(network)
    stated.in_order = _StatedLstm(network.in_order)
    batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows")
    content = _exported(
        stated,
        _inputs(2, 7),
        inputs=("branches", "present", "machine"),
        outputs=("inclinations", "thresholds"),
        # From a batch of one, lengths would be taken for constants.
        dynamic={"branches": {0: batch, 1: rows}, "present": {0: batch, 1: rows}, "machine": {0: batch}},
        kind=PROPOSER,
    )
    _check(content, network, [_inputs(1, length) for length in _LENGTHS])
    return content


def scheduler_file(actor: nn.Module) -> bytes:
    """The ONNX file of a scheduler: an actor's mean action (`actor_of`). Likewise.

    Raises: InternalError if ONNX Runtime computes something else from it than torch.
    """
    network = _Decider(actor).eval()
    content = _exported(
        network,
        (_random(2, OBSERVATION_SIZE),),
        inputs=("observation",),
        outputs=("action",),
        dynamic={"observation": {0: torch.export.Dim("batch")}},
        kind=SCHEDULER,
    )
    _check(content, network, [(_random(1, OBSERVATION_SIZE),), (_random(3, OBSERVATION_SIZE),)])
    return content


class _StatedLstm(nn.Module):  # type: ignore[misc]  # not installed where types are checked
    """An LSTM that is exported as ONNX's operator, as it stands.

    torch's own export of one notes the example's length for the sequence's, and freezes it altogether when a process
    exports for the second time.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size

        def stated(*parts: torch.Tensor) -> torch.Tensor:
            """Gates in ONNX's order (i, o, f, c), where torch has (i, f, c, o); one direction."""
            gates = [part.detach().unflatten(0, (4, self.width))[[0, 3, 1, 2]].flatten(0, 1) for part in parts]
            return torch.cat(gates)[None].clone()

        self.register_buffer("w", stated(lstm.weight_ih_l0))
        self.register_buffer("r", stated(lstm.weight_hh_l0))
        self.register_buffer("b", stated(lstm.bias_ih_l0, lstm.bias_hh_l0))

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Rows (batch, rows, width), in and out."""
        batch, length, width = rows.shape
        ordered = torch.onnx.ops.symbolic(
            "LSTM",
            (rows.transpose(0, 1), self.w, self.r, self.b),
            attrs={"hidden_size": self.width},
            dtype=rows.dtype,
            shape=(length, 1, batch, width),
        )
        return ordered.squeeze(1).transpose(0, 1), None


class _Decider(nn.Module):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.latent_pi, self.mu = actor.latent_pi, actor.mu

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.tanh(mean_action(self, observation))


def _exported(
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Any],
    kind: str,
) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dict(dynamic),
            opset_version=_OPSET,
            verbose=False,
        )
    model = program.model
    # Where in which file a node comes from differs from machine to machine, and is nobody's business.
    model.doc_string = model.graph.doc_string = None
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "parallax", None
    model.metadata_props.clear()
    model.metadata_props.update({KIND_KEY: kind, VERSION_KEY: str(FEATURES_VERSION)})
    content: bytes = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    return content


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself: what it is about to drop, and packages that it could use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check(content: bytes, network: nn.Module, cases: Sequence[tuple[torch.Tensor, ...]]) -> None:
    session: Any = open_source(content, RuntimeOptions(), runnable=True)
    names, results = ([entry.name for entry in meta] for meta in (session.inputs_meta, session.outputs_meta))
    for case in cases:
        with torch.no_grad():
            told = network(*case)
        wanted = [output.numpy() for output in (told if isinstance(told, tuple) else (told,))]
        found = session.run(results, {name: value.numpy() for name, value in zip(names, case, strict=True)}, None)
        for ours, theirs in zip(found, wanted, strict=True):
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
                raise InternalError(
                    f"the exported network computes something else than the trained one, for shapes "
                    f"{[tuple(value.shape) for value in case]}"
                )


def _inputs(batch: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _random(batch, rows, len(BRANCH_COLUMNS)), torch.ones(batch, rows), _random(batch, len(MACHINE_COLUMNS))


def _random(*shape: int) -> torch.Tensor:
    drawn = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(drawn)
