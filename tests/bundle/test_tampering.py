"""What is damaged is refused with its name, and nothing of it runs."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import parallax
from parallax.bundle import CheckedFiles, read_bundle, read_manifest
from parallax.bundle import _open as opening
from parallax.bundle._digest import file_digest, signature
from tests.bundle._models import (
    bundle_files,
    compiled,
    copied,
    expected,
    feeds,
    forge,
    forge_plan,
    generation,
    sign,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cut, portable bundle of small files; tests work on copies."""
    return compiled(tmp_path_factory.mktemp("small"), cut=True, portable=True, width=96)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a whole model whose weights are too large to be read each time."""
    return compiled(tmp_path_factory.mktemp("large"), width=600)


def flip(path: Path, position: int) -> None:
    """Invert one bit."""
    with open(path, "r+b") as file:
        file.seek(position // 8)
        byte = file.read(1)[0]
        file.seek(position // 8)
        file.write(bytes([byte ^ (1 << position % 8)]))


def test_an_untouched_copy_opens(whole: Path, tmp_path: Path) -> None:
    session = parallax.InferenceSession(copied(whole, tmp_path / "m.plx"))
    fed = feeds(width=96)
    np.testing.assert_allclose(session.run(None, fed)[0], expected(whole.parent / "model.onnx", fed), rtol=1e-5)


def test_a_flipped_bit_anywhere_is_reported(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    rng = random.Random(5)
    for path in bundle_files(bundle):
        bits = path.stat().st_size * 8
        for position in {0, bits - 1, *(rng.randrange(bits) for _ in range(6))}:
            flip(path, position)
            with pytest.raises(parallax.BundleError):
                parallax.InferenceSession(bundle)
            flip(path, position)
    parallax.InferenceSession(bundle)


def test_every_single_bit_of_the_manifest_counts(large: Path, tmp_path: Path) -> None:
    # In place: a file that is cut and written anew costs some systems a flush.
    path = Path(shutil.copy(large / "manifest.json", tmp_path))
    for position in range(path.stat().st_size * 8):
        flip(path, position)
        with pytest.raises(parallax.BundleError):
            read_manifest(tmp_path)
        flip(path, position)
    read_manifest(tmp_path)


def test_a_file_cut_short_is_reported(whole: Path, tmp_path: Path) -> None:
    for number, path in enumerate(bundle_files(whole)):
        bundle = copied(whole, tmp_path / f"{number}.plx")
        victim = bundle / path.relative_to(whole)
        for size in (victim.stat().st_size - 1, 0):
            os.truncate(victim, size)
            with pytest.raises(parallax.BundleError):
                parallax.InferenceSession(bundle)


def test_a_missing_file_is_reported_by_name(whole: Path, tmp_path: Path) -> None:
    for number, path in enumerate(bundle_files(whole)):
        bundle = copied(whole, tmp_path / f"{number}.plx")
        (bundle / path.relative_to(whole)).unlink()
        with pytest.raises(parallax.BundleError, match=r"missing|no manifest"):
            parallax.InferenceSession(bundle)


def test_an_extra_file_is_reported_by_name(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    (generation(bundle) / "segments" / "more.data").write_bytes(b"x")
    with pytest.raises(parallax.BundleError, match=r"more\.data"):
        parallax.InferenceSession(bundle)


def test_what_a_file_manager_leaves_is_no_damage(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    (bundle / ".DS_Store").write_bytes(b"x")
    (generation(bundle) / ".DS_Store").write_bytes(b"x")
    parallax.InferenceSession(bundle)


def test_a_swapped_file_is_reported(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    first, second = sorted((generation(bundle) / "segments").glob("*.data"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(parallax.BundleError, match="digest"):
        parallax.InferenceSession(bundle)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need privileges on this system")
def test_a_link_in_place_of_a_file_is_refused(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    victim = next((generation(bundle) / "segments").glob("*.data"))
    victim.rename(tmp_path / "elsewhere.data")
    victim.symlink_to(tmp_path / "elsewhere.data")
    with pytest.raises(parallax.BundleError, match="link"):
        parallax.InferenceSession(bundle)


@pytest.mark.skipif(os.name == "nt", reason="links need privileges on this system")
def test_a_link_in_place_of_the_files_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    folder = generation(bundle)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(parallax.BundleError, match="link"):
        parallax.InferenceSession(bundle)


@pytest.mark.skipif(os.name == "nt", reason="links need privileges on this system")
def test_a_bundle_may_be_reached_by_a_link(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "link.plx").symlink_to(copied(whole, tmp_path / "m.plx"))
    parallax.InferenceSession(tmp_path / "link.plx")


def test_an_empty_folder_and_one_of_something_else_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "empty.plx").mkdir()
    with pytest.raises(parallax.BundleError, match="no manifest"):
        parallax.InferenceSession(tmp_path / "empty.plx")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(parallax.BundleError, match="not the manifest of a bundle"):
        parallax.InferenceSession(tmp_path / "other")


# -- large files ----------------------------------------------------------------------------------------------


def data_file(bundle: Path) -> Path:
    return generation(bundle) / "segments" / "0000.data"


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose digests were computed in opening bundles."""
    computed: list[str] = []
    compute = file_digest

    def noted(path: str) -> str:
        computed.append(os.path.basename(path))
        return compute(path)

    monkeypatch.setattr(opening, "file_digest", noted)
    return computed


