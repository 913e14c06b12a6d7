"""ONNX Runtime's session config entries: which of them a split model honours, and how.

The keys are those of ONNX Runtime's ``onnxruntime_session_options_config_keys.h`` (1.31) and those that its library
reads beside them. A test compares these tables with the keys in the installed library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from parallax.backends.ort import read_entry

INHERITED: Final = (
    "mlas.disable_kleidiai",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "mlas.kleidiai.conv_igemm_max_work",
    "mlas.nchwc_depthwise_sliding",
    "mlas.nchwc_pointwise_conv_max_input_channel_batch",
    "mlas.qnbit.force_fp32",
    "mlas.use_lut_gemm",
    "optimization.constant_folding_max_output_size_in_bytes",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "optimization.minimal_build_optimizations",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_qdq_constant_folding",
    "session.disable_quant_qdq",
    "session.dynamic_block_base",
    "session.enable_quant_qdq_cleanup",
    "session.intra_op.allow_spinning",
    "session.intra_op.spin_backoff_max",
    "session.intra_op.spin_duration_us",
    "session.qdqisint8allowed",
    "session.use_env_allocators",
    "session.x64quantprecision",
)
"""Each segment's session gets these: how kernels, the optimiser and a session's own threads behave."""

WITHOUT_EFFECT: Final = (
    # Threads between operators, which only the runtime's parallel mode has: that takes the whole model.
    "session.inter_op.allow_spinning",
    "session.inter_op.spin_backoff_max",
    "session.inter_op.spin_duration_us",
    # How a file is read, which is looked at before anything else, and ORT format, which is never split.
    "session.load_model_format",
    "session.use_ort_model_bytes_directly",
    "session.use_ort_model_bytes_for_initializers",
    # How the optimised model is written, which only a whole model is.
    "session.optimized_model_external_initializers_file_name",
    "session.optimized_model_external_initializers_min_size_in_bytes",
    "session.save_model_format",
)
"""These change nothing for a model that may be split."""

FOR_THE_WHOLE_MODEL: Final[Mapping[str, str | None]] = {
    "ep.context_embed_mode": "0",
    "ep.context_enable": "0",
    "ep.context_file_path": "",
    "ep.context_model_external_initializers_file_name": "",
    "ep.context_node_name_prefix": "",
    "ep.context_source_model_path": "",
    "ep.cuda.fpa_intb_gemm": None,
    "ep.cuda.fpa_intb_profile_m": None,
    "ep.cuda.gqa_workspace_max_total_sequence_length": None,
    "ep.dynamic.workload_type": None,
    "ep.enable_weightless_ep_context_nodes": "0",
    "ep.nnapi.partitioning_stop_ops": None,
    "ep.share_ep_contexts": "0",
    "ep.stop_share_ep_contexts": "0",
    "session.allow_released_opsets_only": None,
    "session.collect_node_memory_stats_to_file": "",
    "session.compile_only": "0",
    "session.debug_layout_transformation": "0",
    "session.disable_aot_function_inlining": "0",
    "session.disable_cpu_ep_fallback": "0",
    "session.disable_model_compile": "0",
    "session.enable_cpu_mem_arena": None,
    "session.enable_dq_matmulnbits_fusion": None,
    "session.enable_mem_pattern": None,
    "session.enable_moe_expert_counting": "0",
    "session.enable_moe_expert_statistics": "0",
    "session.enable_profiling": None,
    "session.enable_saved_runtime_optimizations": "0",
    "session.execution_mode": None,
    "session.fail_on_suboptimal_compiled_model": "0",
    "session.force_spinning_stop": None,
    "session.function_expansion_byte_limit": None,
    "session.function_expansion_node_limit": None,
    "session.gqa_value_layout": None,
    "session.graph_optimization_level": None,
    "session.graph_optimizations_loop_level": None,
    "session.inter_op_num_threads": None,
    "session.intra_op_num_threads": None,
    "session.intra_op_thread_affinities": "",
    "session.layer_assignment_settings": "",
    "session.log_id": None,
    "session.log_severity_level": None,
    "session.log_verbosity_level": None,
    "session.max_shape_override": None,
    "session.model_external_initializers_file_folder_path": "",
    "session.moe_expert_counter_alpha": None,
    "session.moe_expert_counter_beta": None,
    "session.moe_expert_counter_state_file": "",
    "session.name_based_layer_assignment": None,
    "session.node_partition_config_file": "",
    "session.optimized_model_filepath": "",
    "session.prepack.enable_parallel": None,
    "session.qdq_matmulnbits_accuracy_level": None,
    "session.qdq_matmulnbits_block_size": None,
    "session.record_ep_graph_assignment_info": "0",
    "session.resource_cuda_partitioning_settings": "",
    "session.save_external_prepacked_constant_initializers": "0",
    # Set for the thread that opens a session and for its pool: lanes are neither.
    "session.set_denormal_as_zero": "0",
    "session.strict_shape_type_inference": "0",
    "session.strict_workspace_verification": "0",
    "session.use_deterministic_compute": None,
    "session.use_device_allocator_for_initializers": "0",
    "session.use_external_initializer_file_buffers_directly": "0",
    "session.use_per_session_threads": None,
}
"""With these, a model stays whole -> the value that says no more than the default does (None: there is none)."""

DECIDED_WHEN_COMPILED: Final = (
    "optimization.constant_folding_max_output_size_in_bytes",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "optimization.minimal_build_optimizations",
    "session.disable_aot_function_inlining",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_qdq_constant_folding",
    "session.disable_quant_qdq",
    "session.enable_dq_matmulnbits_fusion",
    "session.enable_quant_qdq_cleanup",
    "session.function_expansion_byte_limit",
    "session.function_expansion_node_limit",
    "session.graph_optimizations_loop_level",
    "session.model_external_initializers_file_folder_path",
    "session.qdq_matmulnbits_accuracy_level",
    "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed",
    "session.x64quantprecision",
)
"""What the optimiser did, and where weights are: a bundle holds its result."""


MODEL_CONFIG_KEY: Final = "ort_config"
"""A model's metadata under this key are session options, which ONNX Runtime reads where that is asked for."""


def first_entry_for_whole(session_options: Any) -> tuple[str, str] | None:
    """The first entry of `FOR_THE_WHOLE_MODEL` that is set to more than the default, and its value."""
    for key, default in FOR_THE_WHOLE_MODEL.items():
        value = read_entry(session_options, key)
        if value is not None and value != default:
            return key, value
    return None


def first_entry_decided(session_options: Any) -> tuple[str, str] | None:
    """The first entry of `DECIDED_WHEN_COMPILED` that is set, and its value."""
    for key in DECIDED_WHEN_COMPILED:
        value = read_entry(session_options, key)
        if value is not None and value != FOR_THE_WHOLE_MODEL.get(key):
            return key, value
    return None
