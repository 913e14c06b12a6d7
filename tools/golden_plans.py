"""Record the plans that sessions make for the models of the zoo, or compare them with those that were recorded.

    python tools/golden_plans.py --check            # all models; some minutes on two cores
    python tools/golden_plans.py --check yolov8n    # one; exits with 1 and says which segment differs in what
    python tools/golden_plans.py yolov8n            # record it anew: the commit says which plan changes, and why

A refactoring leaves these plans unchanged, and a change of planning shows what it changes. ``tests/golden/plans`` has
one JSON file per model, which `tests/golden/test_golden_plans.py` compares with what is planned now. A file holds

* what the plans follow from: the model's structure, the shapes they are made for, the versions of ONNX (whose inference
  finds types) and of ONNX Runtime (whose optimiser decides at which tensors a model may be split), the number of those
  tensors and a digest of their names, and per number of cores the cost of the whole model by the tables, on one core
  and on all, with a digest of the costs of all nodes;
* ``plans``: for each device, number of cores and ``min_gain`` (``null`` for the default policy, 0 for a forced split)
  the plan, one segment per line, in the order of ``columns``. Nodes and preceding segments are ranges of indices,
  ``tensors`` is a digest of the names of a segment's inputs and outputs; after them come the plans of its bodies,
  where it has some;
* ``candidates``: per device and number of cores what a tuned session would measure if the costs were the tables'
  (label, lanes, segments, predicted time, digest of the segments), and the first of the CPU's in full.

Nothing is measured, so that the files are the same on every machine: costs are those of the tables, and emulated
devices are scaled to the processor that the tables speak of. Times are whole nanoseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime

from parallax import zoo
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._profiles import load_profile
from parallax.errors import ConfigError
from parallax.model import Model, load_model
from parallax.planner import PlanDevice, PlanningContext, PlanRequest, plan_model, with_known_peaks
from parallax.planner._candidates import NO_PROVENANCE
from parallax.planner._device_model import model_for_devices
from parallax.planner._devices import DeviceStudy
from parallax.profile import estimate_costs, fusion_safe_tensors, product_flops
from parallax.schedule import CPU_BACKEND, Plan, Segment

FOLDER: Final = Path(__file__).resolve().parents[1] / "tests" / "golden" / "plans"

FORMAT: Final = 1
CORES: Final = (1, 2, 8)
DEVICES: Final = (CPU_BACKEND, "emulated:pixel-6-gpu", "emulated:jetson-orin-nano")
GAINS: Final = (None, 0.0)
COLUMNS: Final = (
    "nodes",
    "backend",
    "width",
    "lane",
    "priority",
    "after",
    "cost_ns",
    "peak_bytes",
    "inputs",
    "outputs",
    "tensors",
)
_MOST_LINES: Final = 12
"""Of the differences of one plan; the rest is counted."""

Document = dict[str, Any]
"""A file's content, of JSON types."""

Progress = Callable[[int, int], None]
"""Called with the number of plans that are made, and of all."""


def golden_path(name: str) -> Path:
    """Where the plans of a zoo model are recorded."""
    return FOLDER / f"{name}.json"


def open_model(name: str) -> Model:
    """A zoo model in the usual sizes of its open dimensions."""
    model = load_model(zoo.load(name))
    shapes = planned_shapes(name)
    return model.with_shapes(shapes) if shapes else model