def test_large_files_are_read_at_the_first_opening_and_after_a_write(
    large: Path, tmp_path: Path, digests: list[str]
) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    age(bundle)

    def opened(**options: Any) -> bool:
        digests.clear()
        parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache", **options)
        assert "0000.onnx" in digests, "small files are read each time"
        return "0000.data" in digests

    assert opened()
    assert not opened()
    assert opened(verify="full")
    assert not opened(verify="never")
    os.utime(data_file(bundle))
    assert opened()


def age(bundle: Path) -> None:
    """Wait until a write would show in the files' times."""
    from parallax.bundle._digest import wait_until_settled

    wait_until_settled({path.name: path for path in bundle_files(bundle)})


def test_a_compiler_has_read_what_it_wrote(large: Path, tmp_path: Path, digests: list[str]) -> None:
    bundle = parallax.compile(large.parent / "model.onnx", tmp_path / "m.plx", cache_dir=tmp_path / "cache")
    parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
    assert "0000.data" not in digests


def test_a_flipped_bit_in_a_large_file_is_reported_after_it_was_found_right(large: Path, tmp_path: Path) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    age(bundle)
    parallax.InferenceSession(bundle)
    before = data_file(bundle).stat()
    flip(data_file(bundle), data_file(bundle).stat().st_size * 4 + 3)
    with pytest.raises(parallax.BundleError, match="digest"):
        parallax.InferenceSession(bundle)
    if os.name != "nt":  # where the time of status change is that of creation
        os.utime(data_file(bundle), ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(parallax.BundleError, match="digest"):
            parallax.InferenceSession(bundle)


def test_a_file_written_just_now_is_not_remembered(large: Path, tmp_path: Path) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    future = data_file(bundle).stat().st_mtime_ns + 3_600_000_000_000
    os.utime(data_file(bundle), ns=(future, future))  # as if the clock had not reached the next tick
    parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
    assert not CheckedFiles(str(bundle.resolve()), tmp_path / "cache").load()


def test_full_verification_does_not_believe_what_is_remembered(large: Path, tmp_path: Path) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    flip(data_file(bundle), 12345)
    checked = CheckedFiles(str(bundle.resolve()), tmp_path / "cache")
    found = signature(data_file(bundle))
    record = next(entry for entry in read_manifest(bundle)[0].files if entry.path.endswith(".data"))
    checked.store({record.path: (found, record.sha256)})  # what damage below the file system looks like
    read_bundle(bundle, cache_dir=tmp_path / "cache")
    with pytest.raises(parallax.BundleError, match="digest"):
        parallax.InferenceSession(bundle, verify="full", cache_dir=tmp_path / "cache")


def test_a_file_changed_while_it_is_opened_is_noticed(large: Path, tmp_path: Path) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    with pytest.raises(parallax.BundleError, match="changed while"):
        opening.use_bundle(bundle, lambda opened: os.utime(data_file(opened.path), ns=(1, 1)))


# -- forgeries: digests that agree ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "/etc/hostname",
        "..\\outside.txt",
        "C:outside.txt",
        "{g}/../../outside.txt",
        "{g}//x",
        "{g}",
        "x",
    ],
)
def test_a_manifest_that_names_files_outside_the_bundle_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    (tmp_path / "outside.txt").write_text("secret")
    record = {"path": name.format(g=generation(bundle).name), "size": 6, "sha256": "0" * 64}
    forge(bundle, lambda manifest: manifest["files"].append(record))
    with pytest.raises(parallax.BundleError, match="outside the bundle"):
        parallax.InferenceSession(bundle)


