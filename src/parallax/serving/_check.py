"""The check that requests may be run together: unlike ones, alone and together, in both orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

RELATIVE: Final = 1e-4
ABSOLUTE: Final = 1e-5
"""Answers may differ by so much of the largest magnitude in an output, or by so little: other shapes, other kernels."""


def why_rows_differ(
    first: Arrays,
    second: Arrays,
    *,
    alone: Callable[[Arrays], Sequence[Any]],
    together: Callable[[Sequence[Arrays]], Sequence[Sequence[Any]]],
) -> str | None:
    """Why two requests do not get the answers together that they get alone; None where they do.

    Args:
        first, second: unlike feeds of equal shapes.
        alone, together: run the model.

    Raises: what the model's run raises.
    """
    wanted = [alone(first), alone(second)]
    if all(_is_same(one, other) for one, other in zip(*wanted, strict=True)):
        # Then neither order nor company would show.
        return "the two requests that it was to be checked with have the same answers"
    for order in ((0, 1), (1, 0)):
        found = together([(first, second)[place] for place in order])
        for place, answer in zip(order, found, strict=True):
            for output, (got, want) in enumerate(zip(answer, wanted[place], strict=True)):
                reason = _why_unlike(np.asarray(got), np.asarray(want))
                if reason is not None:
                    return f"run together, requests are not answered as they are alone: output {output} {reason}"
    return None


def _is_same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def _why_unlike(got: NDArray[Any], want: NDArray[Any]) -> str | None:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
    if want.dtype.kind not in "fc":
        return None if np.array_equal(got, want) else "differs"
    if not np.array_equal(np.isfinite(got), np.isfinite(want)):
        return "differs where it is not finite"
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return "differs where it is not finite"
    if not finite.any():
        return None
    scale = float(np.abs(want[finite]).max())
    worst = float(np.abs(got[finite].astype(np.float64) - want[finite]).max())
    allowed = max(RELATIVE * scale, ABSOLUTE)
    return None if worst <= allowed else f"differs by {worst:.3g}, where {allowed:.3g} are allowed"
