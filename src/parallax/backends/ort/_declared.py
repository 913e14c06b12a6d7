"""What type checkers see of ONNX Runtime's session class, which comes without types.

Nothing of it runs: where a program runs, the class is ONNX Runtime's own (`parallax.backends.ort.StockSession`). A test
compares the two, so that neither has a public method that the other lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parallax.backends import TensorArgument
from parallax.backends.ort._types import Feeds, ModelDescription, OutputNames, Provider, RunCallback


class DeclaredSession:
    """``onnxruntime.InferenceSession``, as its documentation describes it."""

    _sess: Any
    _sess_options: Any
    _providers: list[str]

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        raise NotImplementedError

    def get_session_options(self) -> Any:
        """The ``SessionOptions`` that it was opened with."""
        raise NotImplementedError

    def get_inputs(self) -> Sequence[TensorArgument]:
        """The inputs as the model declares them."""
        raise NotImplementedError

    def get_outputs(self) -> Sequence[TensorArgument]:
        """The outputs as the model declares them."""
        raise NotImplementedError

    def get_overridable_initializers(self) -> Sequence[TensorArgument]:
        """The initializers that a run may be fed others for."""
        raise NotImplementedError

    def get_modelmeta(self) -> ModelDescription:
        """What the model tells of itself."""
        raise NotImplementedError

    def get_input_memory_infos(self) -> Sequence[Any]:
        """In which memory each input is read."""
        raise NotImplementedError

    def get_output_memory_infos(self) -> Sequence[Any]:
        """In which memory each output is made."""
        raise NotImplementedError

    def get_input_epdevices(self) -> Sequence[Any]:
        """The device that reads each input."""
        raise NotImplementedError

    def get_providers(self) -> list[str]:
        """Names of the execution providers, in order of preference."""
        raise NotImplementedError

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Their options, by name."""
        raise NotImplementedError

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        """Which provider took which nodes, where recording that was asked for."""
        raise NotImplementedError

    def set_providers(
        self,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
    ) -> None:
        """Open the model again, with these."""
        raise NotImplementedError

    def disable_fallback(self) -> None:
        """Let a run that fails on a provider fail."""
        raise NotImplementedError

    def enable_fallback(self) -> None:
        """Let a run that fails on a provider be done by others."""
        raise NotImplementedError

    def run(self, output_names: OutputNames, input_feed: Feeds, run_options: Any = None) -> list[Any]:
        """The outputs, each a numpy array, a list, a dict or a ``SparseTensor``."""
        raise NotImplementedError

    def run_async(
        self,
        output_names: OutputNames,
        input_feed: Feeds,
        callback: RunCallback,
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """As ``run``, returning at once."""
        raise NotImplementedError

    def run_with_ort_values(
        self, output_names: OutputNames, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """As ``run``, with ``OrtValue`` on both sides."""
        raise NotImplementedError

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Run on what is bound."""
        raise NotImplementedError

    def run_with_ortvaluevector(
        self, run_options: Any, feed_names: Any, feeds: Any, fetch_names: Any, fetches: Any, fetch_devices: Any
    ) -> None:
        """Run on vectors of values."""
        raise NotImplementedError

    def io_binding(self) -> Any:
        """An ``IOBinding`` of this session."""
        raise NotImplementedError

    def create_ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0, vendor_id: int = -1
    ) -> Any:
        """An ``OrtValue`` in memory of this session's allocator."""
        raise NotImplementedError

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        """Release a graph that a device captured."""
        raise NotImplementedError

    def end_profiling(self) -> str:
        """The path of the profile that was written."""
        raise NotImplementedError

    def get_profiling_start_time_ns(self) -> int:
        """When profiling began."""
        raise NotImplementedError

    def set_ep_dynamic_options(self, options: dict[str, str]) -> None:
        """Change options of providers between runs."""
        raise NotImplementedError

    def get_tuning_results(self) -> Any:
        """What providers that tune kernels found."""
        raise NotImplementedError

    def set_tuning_results(self, results: Any, *, error_on_invalid: bool = False) -> None:
        """Have them use what they found earlier."""
        raise NotImplementedError

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        raise NotImplementedError

    def _reset_session(self, providers: Any, provider_options: Any) -> None:
        raise NotImplementedError

    def _release_captured_graphs(self) -> None:
        raise NotImplementedError

    def _validate_input(self, feed_input_names: list[str]) -> None:
        raise NotImplementedError