@pytest.mark.parametrize("key", ["plan", "portable", "graph"])
def test_only_files_with_a_digest_are_used(key: str, whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")

    def edit(manifest: dict[str, Any]) -> None:
        if key == "graph":
            manifest["segments"][0]["graph"] = "../model.onnx"
        else:
            manifest[key] = "../model.onnx"

    forge(bundle, edit)
    with pytest.raises(parallax.BundleError, match="not among its files"):
        parallax.InferenceSession(bundle)


def test_a_manifest_that_names_a_file_twice_is_refused(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    forge(bundle, lambda manifest: manifest["files"].append(manifest["files"][0]))
    with pytest.raises(parallax.BundleError, match="twice"):
        parallax.InferenceSession(bundle)


def set_option(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["options"].update(values)


MANIFEST_EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no cores": lambda manifest: manifest.update(cores=0),
    "more cores than any machine has": lambda manifest: manifest.update(cores=1 << 40),
    "weights of negative size": lambda manifest: manifest.update(weight_bytes=-1),
    "weights larger than any memory": lambda manifest: manifest.update(weight_bytes=1 << 60),
    "another model's structure": lambda manifest: manifest.update(structure_digest="0" * 40),
    "no threads": set_option(threads=0),
    "threads beyond any": set_option(threads=1 << 40),
    "a policy that is none": set_option(policy="greedy"),
    "a gain that is no number": set_option(min_gain="nan"),
    "a gain of 100%": set_option(min_gain="1.0"),
    "a gain in words": set_option(min_gain="most"),
    "a shape twice": set_option(shapes=[["x", [1]], ["x", [2]]]),
    "a shape below zero": set_option(shapes=[["x", [-1]]]),
    "a negative limit": set_option(memory_limit=-1),
    "no source": lambda manifest: manifest["source"].update(files=[]),
    "a source without a digest": lambda manifest: manifest["source"]["files"][0].update(sha256=""),
    "an input twice": lambda manifest: manifest["interface"]["inputs"].append("x"),
    "another input": lambda manifest: manifest["interface"].update(inputs=["z"]),
    "an input more": lambda manifest: manifest["interface"]["inputs"].append("z"),
    "an input that is made": lambda manifest: manifest["interface"]["inputs"].append("left_1_tanh"),
    "an input that cannot be left out": lambda manifest: manifest["interface"].update(inputs=[], overridable=["x"]),
    "another output": lambda manifest: manifest["interface"].update(outputs=["z"]),
    "a graph for two segments": lambda manifest: manifest["segments"][1].update(graph=manifest["segments"][0]["graph"]),
    "a plan for a graph": lambda manifest: manifest["segments"][0].update(graph=manifest["plan"]),
    "a segment less": lambda manifest: manifest["segments"].pop(),
    "a digest in capitals": lambda manifest: manifest["files"][0].update(sha256="A" * 64),
    "a file of negative size": lambda manifest: manifest["files"][0].update(size=-1),
}


@pytest.mark.parametrize("edit", MANIFEST_EDITS.values(), ids=MANIFEST_EDITS)
def test_a_manifest_that_says_what_cannot_be_is_refused_though_its_digest_agrees(
    edit: Callable[[dict[str, Any]], object], whole: Path, tmp_path: Path
) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    forge(bundle, lambda manifest: edit(manifest), rehash=False)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(bundle).run(None, feeds(width=96))


def test_a_file_that_no_part_uses_is_refused_though_it_is_listed(large: Path, tmp_path: Path) -> None:
    bundle = copied(large, tmp_path / "m.plx")
    (generation(bundle) / "more.bin").write_bytes(b"more")
    record = {"path": f"{generation(bundle).name}/more.bin", "size": 4, "sha256": "0" * 64}
    forge(bundle, lambda manifest: manifest["files"].append(record))
    with pytest.raises(parallax.BundleError, match="no part of the bundle uses"):
        parallax.InferenceSession(bundle)


@pytest.mark.parametrize("change", ["name", "type", "count", "none"])
def test_a_declaration_of_other_outputs_is_refused_though_its_digest_agrees(
    change: str, whole: Path, tmp_path: Path
) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    path = generation(bundle) / "outputs.onnx"
    model = onnx.load(path)
    told = model.graph.input
    if change == "name":
        told[0].name = "z"
    elif change == "type":
        told[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    elif change == "count":
        told.append(told[0])
    path.write_bytes(b"nothing" if change == "none" else model.SerializeToString())
    forge(bundle, lambda manifest: None)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(bundle)


def test_what_a_manifest_names_is_never_removed_outside_the_bundle(whole: Path, tmp_path: Path) -> None:
    """Compiling over a bundle removes the generation that its manifest names."""
    bundle = copied(whole, tmp_path / "m.plx")
    (tmp_path / "precious").mkdir()
    forge(bundle, lambda manifest: manifest.update(generation="../precious"))
    parallax.compile(whole.parent / "model.onnx", bundle)
    assert (tmp_path / "precious").is_dir()


PLAN_EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a version from elsewhere": lambda plan: plan.update(format_version=99),
    "a width beyond the cores": lambda plan: plan["segments"][0].update(width=64),
    "a cycle": lambda plan: plan["segments"][0].update(predecessors=[len(plan["segments"]) - 1]),
    "a missing segment": lambda plan: plan["segments"].pop(),
    "an input from nowhere": lambda plan: plan["segments"][-1].update(inputs=["nowhere"]),
    "another tensor": lambda plan: plan["segments"][0].update(outputs=["start2"]),
    "another model's": lambda plan: plan.update(structure_digest="0" * 40),
    "other cores": lambda plan: plan.update(cores=7),
    "a missing field": lambda plan: plan.pop("lanes"),
    "no plan at all": lambda plan: plan.clear(),
    "a device": lambda plan: plan["segments"][0].update(backend="openvino"),
    "rows of its own": lambda plan: plan.update(rows_permille=500),
    "constants of its own": lambda plan: plan.update(constants_shapes=[]),
    "a device's queue": lambda plan: plan["segments"][0].update(width=0, lane=1),
    "an output that is fed": lambda plan: plan["segments"][0].update(outputs=["x"]),
}


@pytest.mark.parametrize("edit", PLAN_EDITS.values(), ids=PLAN_EDITS)
def test_a_plan_that_cannot_be_run_is_refused_though_its_digest_agrees(
    edit: Callable[[dict[str, Any]], object], whole: Path, tmp_path: Path
) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    forge_plan(bundle, edit)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(bundle)


def test_graphs_in_the_wrong_order_are_refused_though_their_digests_agree(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    forge(bundle, lambda manifest: manifest["segments"].reverse())
    with pytest.raises(parallax.BundleError, match="not lie where they belong"):
        parallax.InferenceSession(bundle)


def test_graphs_that_changed_places_are_refused_though_their_digests_agree(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    folder = generation(bundle) / "segments"
    for suffix in ("onnx", "data"):
        one, other = folder / f"0001.{suffix}", folder / f"0002.{suffix}"
        one.rename(folder / "spare")
        other.rename(one)
        (folder / "spare").rename(other)
        for path in (one, other):
            if suffix == "onnx":
                # The graph names its data: another of the same length, so that it stays a message.
                path.write_bytes(
                    path.read_bytes().replace(b"0001.data", b"....data").replace(b"0002.data", b"0001.data")
                )
                path.write_bytes(path.read_bytes().replace(b"....data", b"0002.data"))

    def edit(manifest: dict[str, Any]) -> None:
        first, second = manifest["segments"][1:3]
        first["weights"], second["weights"] = second["weights"], first["weights"]

    forge(bundle, edit)
    with pytest.raises(parallax.BundleError, match="not that of segment"):
        parallax.InferenceSession(bundle)


def test_a_graph_that_is_none_is_refused_though_its_digest_agrees(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    (generation(bundle) / "segments" / "0000.onnx").write_bytes(b"not a graph")
    forge(bundle, lambda manifest: None)
    with pytest.raises(parallax.BundleError, match="this is no graph"):
        parallax.InferenceSession(bundle)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*at, key))
    if isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from paths(value[index], (*at, index))


def test_no_content_of_a_manifest_ends_in_anything_but_a_bundle_error(whole: Path, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "m.plx")
    original = json.loads((whole / "manifest.json").read_text())["manifest"]
    for place in paths(original):
        for strange in (None, -1, 2**70, "", "../x", "\ud800", [], {}, True, 1.5, ["x", 1]):
            manifest: Any = copy.deepcopy(original)
            if place:
                target = manifest
                for key in place[:-1]:
                    target = target[key]
                target[place[-1]] = strange
            else:
                manifest = strange
            sign(bundle / "manifest.json", manifest)
            with contextlib.suppress(parallax.BundleError):
                read_bundle(bundle)
