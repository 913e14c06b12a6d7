from __future__ import annotations

import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import RUNTIME_EXCEPTIONS, both
from parallax.engine._failures import segment_failure
from parallax.errors import ModelError, ParallaxError, SegmentError


def test_every_exception_class_of_the_runtime_is_known_to_the_translator() -> None:
    named = {
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoadCanceled",
        "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException",
    }  # fmt: skip
    found = {error.__name__ for error in RUNTIME_EXCEPTIONS}
    assert named <= found, f"onnxruntime {onnxruntime.__version__} lost {named - found}"


@pytest.mark.parametrize("theirs", RUNTIME_EXCEPTIONS, ids=lambda error: error.__name__)
def test_a_translated_error_can_be_caught_as_ours_and_as_the_runtimes(theirs: type[Exception]) -> None:
    failure = segment_failure(theirs("bad thing"), segment="segment_3", nodes=("conv", "relu"))
    assert isinstance(failure, ParallaxError)
    assert isinstance(failure, theirs)
    assert isinstance(failure, SegmentError)
    assert failure.nodes == ("conv", "relu")
    assert "bad thing" in str(failure)
    assert "segment_3" in str(failure)
    assert "conv, relu" in str(failure)


def test_the_combined_class_is_made_once() -> None:
    assert both(ModelError, C.NoSuchFile) is both(ModelError, C.NoSuchFile)
    assert issubclass(both(ModelError, C.NoSuchFile), C.NoSuchFile)
