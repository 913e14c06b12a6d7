"""Which machine and runtime a measured figure belongs to."""

from __future__ import annotations

import functools
import platform

import onnxruntime

from parallax._hashing import sha256_hex
from parallax.machine import available_cores


def machine_fingerprint() -> str:
    """A readable line that changes whenever measured durations stop being comparable.

    It names the CPU model, a digest of its instruction-set features, the operating system and
    architecture, the cores this process may use now (affinity and quota), and the version of ONNX
    Runtime. It names neither host nor user, so cached figures can be shared between equal machines.
    """
    return f"{hardware_fingerprint()}|{available_cores()} cores|onnxruntime {onnxruntime.__version__}"


def hardware_fingerprint() -> str:
    """The part of it that no setting changes: CPU model, features, operating system and architecture."""
    return "|".join(_hardware())


@functools.cache
def _hardware() -> tuple[str, str, str]:
    cpu, features = _cpu()
    digest = sha256_hex(features.encode())[:8] if features else "-"
    return cpu, digest, f"{platform.system()} {platform.machine()}"


def _cpu() -> tuple[str, str]:
    """Model name and feature flags; either may be a fallback where the system does not tell."""
    if platform.system() == "Linux":
        model, features = _parse_cpuinfo(_cpuinfo(), "")
        # Not asked for before it is needed: on Linux, Python finds it by starting a process.
        return model or _processor(), features
    if platform.system() == "Darwin":
        # An Apple core's name ("Apple M2") implies its features.
        return _sysctl("machdep.cpu.brand_string") or _processor(), ""
    # Windows: "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel" names the features as well.
    return _processor(), ""


def _processor() -> str:
    return platform.processor() or platform.machine() or "unknown CPU"


def _cpuinfo() -> str:
    """What the system says of the first processor: to tell of all takes it milliseconds where there are many."""
    text = b""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            while b"\n\n" not in text and (piece := file.read(4096)):
                text += piece
    except OSError:
        return ""
    return text.decode("utf-8", errors="replace")


def _parse_cpuinfo(text: str, fallback: str) -> tuple[str, str]:
    """Model and features of the first processor listed; Arm kernels name parts by number only."""
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip().lower(), value.strip())
    part = " ".join(fields[name] for name in ("cpu implementer", "cpu part", "cpu variant") if name in fields)
    model = fields.get("model name") or fields.get("hardware") or part or fallback
    return model, fields.get("flags") or fields.get("features") or ""


def _sysctl(name: str) -> str:
    import subprocess  # only where the system is macOS

    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
