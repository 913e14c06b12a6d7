"""Session options that travel with a pickled session: all that can be read of them, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import onnxruntime

from parallax.backends.ort import read_entry
from parallax.errors import ConfigError
from parallax.options._config_keys import FOR_THE_WHOLE_MODEL, INHERITED, WITHOUT_EFFECT
from parallax.options._given_options import custom_operator_library

PROPERTIES: Final = (
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "enable_mem_reuse",
    "enable_profiling",
    "execution_mode",
    "execution_order",
    "graph_optimization_level",
    "inter_op_num_threads",
    "intra_op_num_threads",
    "log_severity_level",
    "log_verbosity_level",
    "logid",
    "optimized_model_filepath",
    "profile_file_prefix",
    "use_deterministic_compute",
    "use_per_session_threads",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedOptions:
    """What an ``onnxruntime.SessionOptions`` shows of itself."""

    properties: tuple[tuple[str, Any], ...]
    config: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, session_options: Any, *, is_model_known: bool) -> CarriedOptions:
        """Read the options; what they hold for the model was looked for before (see `travelling`).

        Args:
            is_model_known: whether it could be, which takes the names of the model's tensors.

        Raises: ConfigError if they hold, or may hold, what cannot be read.
        """
        obstacle = None
        library = custom_operator_library()
        if session_options.has_providers():
            obstacle = "execution providers were added to its session options"
        elif library is not None:
            obstacle = f"its session options may hold the custom operators of {library}, which is loaded"
        elif not is_model_known:
            obstacle = "what its session options hold for a model that was not analysed cannot be seen"
        if obstacle is not None:
            raise ConfigError(
                f"the session cannot be pickled: {obstacle}", fix="open it where it is used, with those options"
            )
        entries = (
            (key, read_entry(session_options, key)) for key in (*INHERITED, *WITHOUT_EFFECT, *FOR_THE_WHOLE_MODEL)
        )
        return cls(
            properties=tuple((name, getattr(session_options, name)) for name in PROPERTIES),
            config=tuple((key, value) for key, value in entries if value is not None),
        )

    def to_session_options(self) -> Any:
        """New options that show the same."""
        made = onnxruntime.SessionOptions()
        for name, value in self.properties:
            setattr(made, name, value)
        for key, text in self.config:
            made.add_session_config_entry(key, text)
        return made
