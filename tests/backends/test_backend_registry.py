"""Names of backends: those of others, those that are not there, and what users of ONNX Runtime write."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from parallax.backends import Backend, DeviceKind, find_backends, open_backend
from parallax.backends._registry import ENTRY_POINTS, forget_backends
from parallax.backends.ort import OnnxRuntimeBackend
from parallax.backends.ort._plugins import WEBGPU, unload_plugin
from parallax.errors import BackendError, ConfigError, MissingExtraError
from tests.backends._backends import hide_package


@pytest.fixture(autouse=True)
def _no_plugin_stays() -> Iterator[None]:
    """Neither from a test before, nor for one after: a registered provider shows in every list of the process."""
    unload_plugin(WEBGPU)
    yield
    unload_plugin(WEBGPU)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution with three backends, one of them broken and one that would replace ours."""
    info = tmp_path / "acme_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\n"
        "acme = acme_backends:open_acme\nbroken = acme_backends:nothing\ncpu = acme_backends:open_acme\n"
    )
    (tmp_path / "acme_backends.py").write_text(
        "from parallax.backends.ort import OnnxRuntimeBackend\n"
        "calls = []\n"
        "def open_acme(device, options):\n"
        "    calls.append((device, dict(options)))\n"
        "    return OnnxRuntimeBackend('CPUExecutionProvider')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_backends()
    yield tmp_path
    forget_backends()
    sys.modules.pop("acme_backends", None)


def test_other_distributions_add_backends(distribution: Path) -> None:
    assert "acme_backends" not in sys.modules
    backend = open_backend("acme:left", {"speed": 3})
    assert backend.info.kind is DeviceKind.CPU
    assert sys.modules["acme_backends"].calls == [("left", {"speed": 3})]


def test_a_name_of_ours_keeps_its_meaning(distribution: Path) -> None:
    open_backend("cpu")
    assert "acme_backends" not in sys.modules


def test_a_broken_backend_is_named_with_its_distribution(distribution: Path) -> None:
    with pytest.raises(BackendError, match="the backend broken cannot be loaded") as caught:
        open_backend("broken")
    assert caught.value.where == "entry point broken = acme_backends:nothing of acme-backends"


def test_finding_loads_what_it_can_and_says_why_not(distribution: Path) -> None:
    found = {entry.name: entry for entry in find_backends()}
    assert found["broken"].info is None
    assert "cannot be loaded" in str(found["broken"].obstacle)
    assert found["CPUExecutionProvider"].info is not None
    assert all((entry.info is None) == (entry.obstacle is not None) for entry in found.values())
    # It calls remote services; no model runs there.
    assert "AzureExecutionProvider" not in found
    assert found["broken"].remedy == "fix or uninstall that distribution"
    # Each emulated device by its name, not the family.
    assert "emulated" not in found
    assert found["emulated:pixel-6-gpu"].info is not None


@pytest.mark.parametrize(("name", "extra"), [("openvino", "openvino"), ("webgpu", "webgpu")])
def test_a_missing_package_is_named_with_its_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package({"openvino": "openvino", "webgpu": "onnxruntime_ep_webgpu"}[name], monkeypatch)
    with pytest.raises(MissingExtraError, match="is not installed") as caught:
        open_backend(name)
    assert caught.value.fix == f"pip install 'parallax-runtime[{extra}]'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "there is no backend 'tpu'; choose among .*cpu.*openvino"),
        ("cpu:3", "no devices to choose from, such as '3'"),
        ("NoSuchExecutionProvider", "knows no provider 'NoSuchExecutionProvider'; register its library first"),
        ("OpenVINOExecutionProvider", 'use the backend "openvino"'),
    ],
)
def test_a_wrong_name_says_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_backend(name)


def test_a_provider_this_build_lacks_names_those_it_has() -> None:
    lacking = sorted(set(onnxruntime.get_all_providers()) - set(onnxruntime.get_available_providers()))
    lacking.remove("OpenVINOExecutionProvider")
    lacking.remove("WebGpuExecutionProvider")  # a plugin
    for name in lacking:
        with pytest.raises(ConfigError, match=f"no {name}; it has .*CPUExecutionProvider"):
            open_backend(name)


def test_a_backend_is_a_backend() -> None:
    """The protocol, as the type checker sees it and as attributes at run time."""
    backend: Backend = OnnxRuntimeBackend("CPUExecutionProvider")
    options: Mapping[str, Any] = {}
    assert backend.info.version == onnxruntime.__version__
    assert open_backend("cpu", options).info == backend.info
