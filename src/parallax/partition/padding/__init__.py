"""Padding: whether a model gives the same answers when padded places of its inputs are cut off, proven on its graph."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.partition.padding._groups import LEAST_WEIGHT_BYTES, divide_rows
    from parallax.partition.padding._prove import prove_trimming
    from parallax.partition.padding._trimming import NotTrimmable, PaddedOutput, Trimming
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_groups": "LEAST_WEIGHT_BYTES divide_rows",
            "_prove": "prove_trimming",
            "_trimming": "NotTrimmable PaddedOutput Trimming",
        },
    )

__all__ = [
    "LEAST_WEIGHT_BYTES",
    "NotTrimmable",
    "PaddedOutput",
    "Trimming",
    "divide_rows",
    "prove_trimming",
]
