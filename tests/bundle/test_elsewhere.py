"""A bundle made for another machine, runtime or version is made anew, or refused with the command for that."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import parallax
from parallax.bundle import describe_mismatch, read_bundle, read_manifest, rebuild_command
from parallax.cli import app
from parallax.machine import available_cores
from tests.bundle._models import branching, compiled, expected, feeds, forge

ELSEWHERE: dict[str, dict[str, Any]] = {
    "another CPU": {"machine": "Some CPU|01234567|Linux x86_64"},
    "another runtime": {"runtime_version": "1.0.0"},
    "another build of the runtime": {"runtime_build": "ORT Build Info: somewhere else"},
    "another version of Parallax": {"parallax_version": "0.0.1"},
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_bundle_from_elsewhere_is_refused_with_the_command_that_makes_it_anew(
    change: dict[str, Any], tmp_path: Path
) -> None:
    bundle = compiled(tmp_path)
    forge(bundle, lambda manifest: manifest.update(change))
    with pytest.raises(parallax.BundleMismatchError) as caught:
        parallax.InferenceSession(bundle)
    assert f"parallax compile {tmp_path / 'model.onnx'} --output {bundle}" in str(caught.value)
    assert str(next(iter(change.values()))) in str(caught.value)


def test_a_bundle_of_another_format_says_so(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    forge(bundle, lambda manifest: manifest.update(format_version=99, something="new"))
    with pytest.raises(parallax.BundleError, match="format version 99"):
        parallax.InferenceSession(bundle)


def test_the_command_that_is_given_makes_the_bundle_anew(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, cut=True, shapes={"x": (3, 64)})
    before = read_manifest(bundle)[0]
    forge(bundle, lambda manifest: manifest.update(runtime_version="1.0.0"))
    with pytest.raises(parallax.BundleMismatchError) as caught:
        parallax.InferenceSession(bundle)
    program, *arguments = shlex.split(str(caught.value).partition("make it anew: ")[2])
    assert program == "parallax"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    after = read_bundle(bundle)
    assert after.manifest.options == before.options
    assert len(after.plan.segments) == len(before.segments) > 1
    np.testing.assert_allclose(
        parallax.InferenceSession(bundle).run(None, feeds())[0], expected(tmp_path / "model.onnx", feeds()), rtol=1e-5
    )


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_portable_bundle_from_elsewhere_is_made_anew_once(
    cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = compiled(tmp_path, cut=cut, portable=True)
    want = expected(tmp_path / "model.onnx", feeds())
    (tmp_path / "model.onnx").unlink()
    forge(bundle, lambda manifest: manifest.update(ELSEWHERE["another CPU"]))
    content = (bundle / "manifest.json").read_bytes()
    for turn in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            session = parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
        assert ("Some CPU" in caplog.text and "making it anew" in caplog.text) is (turn == 0)
        assert len(list((tmp_path / "cache" / "bundles").iterdir())) == 1
        assert (len(session.plan.segments) > 1) is cut
        np.testing.assert_allclose(session.run(None, feeds())[0], want, rtol=1e-5)
    assert (bundle / "manifest.json").read_bytes() == content, "the bundle itself is left alone"


def test_a_portable_form_that_was_changed_is_not_built_from(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, portable=True)
    forge(bundle, lambda manifest: manifest.update(ELSEWHERE["another CPU"]))
    portable = next(bundle.glob("g-*/portable/model.onnx"))
    content = bytearray(portable.read_bytes())
    content[len(content) // 2] ^= 1
    portable.write_bytes(content)
    with pytest.raises(parallax.BundleError, match="digest"):
        parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")


def test_a_manifest_that_claims_anothers_source_does_not_take_its_place_in_the_cache(tmp_path: Path) -> None:
    victim = branching(tmp_path / "victim.onnx", seed=1)
    claimed = read_manifest(parallax.compile(victim, tmp_path / "v.plx"))[0].source
    bundle = compiled(tmp_path, portable=True)

    def claim(manifest: dict[str, Any]) -> None:
        manifest["source"]["files"][0] |= {"sha256": claimed.files[0].sha256, "size": claimed.files[0].size}
        manifest.update(ELSEWHERE["another CPU"])

    forge(bundle, claim)
    parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
    session = parallax.InferenceSession(victim, cache=True, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(victim, feeds()))


def with_plan(bundle: Path, edit: Callable[[dict[str, Any]], None], **manifest: Any) -> None:
    """Change a bundle's plan, and entries of its manifest."""
    path = next(bundle.glob("g-*/plan.json"))
    plan = json.loads(path.read_text())
    edit(plan)
    path.write_text(json.dumps(plan))
    forge(bundle, lambda entries: entries.update(manifest))


def with_cores(bundle: Path, cores: int) -> None:
    """Make a bundle one of a machine with as many cores."""
    with_plan(bundle, lambda plan: plan.update(cores=cores), cores=cores)


def test_a_plan_for_another_number_of_cores_is_refused(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    with_cores(bundle, available_cores() + 1)
    with pytest.raises(parallax.BundleMismatchError, match="cores"):
        parallax.InferenceSession(bundle)


def test_a_number_of_threads_that_the_caller_chose_is_theirs(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, threads=available_cores() + 1)
    session = parallax.InferenceSession(bundle)
    assert session.get_session_options().intra_op_num_threads == available_cores() + 1
    assert parallax.InferenceSession(bundle, threads=1).get_session_options().intra_op_num_threads == 1


def test_fewer_threads_than_a_bundle_was_tuned_with_are_all_it_takes(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, threads=available_cores() + 1)
    with_plan(bundle, lambda plan: plan["provenance"].update(source="measured"))
    tuned = parallax.InferenceSession(bundle)
    assert tuned.plan.provenance.source == "measured"
    assert tuned.get_session_options().intra_op_num_threads == available_cores() + 1
    assert parallax.InferenceSession(bundle, threads=1).get_session_options().intra_op_num_threads == 1


def test_a_cut_plan_runs_on_the_cores_it_was_made_for_only(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, cut=True)
    with pytest.raises(parallax.BundleMismatchError, match="cores"):
        parallax.InferenceSession(bundle, threads=3)
    parallax.InferenceSession(bundle, threads=2)


def test_a_bundle_names_nothing_that_differs_here(tmp_path: Path) -> None:
    manifest = read_manifest(compiled(tmp_path))[0]
    assert describe_mismatch(manifest, cores=available_cores()) == ()
    assert len(describe_mismatch(manifest, cores=available_cores() + 1)) == 1


def test_the_command_repeats_every_option(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, threads=3, policy="sequential", shapes={"x": (1, 64)}, min_gain=0.5, portable=True)
    words = shlex.split(rebuild_command(read_manifest(bundle)[0], bundle))
    assert words[2] == str(next(bundle.glob("g-*/portable/model.onnx")))
    assert words[3:] == [
        "--output", str(bundle), "--shape", "x=1,64", "--threads", "3", "--policy", "sequential", "--min-gain", "0.5",
        "--portable",
    ]  # fmt: skip
