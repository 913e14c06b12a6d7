"""Write a bundle: one optimised graph per segment, weights packed for this CPU, and all that says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import onnxruntime

from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, both, save_optimised
from parallax.bundle._checks import declaration_path, graph_path, names_path, plan_path, portable_path
from parallax.bundle._declaration import describe_outputs
from parallax.bundle._device_parts import DeviceParts
from parallax.bundle._digest import (
    SMALL_BYTES,
    CheckedFiles,
    file_digest,
    signature,
    wait_until_settled,
)
from parallax.bundle._identity import parallax_version, runtime_build
from parallax.bundle._manifest import (
    BUNDLE_FORMAT_VERSION,
    CompileOptions,
    FileRecord,
    InterfaceRecord,
    Manifest,
    SegmentRecord,
    SourceFile,
    SourceRecord,
    render_manifest,
)
from parallax.bundle._names import store_names
from parallax.bundle._publish import Workspace
from parallax.engine import store_declaration
from parallax.errors import BackendError, ConfigError, UnsupportedModelError
from parallax.model import Model, OpenFile, StoredWeight, keep_part, save_arranged, save_segment
from parallax.profile import hardware_fingerprint
from parallax.schedule import Plan, Segment

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""

# How long one run takes depends on data where these are.
_UNBOUNDED = frozenset({"Loop", "Scan"})

_PORTABLE_NAME = "model.onnx"
_PIECE_BYTES = 8 << 20


def write_bundle(
    model: Model,
    plan: Plan,
    target: str | os.PathLike[str],
    *,
    options: CompileOptions,
    parts: Model | None = None,
    devices: DeviceParts | None = None,
    source: SourceRecord | None = None,
    portable: bool = False,
    trimming: str | None = None,
    optimising: RuntimeOptions | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile ``plan`` into a bundle at ``target``, replacing the bundle that is there.

    Appears whole or not at all, also if this process is killed; see ``_publish``. Weights stream from the model's
    files: the memory it takes is that of one segment's packed weights. Needs disk space for about four
    times the weights while it works, and twice (packed and as they were) after.

    Args:
        model: without ``shapes``: it is kept for all shapes.
        plan: for this model.
        options: recorded, so that the bundle can be made again.
        parts: the model whose nodes the plan speaks of, where that is not ``model`` but that split by rows or in
            slices.
        devices: what the plan runs on devices; None where that is nothing.
        source: of the model, if it is known; computed otherwise, by reading its files.
        portable: keep the model itself in the bundle too, so that it can be rebuilt on other machines.
        trimming: how runs leave out padding, as JSON; kept as it is.
        optimising: options that the runtime optimises segments with; None: its defaults.
        cache_dir: where to remember that the files' digests are right.

    Returns: the bundle's path.

    Raises:
        ConfigError: the target cannot be written, or is something else than a bundle.
        BackendError: the runtime refuses the model or a part of it.
    """
    report = progress or _silent
    cut = model if parts is None else parts
    with Workspace(Path(target)) as workspace:
        folder, generation = workspace.folder, workspace.generation
        (folder / "segments").mkdir()
        segments = []
        told = b""
        report("compile", 0, len(plan.segments))
        for number, segment in enumerate(plan.segments):
            name = graph_path(generation, number)
            region = None if devices is None else devices.regions.get(number)
            if region is None or region.is_emulated:
                weights, told = _compile_segment(
                    cut, plan, segment, workspace.scratch, folder.parent / name, optimising or RuntimeOptions()
                )
            else:
                weights, told = _keep_segment(cut, segment, workspace.scratch, folder.parent / name)
            nodes = () if plan.is_whole else tuple(cut.graph.nodes[index].name for index in segment.nodes)
            segments.append(SegmentRecord(graph=name, nodes=nodes, weights=weights, region=region))
            report("compile", number + 1, len(plan.segments))
        outputs = told if plan.is_whole and not model.is_inlined else describe_outputs(model, plan)
        (folder.parent / declaration_path(generation)).write_bytes(outputs)
        (folder.parent / names_path(generation)).write_bytes(store_names(model))
        (folder / "plan.json").write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")
        if portable:
            _keep_portable(model, folder / "portable")
        graph = model.graph
        files = dict(sorted(_files(folder, generation)))
        wait_until_settled(files)
        records, checked = [], {}
        for number, (name, path) in enumerate(files.items()):
            report("digest", number, len(files))
            found = signature(path)
            digest = file_digest(path)
            records.append(FileRecord(path=name, size=found[2], sha256=digest))
            if found[2] > SMALL_BYTES:
                checked[name] = (found, digest)
        report("digest", len(files), len(files))
        manifest = Manifest(
            format_version=BUNDLE_FORMAT_VERSION,
            generation=generation,
            parallax_version=parallax_version(),
            runtime_version=onnxruntime.__version__,
            runtime_build=runtime_build(),
            machine=hardware_fingerprint(),
            cores=plan.cores,
            options=options,
            source=source or describe_source(model),
            structure_digest=plan.structure_digest,
            weight_bytes=model.weight_bytes,
            interface=InterfaceRecord(
                inputs=tuple(info.name for info in graph.inputs),
                overridable=tuple(info.name for info in graph.overridable),
                outputs=tuple(info.name for info in graph.outputs),
                unbounded=any(node.op_type in _UNBOUNDED for _, node in graph.walk()),
            ),
            trimming=trimming,
            plan=plan_path(generation),
            segments=tuple(segments),
            portable=portable_path(generation) if portable else None,
            devices=() if devices is None else devices.devices,
            files=tuple(records),
        )
        workspace.publish(render_manifest(manifest))
    CheckedFiles(str(workspace.target), cache_dir).store(checked)
    return Path(target)


