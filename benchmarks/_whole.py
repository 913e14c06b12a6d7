"""A process from its start to its first answer: imports what its variant needs, opens, runs once, says so, and ends.

Started by `cold_start.py` as ``python _whole.py VARIANT MODEL FEEDS``. It imports no more than a user's script would,
which is why it shares nothing with the other benchmarks.
"""

import os
import sys

RUNTIME = "ONNX Runtime, model"
MAPPED = "ONNX Runtime, packed weights mapped by hand"
BUNDLE = "Parallax, bundle"
MODEL = "Parallax, model"
VARIANTS = (RUNTIME, MAPPED, BUNDLE, MODEL)


def main(variant: str, path: str, feeds_path: str) -> None:
    """Print "answered" as soon as there is an answer."""
    import numpy as np

    if variant in (RUNTIME, MAPPED):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if variant == MAPPED:
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        import parallax

        session = parallax.InferenceSession(path)
    with np.load(feeds_path) as stored:
        feeds = {name: stored[name] for name in stored.files}
    session.run(None, feeds)
    sys.stdout.write("answered\n")
    sys.stdout.flush()
    # Tearing down is not measured, and takes seconds for some.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
