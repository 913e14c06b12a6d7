"""Whether what is installed can run a model of this IR version and these opsets.

onnxruntime states nowhere which versions it knows (its newest opset is below that of the onnx package
released beside it), so it is asked: a one-node model of the same versions either loads or does not.
Versions that every supported onnxruntime knows skip the question.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from parallax.errors import ModelFileError, UnsupportedModelError
from parallax.model._types import text

if TYPE_CHECKING:
    import onnx

_KNOWN_IR = 11
_KNOWN_OPSETS = {
    "": 23,
    "ai.onnx.ml": 5,
    "ai.onnx.training": 1,
    "ai.onnx.preview.training": 1,
    "com.microsoft": 1,
}
"""Loaded by every onnxruntime from 1.24 on. Domains not listed belong to custom operators and are left alone."""


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Domain -> version, "ai.onnx" written as ""; the highest where a domain is imported twice."""
    out: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else text(entry.domain)
        out[domain] = max(out.get(domain, entry.version), entry.version)
    return out


def are_known(ir_version: int, imports: Mapping[str, int]) -> bool:
    """Whether a model of these versions can be run, as far as that can be told without asking onnxruntime."""
    return (
        0 < ir_version <= _KNOWN_IR
        and bool(imports)
        and all(version >= 1 for version in imports.values())
        and all(imports[domain] <= known for domain, known in _KNOWN_OPSETS.items() if domain in imports)
    )


def check_versions(model: onnx.ModelProto) -> None:
    """Refuse what cannot run.

    Raises:
        ModelFileError: no IR version or no opset: not a model, or a truncated one.
        UnsupportedModelError: newer than what is installed.
    """
    broken = "this is not a complete ONNX model: fetch or export it again"
    if not model.HasField("ir_version") or model.ir_version <= 0:
        raise ModelFileError("the model has no IR version", fix=broken)
    imports = opsets(model)
    if not imports:
        raise ModelFileError("the model imports no operator set", fix=broken)
    for domain, version in imports.items():
        if version < 1:
            raise ModelFileError(f"opset {version} of domain {domain or 'ai.onnx'!r} does not exist", fix=broken)
    ir_version = model.ir_version
    if ir_version > _KNOWN_IR and not _loads(ir_version, "", _KNOWN_OPSETS[""]):
        best = _newest(lambda ir: _loads(ir, "", _KNOWN_OPSETS[""]), ir_version, _KNOWN_IR)
        raise _too_new(f"IR version {ir_version}", best)
    for domain, version in imports.items():
        known = _KNOWN_OPSETS.get(domain)
        if known is not None and version > known and not _loads(_KNOWN_IR, domain, version):
            best = _newest(functools.partial(_loads, _KNOWN_IR, domain), version, known)
            raise _too_new(f"{domain or 'ai.onnx'} opset {version}", best)


def _too_new(what: str, newest: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model needs {what}, the installed onnxruntime knows up to {newest}",
        fix="update onnxruntime, or convert the model (onnx.version_converter) or export it for an older version",
    )


def _newest(loads: Callable[[int], bool], version: int, floor: int) -> int:
    # The gap is a handful of releases unless the number is nonsense, so look from the floor up.
    best = floor
    while best + 1 < version and loads(best + 1):
        best += 1
    return best


@functools.lru_cache(maxsize=64)
def _loads(ir_version: int, domain: str, version: int) -> bool:
    """Whether onnxruntime loads an Identity model of these versions."""
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as C

    imports: Mapping[str, int] = {"": _KNOWN_OPSETS[""], domain: version}
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = onnx.helper.make_model(
        graph, ir_version=ir_version, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()]
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = C.InferenceSession(options, model.SerializeToString(), False, False)
        session.initialize_session(["CPUExecutionProvider"], [{}], set())
    except Exception:  # onnxruntime's exception classes share no root of their own
        return False
    return True
