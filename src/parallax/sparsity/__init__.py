"""Which zeros a model computes with, and what a backend makes of them: seen, measured, and never assumed to be worth
anything."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.sparsity._fetch import FETCHED_BYTES, Fetch, fetch_tensors, plan_fetches
    from parallax.sparsity._measure import measure_zero_worth
    from parallax.sparsity._operators import OperatorZeros, Quadrant, SparsityReport, ZeroShare
    from parallax.sparsity._study import study_zeros
    from parallax.sparsity._weights import WeightCount, count_weight, zero_share
    from parallax.sparsity._worth import (
        WORTHWHILE,
        ZeroForm,
        ZeroTiming,
        ZeroWorth,
        keep_worth,
        kept_worths,
        price_factor,
        priced_costs,
    )
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_fetch": "FETCHED_BYTES Fetch fetch_tensors plan_fetches",
            "_measure": "measure_zero_worth",
            "_operators": "OperatorZeros Quadrant SparsityReport ZeroShare",
            "_study": "study_zeros",
            "_weights": "WeightCount count_weight zero_share",
            "_worth": ("WORTHWHILE ZeroForm ZeroTiming ZeroWorth keep_worth kept_worths price_factor priced_costs"),
        },
    )

__all__ = [
    "FETCHED_BYTES",
    "WORTHWHILE",
    "Fetch",
    "OperatorZeros",
    "Quadrant",
    "SparsityReport",
    "WeightCount",
    "ZeroForm",
    "ZeroShare",
    "ZeroTiming",
    "ZeroWorth",
    "count_weight",
    "fetch_tensors",
    "keep_worth",
    "kept_worths",
    "measure_zero_worth",
    "plan_fetches",
    "price_factor",
    "priced_costs",
    "study_zeros",
    "zero_share",
]
