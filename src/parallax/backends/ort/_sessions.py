"""The only place that creates ONNX Runtime sessions for segments that run on the CPU.

The sessions are the C extension's own objects (what ``onnxruntime.InferenceSession`` keeps in
``_sess``): a segment needs none of the Python wrapper, whose input checks cost more than a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax._record import dataclass
from parallax.backends.ort._mapped_weights import MappedWeights
from parallax.backends.ort._shared_allocator import use_shared_allocator
from parallax.backends.ort._shared_pool import shared_threads, use_shared_pool
from parallax.machine import cores_of_pool

if TYPE_CHECKING:
    from parallax.backends._protocol import SessionSettings
    from parallax.model import SegmentModel

CPU_PROVIDER: Final = "CPUExecutionProvider"

CPU_DEVICE: Any = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)

_AFFINITY_KEY = "session.intra_op_thread_affinities"

_DISABLED_KEY: Final = "optimization.disable_specified_optimizers"

_SLOWER_FUSIONS: Final = frozenset({"SkipLayerNormFusion"})
"""Names of ONNX Runtime's optimizers that are disabled for parts of a model. SkipLayerNormFusion replaces Add and
LayerNormalization by SkipLayerNormalization where shapes are known. Measured with ONNX Runtime 1.31.1 on an AMD EPYC,
on 128 x 768 floats: the two take 0.047 ms, and what replaces them 0.39 ms. With 1.24.1 either takes 0.07 ms."""

_EXTERNAL_BYTES = 32 << 10
"""Weights from this size on are mapped. To map one costs the runtime some twenty system calls; below, reading it with
the graph is quicker, and of the zoo's models no 0.5 MiB is left unshared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """The caller's session options that a segment inherits.

    ``config`` are session config entries; names are those of ONNX Runtime's
    ``onnxruntime_session_options_config_keys.h``.
    """

    graph_optimization_level: Any = None
    """None keeps the runtime's default (all)."""
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True
    enable_mem_reuse: bool = True
    deterministic: bool = False
    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    config: tuple[tuple[str, str], ...] = ()

    def to_session_options(self) -> Any:
        """A new ``onnxruntime.SessionOptions`` that holds these."""
        made = onnxruntime.SessionOptions()
        if self.graph_optimization_level is not None:
            made.graph_optimization_level = self.graph_optimization_level
        made.enable_cpu_mem_arena = self.enable_cpu_mem_arena
        made.enable_mem_pattern = self.enable_mem_pattern
        made.enable_mem_reuse = self.enable_mem_reuse
        made.use_deterministic_compute = self.deterministic
        made.log_severity_level = self.log_severity_level
        made.log_verbosity_level = self.log_verbosity_level
        made.logid = self.logid
        for key, value in self.config:
            made.add_session_config_entry(key, value)
        return made


def make_session(
    segment: SegmentModel, *, width: int, options: SessionSettings, provider_options: Mapping[str, str] | None = None
) -> Any:
    """A C session of one segment on the CPU, to be run with ``width`` threads. Every segment that runs there, planned
    for it or fallen back to it, is opened here or, from a bundle, by `make_mapped_session`.

    The weights are shared with the session, not copied: ``segment.weights`` must outlive it. At width 1 the session has
    no thread pool at all; at larger widths its pool stops spinning as soon as a run ends, since a spinning pool takes
    the core of the lane that works next, and where it takes all cores, each of its threads has one
    (`parallax.machine.cores_of_pool`). It allocates from the allocator that all segments share. The fusions in
    ``_SLOWER_FUSIONS`` are disabled.

    Args:
        options: what the caller wants of it.
        provider_options: of the CPU provider.

    Raises: whatever ONNX Runtime raises for a model it cannot load.
    """
    session_options = _segment_options(options, width)
    lend_weights(session_options, segment)
    session = C.InferenceSession(session_options, segment.proto, False, False)
    session.initialize_session([CPU_PROVIDER], [dict(provider_options or {})], _disabled(options))
    return session


def _segment_options(options: SessionSettings, width: int) -> Any:
    made = options.to_session_options()
    config = dict(options.config)
    set_threads(made, width)
    cores = cores_of_pool(width)
    if cores and _AFFINITY_KEY not in config:
        # Cores are counted from 1 there.
        made.add_session_config_entry(_AFFINITY_KEY, ";".join(str(core + 1) for core in cores))
    use_shared_allocator(made, config)
    return made


