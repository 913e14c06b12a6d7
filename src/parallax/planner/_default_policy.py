"""What the default policy tells of a model at sight: that it stays whole, and why.

Splitting pays for few models, and most of the others show that to one look at their operators and weights. They are
opened by what `parallax.model.read_summary` finds: no graph is built for them, and the planner is not even loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from parallax.model import ModelSummary

KNOWN_DOMAINS: Final = frozenset(
    {
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.nchwc",
    }
)
"""Operators of others are the caller's own, which only the whole session knows."""

PRECOMPILED: Final = "EPContext"
"""The operator that stands for a part that was compiled for an execution provider."""

# Kernels that scale nearly linearly with threads: where their work dominates, running branches side by side
# cannot beat giving each operator all cores by the margin that tables must promise.
SCALABLE: Final = frozenset(
    {"Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Einsum", "Attention"}
)
DENSE_ELEMENTS: Final = 100_000
"""Weights in such kernels from which on their work is taken to dominate."""

ONE_CORE: Final = "one core: nothing can run side by side"
DENSE: Final = "dense layers, which scale with threads, dominate: only measuring (tune=True) can promise a gain"

_FEW_WEIGHTS: Final = 2


def why_whole_at_sight(look: ModelSummary, *, cores: int) -> str | None:
    """Why the default policy leaves a model whole: what planning would say; None where that takes a closer look."""
    if cores < 2:
        return ONE_CORE
    survey = look.survey
    if survey.node_count < 2 or not look.domains <= KNOWN_DOMAINS:
        return None
    if PRECOMPILED in survey.operators or PRECOMPILED in survey.branches.operators:
        return None
    read = [look.weights_read[op_type] for op_type in SCALABLE & look.weights_read.keys()]
    # Planning would first ask whether the model is small (`small_at_sight`). With so many weights it is not: operators
    # that read at most two of them each take 18 ns for as many elements as the largest weight has, by the tables; so
    # all of them together take 0.9 ms.
    if sum(elements for elements, _ in read) > DENSE_ELEMENTS:
        # Branches may hold work of any kind beside the dense layers: planning estimates it.
        is_told = not survey.with_bodies and all(most <= _FEW_WEIGHTS for _, most in read)
        return DENSE if is_told else None
    from parallax.planner._small import small_at_sight  # loads the tables of costs

    return small_at_sight(survey, cores=cores)
