"""ONNX Runtime's execution providers as backends, its processor among them."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends.ort._backend import OnnxRuntimeBackend, OnnxRuntimeModel, cpu_backend
    from parallax.backends.ort._failures import (
        FOREIGN_EXCEPTIONS,
        OPENING_EXCEPTIONS,
        RUNTIME_EXCEPTIONS,
        TERMINATED,
        both,
        compile_error,
        is_termination,
        load_failure,
        open_failure,
        run_failure,
    )
    from parallax.backends.ort._kernel_lists import TYPE_NAMES
    from parallax.backends.ort._mapped_weights import MappedWeights
    from parallax.backends.ort._plugins import PLUGINS, WEBGPU, Plugin, load_plugin, plugin_devices
    from parallax.backends.ort._probing import IDENTITY, open_quietly
    from parallax.backends.ort._sessions import (
        CPU_DEVICE,
        CPU_PROVIDER,
        RuntimeOptions,
        load_session,
        make_mapped_session,
        make_session,
        make_value,
        open_source,
        save_optimised,
    )
    from parallax.backends.ort._shared_allocator import AllocatorUser, shrink_shared_allocator, use_shared_allocator
    from parallax.backends.ort._shared_pool import share_thread_pool, shared_threads, use_shared_pool
    from parallax.backends.ort._shrink import shrink_arena
    from parallax.backends.ort._stock import PinnedSession, StockSession, read_entry
    from parallax.backends.ort._values import Bytes, bytes_at, empty_host_value, host_bytes, is_on_host
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": "OnnxRuntimeBackend OnnxRuntimeModel cpu_backend",
            "_failures": (
                "FOREIGN_EXCEPTIONS OPENING_EXCEPTIONS RUNTIME_EXCEPTIONS TERMINATED both compile_error "
                "is_termination load_failure open_failure run_failure"
            ),
            "_kernel_lists": "TYPE_NAMES",
            "_mapped_weights": "MappedWeights",
            "_plugins": "PLUGINS WEBGPU Plugin load_plugin plugin_devices",
            "_probing": "IDENTITY open_quietly",
            "_sessions": (
                "CPU_DEVICE CPU_PROVIDER RuntimeOptions load_session make_mapped_session make_session make_value "
                "open_source save_optimised"
            ),
            "_shared_allocator": "AllocatorUser shrink_shared_allocator use_shared_allocator",
            "_shared_pool": "share_thread_pool shared_threads use_shared_pool",
            "_shrink": "shrink_arena",
            "_stock": "PinnedSession StockSession read_entry",
            "_values": "Bytes bytes_at empty_host_value host_bytes is_on_host",
        },
    )

__all__ = [
    "CPU_DEVICE",
    "CPU_PROVIDER",
    "FOREIGN_EXCEPTIONS",
    "IDENTITY",
    "OPENING_EXCEPTIONS",
    "PLUGINS",
    "RUNTIME_EXCEPTIONS",
    "TERMINATED",
    "TYPE_NAMES",
    "WEBGPU",
    "AllocatorUser",
    "Bytes",
    "MappedWeights",
    "OnnxRuntimeBackend",
    "OnnxRuntimeModel",
    "PinnedSession",
    "Plugin",
    "RuntimeOptions",
    "StockSession",
    "both",
    "bytes_at",
    "compile_error",
    "cpu_backend",
    "empty_host_value",
    "host_bytes",
    "is_on_host",
    "is_termination",
    "load_failure",
    "load_plugin",
    "load_session",
    "make_mapped_session",
    "make_session",
    "make_value",
    "open_failure",
    "open_quietly",
    "open_source",
    "plugin_devices",
    "read_entry",
    "run_failure",
    "save_optimised",
    "share_thread_pool",
    "shared_threads",
    "shrink_arena",
    "shrink_shared_allocator",
    "use_shared_allocator",
    "use_shared_pool",
]
