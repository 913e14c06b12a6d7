"""Devices on the command line that are not there: refused, with what to install."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from parallax.cli._providers import check_fallback, parse_provider
from parallax.errors import BackendError, ConfigError, MissingExtraError
from tests.cli._models import affine, invoke

COMMANDS = (("run",), ("bench", "--no-tune", "--max-time", "5"), ("tune",), ("inspect",))

lacks_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@lacks_cuda
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_provider_that_is_not_there_is_refused_with_what_to_install(command: tuple[str, ...], tmp_path: Path) -> None:
    name, *options = command
    result = invoke(name, affine(tmp_path / "m.onnx"), *options, "--provider", "CUDAExecutionProvider")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "this build of onnxruntime has no CUDAExecutionProvider" in result.stderr
    assert "pip install onnxruntime-gpu" in result.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("emulatd:pixel-6-gpu", "emulated:pixel-6-gpu"),
        ("CPUExecutonProvider", "CPUExecutionProvider"),
        ("CUDAExecutonProvider", "CUDAExecutionProvider"),
        ("openvno", "openvino"),
    ],
)
def test_a_misspelt_name_gets_the_one_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        parse_provider(given)


def test_a_name_of_nothing_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"choose among .*emulated:pixel-6-gpu"):
        parse_provider("toaster")


@pytest.mark.parametrize("name", ["QNNExecutionProvider", "DmlExecutionProvider", "MIGraphXExecutionProvider"])
def test_other_builds_of_the_runtime_are_named(name: str) -> None:
    if name in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(ConfigError, match="pip install onnxruntime-"):
        parse_provider(name)


def test_a_device_has_options() -> None:
    assert parse_provider("emulated:pixel-6-gpu, speed = 2") == ("emulated:pixel-6-gpu", {"speed": "2"})


@pytest.mark.parametrize("family", ["openvino", "webgpu"])
def test_a_device_whose_package_is_missing_gets_the_command_that_installs_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from parallax.backends.openvino import PACKAGE
    from parallax.backends.ort import WEBGPU

    monkeypatch.setitem(sys.modules, PACKAGE if family == "openvino" else WEBGPU.module, None)
    with pytest.raises(MissingExtraError, match=f"pip install 'parallax-runtime\\[{family}\\]'"):
        parse_provider(family)


def session(*providers: str, is_whole: bool = True) -> SimpleNamespace:
    plan = SimpleNamespace(is_whole=is_whole, segments=(), provenance=SimpleNamespace(candidates=()))
    return SimpleNamespace(get_providers=lambda: list(providers), plan=plan)


def test_a_provider_whose_library_could_not_be_loaded_is_no_quiet_fallback() -> None:
    with pytest.raises(BackendError, match="CUDAExecutionProvider is part of this ONNX Runtime, but could not be used"):
        check_fallback(["CUDAExecutionProvider,device_id=0"], session("CPUExecutionProvider"))
    check_fallback(["CUDAExecutionProvider"], session("CUDAExecutionProvider", "CPUExecutionProvider"))
    check_fallback(["emulated:pixel-6-gpu", "CPUExecutionProvider"], session("CPUExecutionProvider"))
    check_fallback([], session("CPUExecutionProvider"))
