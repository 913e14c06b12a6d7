"""Every option of ``onnxruntime.SessionOptions``, of ``RunOptions`` and of the constructor, with an effect to observe.

A row sets one option and says how its effect is seen. Each is run on ONNX Runtime's own session and on Parallax in
every mode; see ``test_every_option_in_every_mode``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = "weights.bin"
GIVEN = onnxruntime.OrtValue.ortvalue_from_numpy(np.full(4, 7, np.float32))
"""What rows give in place of a weight; alive as long as sessions may use it."""
FILE = np.full(4, 9, np.float32).tobytes()
DEVICES = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "CPUExecutionProvider"]


def make_model(folder: Path) -> Path:
    """Two chains over x[N, 4] joined in "y", one with a weight in a file beside the model; a chain to "gathered" that
    fails where "rows" are outside; and a low-rank term of "y", empty by default, that an adapter may fill."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for branch in ("a", "b"):
        for step, (source, target) in enumerate(((f"x{branch}", f"s{branch}"), (f"e{branch}", f"y{branch}"))):
            name = f"w{branch}{step}"
            weights.append(numpy_helper.from_array(random.standard_normal(4).astype(np.float32), name))
            nodes.append(helper.make_node("Add", [source, name], [target], name=f"Add_{target}"))
        nodes.insert(0, helper.make_node("Sin", ["x"], [f"x{branch}"], name=f"Sin_{branch}"))
        nodes.insert(-1, helper.make_node("Exp", [f"s{branch}"], [f"e{branch}"], name=f"Exp_{branch}"))
    nodes += [
        helper.make_node("MatMul", ["x", "down"], ["d"], name="Down"),
        helper.make_node("MatMul", ["d", "up"], ["u"], name="Up"),
        helper.make_node("Sum", ["ya", "yb", "u"], ["y"], name="Join"),
        helper.make_node("Tanh", ["x"], ["t"], name="Tanh"),
        helper.make_node("Gather", ["t", "rows"], ["gathered"], name="Gather", axis=1),
    ]
    weights[0].ClearField("raw_data")
    weights[0].data_location = TensorProto.EXTERNAL
    for key, text in (("location", WEIGHTS), ("offset", "0"), ("length", "16")):
        weights[0].external_data.add(key=key, value=text)
    (folder / WEIGHTS).write_bytes(random.standard_normal(4).astype(np.float32).tobytes())
    weights += [
        numpy_helper.from_array(np.zeros((4, 0), np.float32), "down"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "up"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph = helper.make_graph(
        nodes,
        "options",
        [
            x,
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["K"]),
            helper.make_tensor_value_info("down", TensorProto.FLOAT, [4, "rank"]),
            helper.make_tensor_value_info("up", TensorProto.FLOAT, ["rank", 4]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("gathered", TensorProto.FLOAT, ["N", "K"]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def make_adapter(folder: Path) -> onnxruntime.LoraAdapter:
    """An adapter that fills the low-rank term."""
    parts = {"down": np.full((4, 2), 0.5, np.float32), "up": np.full((2, 4), 0.25, np.float32)}
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(part) for name, part in parts.items()})
    made.export_adapter(str(folder / "low_rank.onnx_adapter"))
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(folder / "low_rank.onnx_adapter"))
    return adapter


X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
ROWS = np.array([1], np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where a row is tried."""

    folder: Path
    """Of its own, for what an option writes."""
    model: Path
    adapter: onnxruntime.LoraAdapter
    log: Callable[[], str]
    """What was written to the process's standard error since the last call."""
    calls: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One option.

    ``whole`` is what the plan's reason says where the option keeps the model whole; None where split models honour it.
    ``refused`` is what a bundle says that cannot honour it, None where it can; ``refused_split`` is what the bundle of
    a split model says instead.
    """

    option: str
    label: str = ""
    session: Callable[[Any, Scene], None] | None = None
    run: Callable[[Any, Scene], None] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    observe: Callable[[Any, Scene], Any]
    """Given a function that runs the session, or the session: what there is to compare; what it raises counts too."""
    is_visible: bool = True
    """Whether ONNX Runtime's own session shows something else without the option."""
    as_bytes: bool = False
    whole: str | None = None
    refused: str | None = None
    refused_split: str | None = None

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.option}-{self.label}" if self.label else self.option


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session with the run options of a row."""

    session: Any
    run_options: Any

    def run(self, outputs: list[str] | None = None, rows: np.ndarray[Any, Any] = ROWS) -> list[Any]:
        """Outputs for the inputs that all rows share."""
        return [
            np.round(value, 5).tolist() for value in self.session.run(outputs, {"x": X, "rows": rows}, self.run_options)
        ]


def _outputs(opened: Opened, scene: Scene) -> Any:
    return opened.run()


def _all_ways(opened: Opened, scene: Scene) -> Any:
    """The outputs by each way to run."""
    feeds = {"x": X, "rows": ROWS}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    by_values = opened.session.run_with_ort_values(None, values, opened.run_options)
    binding = opened.session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    opened.session.run_with_iobinding(binding, opened.run_options)
    return [
        opened.run(),
        np.round(by_values[0].numpy(), 5).tolist(),
        np.round(binding.copy_outputs_to_cpu()[0], 5).tolist(),
    ]


def _has_no_path(opened: Opened, scene: Scene) -> Any:
    return [opened.session._model_path is None, opened.run()]


def _option(name: str) -> Callable[[Opened, Scene], Any]:
    def observe(opened: Opened, scene: Scene) -> Any:
        return [getattr(opened.session.get_session_options(), name), opened.run()]

    return observe


def _shown(name: str, value: Any) -> Row:
    """A property that a session's own options show, and nothing else."""
    return Row(option=name, session=_set(name, value), observe=_option(name))


def _set(name: str, value: Any) -> Callable[[Any, Scene], None]:
    def change(options: Any, scene: Scene) -> None:
        setattr(options, name, value)

    return change


def _entry(key: str, value: str) -> Callable[[Any, Scene], None]:
    def change(options: Any, scene: Scene) -> None:
        options.add_session_config_entry(key, value)

    return change


def _entry_shown(key: str) -> Callable[[Opened, Scene], Any]:
    def observe(opened: Opened, scene: Scene) -> Any:
        return [opened.session.get_session_options().get_session_config_entry(key), opened.run()]

    return observe


def _shapes(opened: Opened, scene: Scene) -> Any:
    return [[argument.shape for argument in opened.session.get_inputs()], opened.run()]


def _profile(opened: Opened, scene: Scene) -> Any:
    opened.run()
    path = Path(opened.session.end_profiling())
    return [path.name.startswith("seen"), path.is_file()]


def _logged(mark: str) -> Callable[[Opened, Scene], Any]:
    def observe(opened: Opened, scene: Scene) -> Any:
        opened.run()
        return mark in scene.log()

    return observe


def _delegate(options: Any, scene: Scene) -> None:
    def choose(devices: Any, model: Any, runtime: Any, most: int) -> list[Any]:
        scene.calls.append("asked")
        return list(devices)[:1]

    options.set_provider_selection_policy_delegate(choose)


def _asked(opened: Opened, scene: Scene) -> Any:
    return [bool(scene.calls), opened.run()]


def _assignments(opened: Opened, scene: Scene) -> Any:
    return [bool(opened.session.get_provider_graph_assignment_info()), opened.run()]


def _shrinking(options: Any, scene: Scene) -> None:
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


def _shrunk(opened: Opened, scene: Scene) -> Any:
    """To shrink an arena is refused where there is none."""
    options = onnxruntime.RunOptions()
    _shrinking(options, scene)
    return Opened(session=opened.session, run_options=options).run()


def _off_the_path(opened: Opened, scene: Scene) -> Any:
    """Other outputs are computed all the same (in ONNX Runtime 1.31), so that their failure is the run's."""
    return opened.run(["y"], np.array([99], np.int64))


def _failing(mark: str) -> Callable[[Opened, Scene], Any]:
    def observe(opened: Opened, scene: Scene) -> Any:
        with contextlib.suppress(Exception):
            opened.run(None, np.array([99], np.int64))
        return mark in scene.log()

    return observe


def _context(options: Any, scene: Scene) -> None:
    options.set_ep_context_data_read_func(lambda name, buffer: scene.calls.append(name), 1024)


def _context_cleared(options: Any, scene: Scene) -> None:
    _context(options, scene)
    options.clear_ep_context_data_read_func()


DECIDED = "decided when a bundle is compiled"
GIVES = "the session options give"
PROVIDERS = "execution providers were added"

SESSION_ROWS = [
    Row(
        option="add_initializer",
        session=lambda options, scene: options.add_initializer("wb0", GIVEN),
        observe=_all_ways,
        whole=f"{GIVES} initializer 'wb0'",
        refused=f"{GIVES} initializer 'wb0'",
    ),
    Row(
        option="add_external_initializers",
        session=lambda options, scene: options.add_external_initializers(["wa0"], [GIVEN]),
        observe=_outputs,
        whole=f"{GIVES} initializer 'wa0'",
        refused=f"{GIVES} initializer 'wa0'",
    ),
    Row(
        option="add_external_initializers",
        label="unknown",
        session=lambda options, scene: options.add_external_initializers(["nowhere"], [GIVEN]),
        observe=_outputs,
        whole="never opens",
        refused="cannot be opened with the session options",
    ),
    Row(
        option="add_external_initializers_from_files_in_memory",
        session=lambda options, scene: options.add_external_initializers_from_files_in_memory([WEIGHTS], [FILE], [16]),
        observe=_all_ways,
        whole=f"{GIVES} the content of file '{WEIGHTS}'",
        refused=f"{GIVES} the content of file '{WEIGHTS}'",
    ),
    Row(
        option="add_free_dimension_override_by_name",
        session=lambda options, scene: options.add_free_dimension_override_by_name("N", 2),
        observe=_shapes,
        whole="fix free dimensions of input 'x'",
        refused_split="fix free dimensions of input 'x'",
    ),
    Row(
        option="add_free_dimension_override_by_denotation",
        session=lambda options, scene: options.add_free_dimension_override_by_denotation("DATA_BATCH", 2),
        observe=_shapes,
        whole="fix free dimensions of input 'x'",
        refused_split="fix free dimensions of input 'x'",
    ),
    Row(
        option="add_provider",
        session=lambda options, scene: options.add_provider("CPUExecutionProvider", {}),
        observe=_outputs,
        is_visible=False,
        whole=PROVIDERS,
        refused=PROVIDERS,
    ),
    Row(
        option="add_provider_for_devices",
        session=lambda options, scene: options.add_provider_for_devices(DEVICES, {}),
        observe=_outputs,
        is_visible=False,
        whole=PROVIDERS,
        refused=PROVIDERS,
    ),
    Row(
        option="set_provider_selection_policy",
        session=lambda options, scene: options.set_provider_selection_policy(
            onnxruntime.OrtExecutionProviderDevicePolicy.PREFER_CPU
        ),
        observe=_outputs,
        is_visible=False,
        whole=PROVIDERS,
        refused=PROVIDERS,
    ),
    Row(
        option="set_provider_selection_policy_delegate",
        session=_delegate,
        observe=_asked,
        whole=PROVIDERS,
        refused=PROVIDERS,
    ),
    Row(
        option="add_session_config_entry",
        label="inherited",
        session=_entry("session.disable_quant_qdq", "1"),
        observe=_entry_shown("session.disable_quant_qdq"),
        refused=DECIDED,
    ),
    Row(
        option="add_session_config_entry",
        label="spinning",
        session=_entry("session.intra_op.allow_spinning", "0"),
        observe=_entry_shown("session.intra_op.allow_spinning"),
    ),
    Row(
        option="add_session_config_entry",
        label="folder",
        session=lambda options, scene: options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(scene.model.parent)
        ),
        observe=_outputs,
        as_bytes=True,
        whole="the analysis refuses the model",
        refused=DECIDED,
    ),
    Row(
        option="add_session_config_entry",
        label="assignments",
        session=_entry("session.record_ep_graph_assignment_info", "1"),
        observe=_assignments,
        whole="the session option session.record_ep_graph_assignment_info='1' is for the whole model",
        refused_split="session.record_ep_graph_assignment_info='1' is for the whole model",
    ),
    Row(
        option="add_session_config_entry",
        label="denormals",
        session=_entry("session.set_denormal_as_zero", "1"),
        observe=_entry_shown("session.set_denormal_as_zero"),
        whole="the session option session.set_denormal_as_zero='1' is for the whole model",
        refused_split="session.set_denormal_as_zero='1' is for the whole model",
    ),
    Row(
        option="add_session_config_entry",
        label="no-fallback",
        session=_entry("session.disable_cpu_ep_fallback", "1"),
        observe=_outputs,
        whole="never opens",
        refused="disabled fallback to the CPU EP",
    ),
    Row(option="set_ep_context_data_read_func", session=_context, observe=_asked, is_visible=False),
    Row(option="clear_ep_context_data_read_func", session=_context_cleared, observe=_asked, is_visible=False),
    Row(
        option="set_load_cancellation_flag",
        session=lambda options, scene: options.set_load_cancellation_flag(True),
        observe=_outputs,
        whole="never opens",
        refused="Graph loading canceled",
    ),
    Row(
        option="enable_cpu_mem_arena",
        session=_set("enable_cpu_mem_arena", False),
        observe=_shrunk,
        refused_split="is for sessions with an arena",
    ),
    _shown("enable_mem_pattern", False),
    _shown("enable_mem_reuse", False),
    Row(
        option="enable_profiling",
        session=lambda options, scene: (
            _set("enable_profiling", True)(options, scene),
            _set("profile_file_prefix", str(scene.folder / "seen"))(options, scene),
        ),
        observe=_profile,
        whole="profiling of the whole model was asked for",
        refused_split="profiling of the whole model was asked for",
    ),
    _shown("profile_file_prefix", "elsewhere"),
    Row(
        option="execution_mode",
        session=_set("execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
        observe=_option("execution_mode"),
        whole="the runtime's own parallel mode was asked for",
        refused_split="the runtime's own parallel mode was asked for",
    ),
    Row(
        option="execution_order",
        session=_set("execution_order", onnxruntime.ExecutionOrder.PRIORITY_BASED),
        observe=_option("execution_order"),
        whole="execution order PRIORITY_BASED was asked for",
        refused_split="execution order PRIORITY_BASED was asked for",
    ),
    Row(
        option="graph_optimization_level",
        session=_set("graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        observe=_option("graph_optimization_level"),
        refused=DECIDED,
    ),
    _shown("inter_op_num_threads", 2),
    _shown("intra_op_num_threads", 2),
    Row(option="log_severity_level", session=_set("log_severity_level", 0), observe=_logged("V:onnxruntime")),
    _shown("log_verbosity_level", 3),
    Row(
        option="logid",
        session=lambda options, scene: (
            _set("log_severity_level", 0)(options, scene),
            _set("logid", "row-of-options")(options, scene),
        ),
        observe=_logged("row-of-options"),
    ),
    Row(
        option="optimized_model_filepath",
        session=lambda options, scene: setattr(
            options, "optimized_model_filepath", str(scene.folder / "optimised.onnx")
        ),
        observe=lambda opened, scene: [(scene.folder / "optimised.onnx").is_file(), opened.run()],
        whole="the optimised model is to be written to a file",
        refused="the optimised model is to be written to a file",
    ),
    _shown("use_deterministic_compute", True),
    Row(
        option="use_per_session_threads",
        session=_set("use_per_session_threads", False),
        observe=_outputs,
        whole="never opens",
        refused="per session threadpools",
        refused_split="threads of the runtime's own global pool were asked for",
    ),
]

RUN_ROWS = [
    Row(
        option="add_active_adapter",
        run=lambda options, scene: options.add_active_adapter(scene.adapter),
        observe=_all_ways,
        refused_split="more than a part of the model takes",
    ),
    Row(
        option="add_run_config_entry",
        label="known",
        run=_shrinking,
        observe=_outputs,
        is_visible=False,
    ),
    Row(
        option="add_run_config_entry",
        label="no-such-arena",
        run=lambda options, scene: options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:7"),
        observe=_outputs,
        refused_split="more than a part of the model takes",
    ),
    Row(
        option="log_severity_level",
        run=_set("log_severity_level", 4),
        observe=_failing("Non-zero status code"),
    ),
    Row(option="log_verbosity_level", run=_set("log_verbosity_level", 3), observe=_outputs, is_visible=False),
    Row(
        option="logid",
        run=_set("logid", "run-of-a-row"),
        observe=_failing("run-of-a-row"),
    ),
    Row(
        option="only_execute_path_to_fetches",
        run=_set("only_execute_path_to_fetches", True),
        observe=_off_the_path,
        is_visible=False,
    ),
    Row(option="terminate", run=_set("terminate", True), observe=_outputs),
]

ARGUMENT_ROWS = [
    Row(
        option="path_or_bytes",
        observe=lambda opened, scene: [opened.session._model_path is None, opened.run()],
        is_visible=False,
    ),
    Row(option="sess_options", session=_set("logid", "given"), observe=_option("logid")),
    Row(option="providers", arguments={"providers": ["CPUExecutionProvider"]}, observe=_outputs, is_visible=False),
    Row(
        option="provider_options",
        arguments={"providers": ["CPUExecutionProvider"], "provider_options": [{}, {}], "enable_fallback": 0},
        observe=_outputs,
    ),
    Row(
        option="enable_fallback",
        arguments={"providers": [5], "enable_fallback": 0},
        observe=_outputs,
    ),
    Row(
        option="disabled_optimizers",
        arguments={"disabled_optimizers": ["ConstantFolding"]},
        observe=_outputs,
        is_visible=False,
        whole="single optimisers were disabled",
        refused="single optimisers were disabled",
    ),
    Row(option="read_config_from_model", arguments={"read_config_from_model": 1}, observe=_outputs, is_visible=False),
]

ROWS_OF_ALL = [*SESSION_ROWS, *RUN_ROWS, *ARGUMENT_ROWS]
