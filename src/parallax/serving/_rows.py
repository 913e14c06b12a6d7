"""Requests joined along the batch axis, and outputs divided among them again. Every array is a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parallax.errors import BackendError

if TYPE_CHECKING:
    from parallax.model import BatchAxis


def join_rows(
    requests: Sequence[Mapping[str, NDArray[Any]]], axis: BatchAxis, *, size: int | None = None
) -> dict[str, NDArray[Any]]:
    """The feeds of several requests, of equal shapes, as those of one run.

    Args:
        size: requests that the run is to have; the last is repeated for those that there are not.
    """
    missing = 0 if size is None else size - len(requests)
    padded = [*requests, *[requests[-1]] * missing]
    return {name: np.concatenate([request[name] for request in padded], axis=axis.inputs[name]) for name in requests[0]}


def split_rows_of(
    outputs: Sequence[Any], axis: BatchAxis, *, requests: int, size: int | None = None
) -> list[list[Any]]:
    """The outputs of one run, in the model's order, as those of each request.

    An output without a batch axis is the same for all of them.

    Args:
        size: requests that the run had; those beyond ``requests`` were repetitions.

    Raises: BackendError if an output does not divide evenly, so that the model does not do what was found of it.
    """
    ran = requests if size is None else size
    answers: list[list[Any]] = [[] for _ in range(requests)]
    for output, place in zip(outputs, axis.outputs, strict=True):
        if place is None:
            for answer in answers:
                answer.append(np.copy(output))
            continue
        rows, left = divmod(np.shape(output)[place], ran)
        if left:
            raise BackendError(
                f"an output has {np.shape(output)[place]} rows, which {ran} requests cannot share",
                where=f"output {len(answers[0])}, axis {place}",
            )
        for number, answer in enumerate(answers):
            part = (*[slice(None)] * place, slice(number * rows, (number + 1) * rows))
            answer.append(np.array(output[part]))
    return answers
