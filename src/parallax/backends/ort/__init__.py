"""ONNX Runtime's execution providers as backends, its processor among them."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends.ort._backend import CPU_PROVIDER, OnnxRuntimeBackend
    from parallax.backends.ort._foreign import TERMINATED, compile_error
    from parallax.backends.ort._kernel_lists import TYPE_NAMES
    from parallax.backends.ort._plugins import PLUGINS, WEBGPU, Plugin, load_plugin, plugin_devices
    from parallax.backends.ort._stock import StockSession
    from parallax.backends.ort._values import Bytes, bytes_at, empty_host_value, host_bytes, is_on_host
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": "CPU_PROVIDER OnnxRuntimeBackend",
            "_foreign": "TERMINATED compile_error",
            "_kernel_lists": "TYPE_NAMES",
            "_plugins": "PLUGINS WEBGPU Plugin load_plugin plugin_devices",
            "_stock": "StockSession",
            "_values": "Bytes bytes_at empty_host_value host_bytes is_on_host",
        },
    )

__all__ = [
    "CPU_PROVIDER",
    "PLUGINS",
    "TERMINATED",
    "TYPE_NAMES",
    "WEBGPU",
    "Bytes",
    "OnnxRuntimeBackend",
    "Plugin",
    "StockSession",
    "bytes_at",
    "compile_error",
    "empty_host_value",
    "host_bytes",
    "is_on_host",
    "load_plugin",
    "plugin_devices",
]
