"""What sessions are asked for: Parallax's own options, ONNX Runtime's, and providers; read, checked, and handed on."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.options._calls import (
        check_arguments,
        check_binding,
        check_callback,
        check_many,
        check_plan,
        check_reason,
        check_values,
    )
    from parallax.options._carried_options import CarriedOptions
    from parallax.options._config_keys import MODEL_CONFIG_KEY
    from parallax.options._given_options import (
        copied_options,
        why_content_matters,
        why_given_options_stay_whole,
        why_not_with_bundle,
        why_not_with_split_bundle,
    )
    from parallax.options._keywords import check_calibration_names, check_folder, check_observers, check_switch
    from parallax.options._options import (
        COMPILE_OPTIONS,
        OPTION_RULES,
        STOCK_KEYWORDS,
        CompileKeywords,
        Options,
        PlanningOptions,
        SessionKeywords,
        gather_compile_options,
        gather_options,
        shows_options,
        with_option_docs,
    )
    from parallax.options._providers import (
        CPU_PROVIDER,
        CPU_PROVIDERS,
        AskedProviders,
        Device,
        check_providers,
        given_to,
        leave_out_missing,
        make_device,
        open_devices,
        split_providers,
    )
    from parallax.options._runtime_options import (
        compiled_options,
        has_pinned_threads,
        is_onnx_source,
        lean_memory,
        lean_options,
        planned_threads,
        runtime_options,
        session_cores,
        sliced_options,
        why_not_compiled,
        why_not_cut,
    )
    from parallax.options._unknown_keywords import check_session_keywords
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_calls": ("check_arguments check_binding check_callback check_many check_plan check_reason check_values"),
            "_carried_options": "CarriedOptions",
            "_config_keys": "MODEL_CONFIG_KEY",
            "_given_options": (
                "copied_options why_content_matters why_given_options_stay_whole why_not_with_bundle "
                "why_not_with_split_bundle"
            ),
            "_keywords": "check_calibration_names check_folder check_observers check_switch",
            "_options": (
                "COMPILE_OPTIONS OPTION_RULES STOCK_KEYWORDS CompileKeywords Options PlanningOptions "
                "SessionKeywords gather_compile_options gather_options shows_options with_option_docs"
            ),
            "_providers": (
                "CPU_PROVIDER CPU_PROVIDERS AskedProviders Device check_providers given_to leave_out_missing "
                "make_device open_devices split_providers"
            ),
            "_runtime_options": (
                "compiled_options has_pinned_threads is_onnx_source lean_memory lean_options planned_threads "
                "runtime_options session_cores sliced_options why_not_compiled why_not_cut"
            ),
            "_unknown_keywords": "check_session_keywords",
        },
    )

__all__ = [
    "COMPILE_OPTIONS",
    "CPU_PROVIDER",
    "CPU_PROVIDERS",
    "MODEL_CONFIG_KEY",
    "OPTION_RULES",
    "STOCK_KEYWORDS",
    "AskedProviders",
    "CarriedOptions",
    "CompileKeywords",
    "Device",
    "Options",
    "PlanningOptions",
    "SessionKeywords",
    "check_arguments",
    "check_binding",
    "check_calibration_names",
    "check_callback",
    "check_folder",
    "check_many",
    "check_observers",
    "check_plan",
    "check_providers",
    "check_reason",
    "check_session_keywords",
    "check_switch",
    "check_values",
    "compiled_options",
    "copied_options",
    "gather_compile_options",
    "gather_options",
    "given_to",
    "has_pinned_threads",
    "is_onnx_source",
    "lean_memory",
    "lean_options",
    "leave_out_missing",
    "make_device",
    "open_devices",
    "planned_threads",
    "runtime_options",
    "session_cores",
    "shows_options",
    "sliced_options",
    "split_providers",
    "why_content_matters",
    "why_given_options_stay_whole",
    "why_not_compiled",
    "why_not_cut",
    "why_not_with_bundle",
    "why_not_with_split_bundle",
    "with_option_docs",
]
