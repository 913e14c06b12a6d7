"""A process from its start to its first answer: imports what its variant needs, opens, runs once, says so, and ends.

Started by `_processes.py` as ``python _whole.py VARIANT [MODEL FEEDS]``. It imports no more than a user's script would,
which is why it shares nothing with the other benchmarks.
"""

import os
import sys

RUNTIME = "ONNX Runtime, model"
MAPPED = "ONNX Runtime, packed weights mapped by hand"
BUNDLE = "Parallax, bundle"
MODEL = "Parallax, model"
VARIANTS = (RUNTIME, MAPPED, BUNDLE, MODEL)

NOTHING = "nothing"
NUMPY = "import numpy"
IMPORT_RUNTIME = "import onnxruntime"
IMPORT_OURS = "import parallax"
IMPORT_SESSION = "from parallax import InferenceSession"
IMPORTS = (NOTHING, NUMPY, IMPORT_RUNTIME, IMPORT_OURS, IMPORT_SESSION)


def main(variant: str, *arguments: str) -> None:
    """Print "answered" as soon as there is an answer, then the most memory that was held until then, if it is known."""
    if variant in IMPORTS:
        load(variant)
    else:
        answer(variant, *arguments)
    sys.stdout.write("answered\n")
    sys.stdout.flush()
    sys.stdout.write(f"peak {peak_bytes()}\n")
    sys.stdout.flush()
    # Tearing down is not measured, and takes seconds for some.
    os._exit(0)


def load(variant: str) -> None:
    if variant == NUMPY:
        import numpy  # noqa: F401
    elif variant == IMPORT_RUNTIME:
        import onnxruntime  # noqa: F401
    elif variant == IMPORT_OURS:
        import parallax  # noqa: F401
    elif variant == IMPORT_SESSION:
        from parallax import InferenceSession  # noqa: F401


def answer(variant: str, path: str, feeds_path: str) -> None:
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


def peak_bytes() -> int:
    """The most memory that was resident at once, mapped files included; 0 where there is no /proc."""
    # Not getrusage: what it tells of a process begins with what the one that started it had.
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
