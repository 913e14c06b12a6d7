"""What does it cost? FLOPs, bytes and durations per operator, from tables or from measurements."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.profile._cache import Cache, make_private_folder
    from parallax.profile._costs import CostModel
    from parallax.profile._fingerprint import hardware_fingerprint, machine_fingerprint
    from parallax.profile._flops import TotalWork, Work, intensity, node_bytes, node_flops, node_work, total_work
    from parallax.profile._measure import measure_costs, random_feeds, surviving_tensors
    from parallax.profile._tables import NODE_OVERHEAD_NS, estimate_costs, most_work_ns, product_flops
    from parallax.profile._trust import why_any_distrusted, why_distrusted
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_cache": "Cache make_private_folder",
            "_costs": "CostModel",
            "_fingerprint": "hardware_fingerprint machine_fingerprint",
            "_flops": "TotalWork Work intensity node_bytes node_flops node_work total_work",
            "_measure": "measure_costs random_feeds surviving_tensors",
            "_tables": "NODE_OVERHEAD_NS estimate_costs most_work_ns product_flops",
            "_trust": "why_any_distrusted why_distrusted",
        },
    )

__all__ = [
    "NODE_OVERHEAD_NS",
    "Cache",
    "CostModel",
    "TotalWork",
    "Work",
    "estimate_costs",
    "hardware_fingerprint",
    "intensity",
    "machine_fingerprint",
    "make_private_folder",
    "measure_costs",
    "most_work_ns",
    "node_bytes",
    "node_flops",
    "node_work",
    "product_flops",
    "random_feeds",
    "surviving_tensors",
    "total_work",
    "why_any_distrusted",
    "why_distrusted",
]