def describe_source(model: Model) -> SourceRecord:
    """Digests of the files a model was read from, as they were then; of its bytes, where there are none."""
    files = model.files
    if files.model is None:
        whole = model.as_given.whole()
        assert isinstance(whole, bytes)
        first = SourceFile(location="", size=len(whole), sha256=sha256(whole).hexdigest())
    else:
        first = _described(os.path.basename(files.model.path), files.model)
    others = [_described(location, file) for location, file in sorted(files.external.items())]
    files.check_intact()
    return SourceRecord(path=None if files.model is None else files.model.path, files=(first, *others))


def _described(location: str, file: OpenFile) -> SourceFile:
    return SourceFile(location=location, size=len(file.buffer), sha256=file.sha256())


def _compile_segment(
    model: Model, plan: Plan, segment: Segment, scratch: Path, target: Path, options: RuntimeOptions
) -> tuple[tuple[StoredWeight, ...], bytes]:
    """Through files, so that the runtime maps the weights it packs instead of holding them twice.

    Args:
        model: whose nodes the plan speaks of.

    Returns: the weights that are stored as they were, and what the runtime says of the outputs.
    """
    optimised = scratch / "optimised.onnx"
    staged = _stage(model, plan, segment, scratch)
    try:
        session = save_optimised(
            str(staged),
            str(optimised),
            data_name="optimised.data",
            options=options,
            is_part=not plan.is_whole,
        )
    except FOREIGN_EXCEPTIONS as error:
        names = [model.graph.nodes[index].name for index in segment.nodes[:8]]
        raise both(BackendError, type(error))(
            f"the runtime refuses the model: {error}",
            where=f"segment {segment.name!r}, nodes {', '.join(names)}",
            fix="check that this ONNX Runtime knows the model's operators",
        ) from error
    for left in scratch.glob("segment.*"):
        left.unlink()
    told = store_declaration(session.outputs_meta)
    del session  # which holds all that it packed
    weights = save_arranged(optimised, target)
    for left in scratch.iterdir():
        left.unlink()
    return weights, told


def _keep_segment(
    model: Model, segment: Segment, scratch: Path, target: Path
) -> tuple[tuple[StoredWeight, ...], bytes]:
    """Likewise, as it is, for a device that compiles it when the bundle is opened; without what the runtime says."""
    part = model.extract(segment.nodes, segment.inputs, segment.outputs, name=segment.name)
    return keep_part(part, scratch, target), b""


def _stage(model: Model, plan: Plan, segment: Segment, scratch: Path) -> Path:
    """Write what the runtime is to optimise; returns where."""
    graph = model.graph
    if model.doubly_defined is not None:
        raise UnsupportedModelError(
            f"a bundle cannot keep what only the runtime decides on: {model.doubly_defined}",
            where=None if model.path is None else str(model.path),
            fix="define each tensor once, or open the model itself",
        )
    if model.why_whole is not None:
        part = model.as_defined()
    elif plan.is_whole:
        inputs = [info.name for info in (*graph.inputs, *graph.overridable)]
        outputs = [info.name for info in graph.outputs]
        part = model.extract(range(len(graph.nodes)), inputs, outputs, name=segment.name)
    else:
        part = model.extract(segment.nodes, segment.inputs, segment.outputs, name=segment.name)
    staged = scratch / "segment.onnx"
    save_segment(part, staged)
    return staged


def _keep_portable(model: Model, folder: Path) -> None:
    """Copy the model and its external data as they were opened, wherever they lie by now."""
    folder.mkdir()
    target = folder / _PORTABLE_NAME
    files = model.files
    if files.model is not None:
        _copy(files.model, target)
    else:
        whole = model.as_given.whole()
        assert isinstance(whole, bytes)
        target.write_bytes(whole)
    for location, file in files.external.items():
        place = folder / location
        if Path(os.path.normpath(location)) == Path(target.name):
            raise ConfigError(
                f"the model's external data is called {location!r} as the model itself will be",
                where=file.path,
                fix="save the model with another name for its external data",
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, place)
    files.check_intact()


def _copy(file: OpenFile, place: Path) -> None:
    if file.is_at_path():
        shutil.copyfile(file.path, place)  # shares blocks where the file system can
        if file.is_at_path():
            return
    with open(place, "wb") as target:
        for start in range(0, len(file.buffer), _PIECE_BYTES):
            target.write(file.buffer[start : start + _PIECE_BYTES])


def _files(folder: Path, generation: str) -> Iterator[tuple[str, Path]]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            yield f"{generation}/{path.relative_to(folder).as_posix()}", path


def _silent(stage: str, done: int, total: int) -> None:
    """No progress was asked for."""
