"""A program as others write it for ONNX Runtime. It knows nothing of Parallax; see `test_programs`.

Run as a script with a model, a folder to write to, and the number of rounds. Prints one JSON document.
"""

import argparse
import json
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort


def make_options(folder: Path) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    ort.set_default_logger_severity(3)
    report: dict[str, object] = {"argv": len(sys.argv), "name": __name__, "path0": sys.path[0], "file": __file__}
    report["providers"] = ort.get_available_providers()
    report["device"] = ort.get_device()

    session = ort.InferenceSession(str(given.model), make_options(given.folder), providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    report["inputs"] = [source.name, source.type, source.shape]
    report["outputs"] = [target.name, target.type, target.shape]
    report["producer"] = session.get_modelmeta().producer_name
    report["is_session"] = isinstance(session, ort.InferenceSession)
    report["class"] = type(session).__module__

    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    answers = {"run": [session.run([target.name], {source.name: x})[0].tolist() for _ in range(given.rounds)]}

    run_options = ort.RunOptions()
    run_options.log_severity_level = 3
    answers["run options"] = session.run(None, {source.name: x}, run_options)[0].tolist()

    value = ort.OrtValue.ortvalue_from_numpy(x)
    answers["OrtValues"] = session.run_with_ort_values([target.name], {source.name: value})[0].numpy().tolist()

    binding = session.io_binding()
    binding.bind_ortvalue_input(source.name, value)
    binding.bind_output(target.name, "cpu")
    session.run_with_iobinding(binding)
    answers["binding"] = binding.copy_outputs_to_cpu()[0].tolist()

    fixed = ort.OrtValue.ortvalue_from_shape_and_type([2, 8], np.float32, "cpu", 0)
    binding = session.io_binding()
    binding.bind_cpu_input(source.name, x)
    binding.bind_ortvalue_output(target.name, fixed)
    session.run_with_iobinding(binding)
    answers["bound value"] = fixed.numpy().tolist()

    done, got = threading.Event(), []

    def callback(results: object, user_data: object, error: str) -> None:
        got.append((results, user_data, error))
        done.set()

    session.run_async([target.name], {source.name: x}, callback, "mine")
    done.wait(60)
    ((results, user_data, error),) = got
    report["callback"] = [user_data, error]
    answers["async"] = results[0].tolist()

    try:
        session.run(None, {source.name: x.astype(np.int64)})
    except ort.capi.onnxruntime_pybind11_state.InvalidArgument as wrong:
        report["wrong type"] = "Unexpected input data type" in str(wrong)

    profile = Path(session.end_profiling())
    report["profile"] = profile.is_file() and isinstance(json.loads(profile.read_text()), list)
    report["answers"] = answers
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