def set_threads(session_options: Any, width: int) -> None:
    """Give a session ``width`` threads of its own, which park when a run ends."""
    session_options.intra_op_num_threads = width
    session_options.inter_op_num_threads = 1
    session_options.add_session_config_entry("session.force_spinning_stop", "1")


def lend_weights(session_options: Any, segment: SegmentModel) -> None:
    """Have a session read a segment's weights where they are."""
    if segment.weights:
        values = [make_value(array, segment.weight_types[name]) for name, array in segment.weights.items()]
        session_options.add_external_initializers(list(segment.weights), values)


def load_session(proto: bytes) -> Any:
    """A C session that knows a model's inputs and outputs, but cannot run it: neither weights nor kernels are made.

    Raises: whatever ONNX Runtime raises for a model it cannot read.
    """
    return C.InferenceSession(onnxruntime.SessionOptions(), proto, False, False)


def open_source(source: str | bytes, options: RuntimeOptions, *, runnable: bool) -> Any:
    """A C session of a model as it came, by path or content; as `load_session` unless ``runnable``.

    Raises: whatever ONNX Runtime raises for a model it cannot load.
    """
    session_options = options.to_session_options()
    session_options.intra_op_num_threads = 1
    session = C.InferenceSession(session_options, source, isinstance(source, str), False)
    if runnable:
        session.initialize_session([CPU_PROVIDER], [{}], set())
    return session


def make_mapped_session(path: str, *, width: int, options: RuntimeOptions, weights: MappedWeights | None = None) -> Any:
    """Open one segment's graph as `save_optimised` wrote it, its weights mapped; threads as in `make_session`.

    Args:
        weights: lent to the session, which need not map these itself.

    Raises: whatever ONNX Runtime raises for a model it cannot load.
    """
    session_options = _segment_options(options, width)
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights is not None:
        weights.lend(session_options)
    session = C.InferenceSession(session_options, path, True, False)
    session.initialize_session([CPU_PROVIDER], [{}], set())
    if weights is not None:
        weights.keep_for(session)
    return session


def save_optimised(source: str, target: str, *, data_name: str, options: RuntimeOptions, is_part: bool) -> Any:
    """Have the runtime optimise the model at ``source`` for this CPU and write the result to ``target``.

    Weights go to the file ``data_name`` beside it: as they are, and as the kernels of this CPU pack them. Loaded
    with optimisation off, they are mapped, not copied. Needs memory for the packed weights once, if those of
    ``source`` are external data (which the runtime maps).

    Args:
        is_part: whether the model at ``source`` is a part of another one. The fusions in ``_SLOWER_FUSIONS`` are then
            disabled, as in `make_session`.

    Returns: the C session that did it, which knows the outputs as the model at ``source`` has them.

    See "session.save_external_prepacked_constant_initializers" in ONNX Runtime's
    ``onnxruntime_session_options_config_keys.h``.

    Raises: whatever ONNX Runtime raises for a model it cannot load.
    """
    session_options = options.to_session_options()
    session_options.intra_op_num_threads = 1
    session_options.inter_op_num_threads = 1
    if shared_threads() is not None:
        use_shared_pool(session_options)
    session_options.log_severity_level = 3  # it warns that the result suits this machine only: bundles know
    session_options.optimized_model_filepath = target
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", data_name),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        session_options.add_session_config_entry(key, value)
    session = C.InferenceSession(session_options, source, True, False)
    session.initialize_session([CPU_PROVIDER], [{}], _disabled(options) if is_part else set())
    return session


def _disabled(options: SessionSettings) -> set[str]:
    """The optimizers to disable for a part of a model. The runtime takes names that are passed in place of those in the
    config, so these are among them."""
    return {*_SLOWER_FUSIONS, *filter(None, dict(options.config).get(_DISABLED_KEY, "").split(";"))}


def make_value(array: np.ndarray[Any, Any], onnx_type: int = 0) -> onnxruntime.OrtValue:
    """An OrtValue over the array's own memory (strings are copied: the runtime keeps its own)."""
    if onnx_type:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
