"""What delegates of today move: all that their fragments read and make, through the host's memory.

A TensorFlow Lite delegate runs a fragment as one kernel of the interpreter, whose inputs and outputs are the
interpreter's tensors: the GPU delegate declares each of them ``ObjectType::CPU_MEMORY``, ``user_provided``, and waits
for the fragment's end (``tensorflow/lite/delegates/gpu/delegate.cc``, ``DelegateKernel::GetObjectDef``, ``Invoke``).
ONNX Runtime's providers that compile do alike: NNAPI's hands ``KernelContext_GetInput`` and ``_GetOutput``, in the
processor's memory, to each execution (``core/providers/nnapi/nnapi_builtin/nnapi_execution_provider.cc``). So a tensor
between two fragments goes down and up again, as often as fragments read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallax.graph import OpGraph
from parallax.partition.regions._plan import RegionPlan


def hosted_tensors(graph: OpGraph, plan: RegionPlan) -> Sequence[tuple[str, ...]]:
    """Per region the tensors that move for it where nothing stays on the device: what it reads, then what it makes.

    Those of `Region.uploads` and `Region.downloads` are among them; `Region.kept` is what is moved beside those.
    """
    found = []
    for region in plan.regions:
        made = {name for node in region.nodes for name in graph.nodes[node].outputs}
        reads = [*region.uploads, *(name for name in region.kept if name not in made)]
        makes = [*region.downloads, *(name for name in region.kept if name in made)]
        found.append((*dict.fromkeys(reads), *dict.fromkeys(makes)))
    return found
