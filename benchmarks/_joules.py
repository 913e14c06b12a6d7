"""What a simulated run keeps busy on a machine with one device, where a core of the CPU copies what crosses to it."""

from __future__ import annotations

from parallax.energy import Usage
from parallax.schedule._simulate import SimulatedRun


def usage_of_run(run: SimulatedRun, device: str, *, transfer_ns: int, touched_bytes: int) -> Usage:
    """A simulated run: what has width 0 is the device's.

    Args:
        device: the backend's name.
        transfer_ns: of the device's time, that in which a core of the CPU copies instead.
        touched_bytes: what its operators read and write.
    """
    core_ns = sum(span.width * (span.end_ns - span.start_ns) for span in run.timeline)
    on_device = sum(span.end_ns - span.start_ns for span in run.timeline if span.width == 0)
    return Usage(
        makespan_ns=run.makespan_ns,
        core_ns=core_ns + transfer_ns,
        device_ns={device: max(0, on_device - transfer_ns)},
        touched_bytes=touched_bytes,
    )
