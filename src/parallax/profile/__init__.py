"""What does it cost? Durations per operator, from tables or from measurements."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.profile._cache import CACHE_VARIABLE, Cache, default_cache_folder, make_private_folder
    from parallax.profile._fingerprint import hardware_fingerprint, machine_fingerprint
    from parallax.profile._measure import fusion_safe_tensors, measure_costs, random_feeds
    from parallax.profile._tables import NODE_OVERHEAD_NS, estimate_costs, most_work_ns, product_flops
    from parallax.profile._trust import why_any_distrusted, why_distrusted
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_cache": "CACHE_VARIABLE Cache default_cache_folder make_private_folder",
            "_fingerprint": "hardware_fingerprint machine_fingerprint",
            "_measure": "measure_costs random_feeds fusion_safe_tensors",
            "_tables": "NODE_OVERHEAD_NS estimate_costs most_work_ns product_flops",
            "_trust": "why_any_distrusted why_distrusted",
        },
    )

__all__ = [
    "CACHE_VARIABLE",
    "NODE_OVERHEAD_NS",
    "Cache",
    "default_cache_folder",
    "estimate_costs",
    "fusion_safe_tensors",
    "hardware_fingerprint",
    "machine_fingerprint",
    "make_private_folder",
    "measure_costs",
    "most_work_ns",
    "product_flops",
    "random_feeds",
    "why_any_distrusted",
    "why_distrusted",
]