def planned_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The usual shapes of those inputs of a zoo model that have open dimensions, as ``shapes=`` takes them."""
    return {
        info.name: info.typical_shape
        for info in zoo.info(name).inputs
        if any(isinstance(size, str) for size in info.shape)
    }


def make_document(name: str, model: Model, progress: Progress | None = None) -> Document:
    """All that a file holds. Without measurements: the same on every machine that has the same ONNX Runtime.

    Args:
        model: of that name, see `open_model`.
    """
    tell = progress or (lambda done, total: None)
    cases = [(device, cores) for device in DEVICES for cores in CORES]
    plans: list[Document] = []
    candidates: list[Document] = []
    with tempfile.TemporaryDirectory(prefix="parallax-golden-") as folder:  # where no plans are remembered
        for number, (device, cores) in enumerate(cases):
            tell(number, len(cases))
            for gain in GAINS:
                plan = session_plan(model, cores=cores, device=device, min_gain=gain, cache_dir=Path(folder))
                plans.append({"device": device, "cores": cores, "min_gain": gain, **describe_plan(plan)})
            candidates.append(_describe_candidates(model, device=device, cores=cores))
        tell(len(cases), len(cases))
    return {
        "format": FORMAT,
        "model": name,
        "structure": model.structure_digest,
        "shapes": {key: list(shape) for key, shape in planned_shapes(name).items()},
        "made_with": _versions(),
        "survivors": _digest_of_fusion_safe(model),
        "costs": [_describe_costs(model, cores) for cores in CORES],
        "columns": list(COLUMNS),
        "plans": plans,
        "candidates": candidates,
    }


def session_plan(model: Model, *, cores: int, device: str, min_gain: float | None, cache_dir: Path) -> Plan:
    """The plan of a session that is opened with these options, which is not compiled.

    Args:
        model: in the shapes to plan for.
        device: a backend's name; "cpu" for a session without accelerators.
        cache_dir: an empty folder, so that no plan is remembered.
    """
    devices = {} if device == CPU_BACKEND else {device: PlanDevice(backend=emulated(device, cores))}
    request = PlanRequest(model=model, cores=cores, min_gain=min_gain, cache_dir=cache_dir, devices=devices)
    planned = plan_model(request)
    return with_known_peaks(planned.model, planned.plan)


def emulated(device: str, cores: int) -> EmulatedBackend:
    """An emulated device, scaled to the processor that the tables speak of instead of this one."""
    return EmulatedBackend(load_profile(device.partition(":")[2]), host_flops=product_flops(cores))


def describe_plan(plan: Plan) -> Document:
    """A plan as it is recorded: all of it but the texts that say why, and what names this machine."""
    found: Document = {
        "policy": plan.policy,
        "lanes": plan.lanes,
        "backfill": plan.backfill,
        "source": plan.provenance.source,
        "uncut_ns": plan.provenance.whole_ns,
        "chosen_ns": plan.provenance.chosen_ns,
    }
    if plan.rows_permille is not None:
        found["rows_permille"] = plan.rows_permille
    if plan.rows_whole:
        found["rows_whole"] = plan.rows_whole
    if plan.constants_shapes is not None:
        found["constants_shapes"] = plan.constants_shapes
    return {**found, "segments": [_describe_segment(segment) for segment in plan.segments]}


def _describe_segment(segment: Segment) -> list[Any]:
    row = [
        _ranges(segment.nodes),
        segment.backend,
        segment.width,
        segment.lane,
        segment.priority,
        _ranges(segment.predecessors),
        segment.cost_ns,
        segment.peak_bytes,
        len(segment.inputs),
        len(segment.outputs),
        _digest([*segment.inputs, "", *segment.outputs], 8),
    ]
    bodies = [
        {"attribute": body.attribute, "cores": body.plan.cores, **describe_plan(body.plan)} for body in segment.bodies
    ]
    return [*row, bodies] if bodies else row


def _describe_costs(model: Model, cores: int) -> Document:
    costs = estimate_costs(model.inferred(), cores=cores)
    rows = [costs.node_ns(width) for width in (1, cores)]
    return {
        "cores": cores,
        "narrow_ns": sum(rows[0]),
        "wide_ns": sum(rows[1]),
        "nodes": _digest([str(ns) for row in rows for ns in row]),
    }


def _describe_candidates(model: Model, *, device: str, cores: int) -> Document:
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe_tensors(model))
    found: list[tuple[str, Plan, int]]
    if device == CPU_BACKEND:
        found = [
            (proposal.partition.label, context.plan(proposal, NO_PROVENANCE), proposal.simulated_ns)
            for proposal in context.candidates()
        ]
    else:
        backend = emulated(device, cores)
        request = PlanRequest(model=model, cores=cores, devices={device: PlanDevice(backend=backend)})
        computed = model_for_devices(request)
        if computed is not None:
            made_for = computed.model
            context = PlanningContext(made_for, cores=cores, fusion_safe=fusion_safe_tensors(made_for))
        study = DeviceStudy(context, backend)
        made = [study.greedy, study.best, study.in_sequence]
        found = [(entry.label, entry.plan, entry.simulated_ns) for entry in made if entry is not None]
    rows = []
    for label, plan, simulated_ns in found:
        segments = describe_plan(plan)["segments"]
        rows.append([label, plan.lanes, len(segments), simulated_ns, _digest([json.dumps(row) for row in segments])])
    described: Document = {"device": device, "cores": cores, "plans": rows}
    if device == CPU_BACKEND and found:
        described["first"] = describe_plan(found[0][1])["segments"]
    return described


def _versions() -> dict[str, str]:
    """Of the libraries that plans depend on."""
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def _digest_of_fusion_safe(model: Model) -> Document:
    names = fusion_safe_tensors(model)
    return {"count": len(names), "digest": _digest(sorted(names))}


def _digest(parts: Iterable[str], length: int = 16) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _ranges(indices: Sequence[int]) -> str:
    """Ascending indices as "0-3 5 7-8"."""
    if not indices:
        return ""
    starts = [indices[0], *(after for before, after in pairwise(indices) if after != before + 1)]
    ends = [*(before for before, after in pairwise(indices) if after != before + 1), indices[-1]]
    return " ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )


def as_text(document: Document) -> str:
    """JSON with one segment or candidate per line."""
    parts = []
    for key, value in document.items():
        if key in ("plans", "candidates"):
            entries = ",\n".join(f"  {_with_lines(entry)}" for entry in value)
            parts.append(f' "{key}": [\n{entries}\n ]')
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _with_lines(entry: Document) -> str:
    """An object whose lists of lists have a line for each entry."""
    parts = []
    for key, value in entry.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"    {json.dumps(row)}" for row in value)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{" + ", ".join(parts) + "}"


def read_document(name: str) -> Document:
    """What was recorded of a zoo model.

    Raises: ConfigError if nothing was, or with other versions of ONNX or ONNX Runtime than are installed.
    """
    path = golden_path(name)
    try:
        document: Document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no plans are recorded for {name!r}", where=str(path), fix=f"record them: {_command(name)}"
        ) from error
    recorded, installed = document["made_with"], _versions()
    if recorded != installed:
        pairs = ", ".join(f"{key} {recorded.get(key)} (installed: {installed[key]})" for key in installed)
        raise ConfigError(
            f"these plans were recorded with {pairs}: another version may infer other types, or leave other tensors at "
            "which a model may be split",
            where=str(path),
            fix=f"install the versions that constraints.txt pins; where those change, record all anew: {_command()}",
        )
    return document


def _command(*names: str) -> str:
    return " ".join(("python tools/golden_plans.py", *names))


def differences(recorded: Document, made: Document, node_names: Sequence[str]) -> list[str]:
    """What differs, a line for each: which device, number of cores and segment, and in what. Empty if nothing does.

    Args:
        made: what `make_document` makes now.
        node_names: of the model's nodes, to say which are meant.
    """
    made = json.loads(json.dumps(made))
    lines = [
        _changed(key, recorded.get(key), made.get(key))
        for key in {**recorded, **made}
        if key not in ("plans", "candidates") and recorded.get(key) != made.get(key)
    ]
    for key in ("plans", "candidates"):
        before, now = ({_case(entry): entry for entry in document[key]} for document in (recorded, made))
        for case in {**before, **now}:
            if case not in before or case not in now:
                lines.append(f"{case}: {'not recorded' if case not in before else 'recorded, and not made any more'}")
            else:
                # Where constants are computed, indices are not those of the model's nodes.
                names = () if "constants_shapes" in now[case] else node_names
                found = list(_entry_differences(before[case], now[case], names))
                lines += [f"{case}: {line}" for line in found[:_MOST_LINES]]
                if len(found) > _MOST_LINES:
                    lines.append(f"{case}: ... and {len(found) - _MOST_LINES} more differences")
    return lines


def _case(entry: Mapping[str, Any]) -> str:
    cores = f"{entry['device']}, {entry['cores']} core{'s' if entry['cores'] > 1 else ''}"
    if "min_gain" not in entry:
        return f"{cores}, candidates"
    return f"{cores}, {'default policy' if entry['min_gain'] is None else 'forced split'}"


def _changed(what: str, before: object, now: object) -> str:
    return f"{what}: {json.dumps(before)} was recorded, {json.dumps(now)} is made"


def _entry_differences(before: Document, now: Document, node_names: Sequence[str]) -> Iterator[str]:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if key in ("segments", "first") and old is not None and new is not None:
            yield from _segment_differences(old, new, node_names)
        elif key == "plans" and old is not None and new is not None:
            yield from (f"only recorded: {json.dumps(row)}" for row in old if row not in new)
            yield from (f"only made now: {json.dumps(row)}" for row in new if row not in old)
        else:
            yield _changed(key, old, new)


def _segment_differences(
    before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]], node_names: Sequence[str]
) -> Iterator[str]:
    """Segments of the same nodes are compared field by field; others are listed."""
    if len(before) != len(now):
        yield _changed("number of segments", len(before), len(now))
    matcher = SequenceMatcher(None, [row[0] for row in before], [row[0] for row in now], autojunk=False)
    for tag, first, last, new_first, new_last in matcher.get_opcodes():
        if tag != "equal":
            for what, rows, start, end in (("recorded", before, first, last), ("made", now, new_first, new_last)):
                yield from (
                    f"segment {index}, only {what}: {_shown_nodes(rows[index][0], node_names)}"
                    for index in range(start, end)
                )
            continue
        for index, new_index in zip(range(first, last), range(new_first, new_last), strict=True):
            old, new = before[index], now[new_index]
            fields = [
                _changed(column, old_value, new_value)
                for column, old_value, new_value in zip((*COLUMNS, "bodies"), _padded(old), _padded(new), strict=True)
                if old_value != new_value
            ]
            if fields:
                yield f"segment {index} ({_shown_nodes(old[0], node_names)}): {'; '.join(fields)}"


def _padded(row: Sequence[Any]) -> list[Any]:
    return [*row, *[None] * (len(COLUMNS) + 1 - len(row))]


def _shown_nodes(ranges: str, node_names: Sequence[str]) -> str:
    """Ranges of nodes, with the name of the first one."""
    first = ranges.replace("-", " ").partition(" ")[0]
    name = node_names[int(first)] if first.isdecimal() and int(first) < len(node_names) else "?"
    shown = ranges if len(ranges) <= 40 else f"{ranges[:40]}..."
    return f"nodes {shown}, the first of them {name!r}" if ranges else "no nodes"


def compare(name: str, progress: Progress | None = None) -> list[str]:
    """How the plans of a zoo model differ from those that were recorded; see `differences`.

    Raises: as `read_document`.
    """
    recorded, model = read_document(name), open_model(name)
    return differences(recorded, make_document(name, model, progress), [node.name for node in model.graph.nodes])


def explain(name: str, found: Sequence[str]) -> str:
    """These differences for people, with what to do about them."""
    return "\n".join(
        (
            f"zoo:{name} is planned otherwise than {golden_path(name).name} has it:",
            *(f"  {line}" for line in found),
            "A refactoring should change no plan. If this one is meant to, record it anew, and say in the commit which",
            f"plan changes and why: {_command(name)}",
        )
    )


def record(name: str, progress: Progress | None = None) -> bool:
    """Write what is planned now; whether that changed the file. It appears whole, under a temporary name first."""
    path = golden_path(name)
    text = as_text(make_document(name, open_model(name), progress))
    if path.exists() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default all: {', '.join(zoo.names())}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    parser.add_argument("--json", action="store_true", help="print per model what differs, or whether it was written")
    arguments = parser.parse_args()
    results: Document = {}
    is_same = True
    for name in arguments.models or zoo.names():
        try:
            zoo.info(name)
            begin = time.perf_counter()
            if arguments.check:
                found = compare(name, _tell(name))
                results[name] = {"differences": found}
                said = "differs" if found else "as recorded"
                is_same = is_same and not found
                if found and not arguments.json:
                    print(explain(name, found))
            else:
                results[name] = {"changed": record(name, _tell(name))}
                said = "recorded" if results[name]["changed"] else "unchanged"
        except ConfigError as error:
            parser.error(str(error))
        print(f"{name}: {said} ({time.perf_counter() - begin:.1f} s)", file=sys.stderr)
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 0 if is_same else 1


def _tell(name: str) -> Progress:
    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {done} of {total} \r", end="", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    raise SystemExit(main())
