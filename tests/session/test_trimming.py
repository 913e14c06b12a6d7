"""``padding="trim"``: the same answers from shorter runs, in every mode; or a refusal that names what is in the way."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import parallax
from parallax.bundle import read_bundle, read_manifest
from parallax.cli import app
from parallax.engine import EventRecorder, trim_feeds
from parallax.events import RunAdmitted
from parallax.model import BatchAxis
from parallax.serving._requests import RequestReader
from tests._threads import in_threads
from tests.bundle._models import forge
from tests.partition._encoders import LEAST, Choices, encoder, feeds

SIZE = 24
LENGTHS = (5, 9, 3)
DEVICE = "emulated:pixel-6-gpu"
CHOICES = Choices(mask="expanded", hidden=LEAST, head="mean", layers=2)
MODEL = encoder(CHOICES).SerializeToString()
FEEDS = feeds(LENGTHS, SIZE)

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "never split": {"split": "never"},
    "always split": {"split": "always", "threads": 2},
    "budget": {"memory_budget": "256MiB"},
    "split in a budget": {"memory_budget": "256MiB", "split": "always", "threads": 2},
    "shapes": {"shapes": {"ids": (3, SIZE), "mask": (3, SIZE)}, "split": "always", "threads": 2},
    "device": {
        "providers": [DEVICE, "CPUExecutionProvider"],
        "shapes": {"ids": (3, SIZE), "mask": (3, SIZE)},
        "split": "always",
        "threads": 2,
    },
    "watched": {"idle_trim_s": 60.0},
    "slimmed": {"slim": True},
}


def expected(model: bytes, fed: Any) -> Any:
    """What ONNX Runtime's own session answers, padding and all."""
    (answer,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, fed)
    return answer


WANT = expected(MODEL, FEEDS)


def cut_to(session: Any, fed: Any) -> int | None:
    """To how many places the session cuts these feeds; None where it does not."""
    made = trim_feeds(session.runners.current.trimming, fed)
    return None if made is None else int(made.feeds["ids"].shape[1])


def check(answer: Any, want: Any = WANT) -> None:
    np.testing.assert_allclose(answer, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_the_full_run(mode: str) -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", **MODES[mode])
    assert cut_to(session, FEEDS) == max(LENGTHS)
    for _ in range(3):  # other shapes than planned are followed from the second run on
        check(session.run(None, FEEDS)[0])
    check(session.run(["y"], FEEDS)[0])
    assert "padding is trimmed: 'ids', 'mask' are cut to the longest row of 'mask'" in session.plan.provenance.reason
    assert "padding is trimmed" in " ".join(session.explain().split())


def test_answers_would_be_others_if_padding_were_read() -> None:
    unmasked = FEEDS | {"mask": np.ones_like(FEEDS["mask"])}
    assert np.abs(expected(MODEL, unmasked) - WANT).max() > 0.01


def test_a_tuned_session_trims(tmp_path: Path) -> None:
    session = parallax.InferenceSession(
        MODEL, padding="trim", tune=True, calibration=FEEDS, threads=2, cache_dir=tmp_path, backends=()
    )
    assert cut_to(session, FEEDS) == max(LENGTHS)
    check(session.run(None, FEEDS)[0])


ENCODERS = st.builds(
    Choices,
    mask=st.sampled_from(["subtracted", "chosen", "filled", "expanded", "flattened"]),
    hidden=st.sampled_from([-1e4, -1e9, LEAST]),
    positions=st.sampled_from(["sliced", "counted", "summed", "none"]),
    head=st.sampled_from(["first", "mean", "largest", "hidden_zeroed"]),
    types=st.booleans(),
    layers=st.integers(1, 2),
    is_causal=st.booleans(),
    is_decomposed=st.booleans(),
)


@settings(max_examples=25)
@given(choices=ENCODERS, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), more=st.integers(0, 12))
def test_random_encoders_answer_as_without_it(choices: Choices, lengths: list[int], more: int) -> None:
    model = encoder(choices).SerializeToString()
    fed = feeds(lengths, max(lengths) + more, types=choices.types, seed=more)
    session = parallax.InferenceSession(model, padding="trim", threads=1)
    assert cut_to(session, fed) == (max(lengths) if more else None)
    check(session.run(None, fed)[0], expected(model, fed))


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 1, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0]],
        [[0, 1, 1, 1, 0, 0]],
        [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]],
        [[3, 1, 0, 0, 0, 0]],
    ],
    ids=str,
)
def test_masks_with_holes_and_empty_rows_run_in_full(rows: Sequence[Sequence[int]]) -> None:
    fed = feeds([1] * len(rows), 6) | {"mask": np.array(rows, np.int64)}
    session = parallax.InferenceSession(MODEL, padding="trim", threads=1)
    assert cut_to(session, fed) is None
    check(session.run(None, fed)[0], expected(MODEL, fed))


def test_a_mask_of_one_row_and_one_token() -> None:
    fed = feeds([1], SIZE)
    session = parallax.InferenceSession(MODEL, padding="trim")
    assert cut_to(session, fed) == 1
    check(session.run(None, fed)[0], expected(MODEL, fed))


def test_an_output_that_keeps_the_axis_is_filled_up() -> None:
    model = encoder(head="hidden_zeroed").SerializeToString()
    for options in ({}, {"split": "always", "threads": 2}):
        session = parallax.InferenceSession(model, padding="trim", **options)
        answer = session.run(None, FEEDS)[0]
        assert answer.shape == (3, SIZE, 8)
        check(answer, expected(model, FEEDS))
        assert "and 'y' filled up again" in session.plan.provenance.reason


@pytest.mark.parametrize("options", [{}, {"split": "always", "threads": 2}], ids=str)
def test_every_way_to_run_gives_the_same(options: dict[str, Any]) -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", **options)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in FEEDS.items()}
    check(session.run_with_ort_values(None, values)[0].numpy())
    check(asyncio.run(session.arun(None, FEEDS))[0])
    check(session.run(None, {name: array.tolist() for name, array in FEEDS.items()})[0])
    run_options = onnxruntime.RunOptions()
    run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    check(session.run(None, FEEDS, run_options)[0])
    binding = session.io_binding()
    for name, array in FEEDS.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    check(binding.copy_outputs_to_cpu()[0])
    assert session.run_many([FEEDS, FEEDS])[1][0].shape == WANT.shape


@pytest.mark.parametrize("head", ["mean", "hidden_zeroed"])
def test_asynchronous_runs_trim(head: str) -> None:
    model = encoder(head=head).SerializeToString()
    session = parallax.InferenceSession(model, padding="trim")
    done = threading.Event()
    found: list[Any] = []

    def ended(results: Any, data: Any, error: str) -> None:
        found.extend((results, data, error))
        done.set()

    session.run_async(None, FEEDS, ended, "data")
    assert done.wait(60)
    results, data, error = found
    assert (data, error) == ("data", "")
    check(results[0], expected(model, FEEDS))


@pytest.mark.parametrize("mode", ["default", "split in a budget"])
def test_eight_threads(mode: str) -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", **MODES[mode])
    many = [feeds([1 + number, 4, 2 * number + 1], SIZE, seed=number) for number in range(8)]
    wanted = [expected(MODEL, fed) for fed in many]

    def work(number: int) -> None:
        for turn in range(10):
            chosen = (number + turn) % 8
            check(session.run(None, many[chosen])[0], wanted[chosen])

    in_threads(8, work)


# -- rows of unlike lengths ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A model whose weights take long to read, as far as their bytes tell."""
    return encoder(head="mean", vocabulary=1_100_000).SerializeToString()


def runs_of(recorder: EventRecorder) -> int:
    """Since it was last asked."""
    return sum(isinstance(event, RunAdmitted) for event in recorder.take())


@pytest.mark.parametrize("options", [{}, {"split": "always", "threads": 2}], ids=str)
def test_rows_of_unlike_lengths_run_in_groups(heavy: bytes, options: dict[str, Any]) -> None:
    size, lengths = 60, [3, 60, 5, 4, 58, 2, 60, 1]
    fed = feeds(lengths, size)
    recorder = EventRecorder()
    session = parallax.InferenceSession(heavy, padding="trim", observers=[recorder], **options)
    assert session.runners.current.trimming.rows == (0,)
    assert "rows of unlike lengths run in groups" in session.plan.provenance.reason
    check(session.run(None, fed)[0], expected(heavy, fed))
    check(session.run(["y", "y"], fed)[1], expected(heavy, fed))
    assert runs_of(recorder) == 4, "two groups of each run"
    alike = feeds([20] * 8, size)
    check(session.run(None, alike)[0], expected(heavy, alike))
    assert runs_of(recorder) == 1


def test_rows_of_light_models_run_together() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim")
    assert session.runners.current.trimming.rows is None


def test_a_bundle_groups_rows(heavy: bytes, tmp_path: Path) -> None:
    fed = feeds([3, 60, 5, 58], 60)
    session = parallax.InferenceSession(parallax.compile(heavy, tmp_path / "m.plx", padding="trim"))
    assert session.runners.current.trimming.rows == (0,)
    check(session.run(None, fed)[0], expected(heavy, fed))


# -- bundles, copies, other plans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"split": "always", "threads": 2}], ids=["whole", "split"])
def test_a_bundle_trims(options: dict[str, Any], tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", padding="trim", **options)
    session = parallax.InferenceSession(bundle)
    assert cut_to(session, FEEDS) == max(LENGTHS)
    check(session.run(None, FEEDS)[0])
    assert "padding is trimmed" in session.plan.provenance.reason
    assert read_manifest(bundle)[0].options.padding == "trim"
    check(parallax.InferenceSession(bundle, padding="trim").run(None, FEEDS)[0])
    copy = pickle.loads(pickle.dumps(session))
    assert cut_to(copy, FEEDS) == max(LENGTHS)


def test_a_bundle_with_a_device_trims(tmp_path: Path) -> None:
    mode = MODES["device"]
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", padding="trim", **mode)
    session = parallax.InferenceSession(bundle, providers=mode["providers"])
    assert any(segment.backend == DEVICE for segment in session.plan.segments)
    assert cut_to(session, FEEDS) == max(LENGTHS)
    for _ in range(3):
        check(session.run(None, FEEDS)[0])
    full = feeds([SIZE, 3, 5], SIZE)
    check(session.run(None, full)[0], expected(MODEL, full))


def test_the_command_line_compiles_with_it(tmp_path: Path) -> None:
    path, bundle = tmp_path / "model.onnx", tmp_path / "m.plx"
    path.write_bytes(MODEL)
    done = CliRunner().invoke(app, ["compile", str(path), "--output", str(bundle), "--padding", "trim"])
    assert done.exit_code == 0, done.output
    assert cut_to(parallax.InferenceSession(bundle), FEEDS) == max(LENGTHS)
    told = CliRunner().invoke(app, ["bundle", "info", str(bundle), "--json"])
    assert json.loads(told.stdout)["options"]["padding"] == "trim"
    assert "--padding trim" in CliRunner().invoke(app, ["bundle", "info", str(bundle)], env={"COLUMNS": "200"}).stdout


def test_a_bundle_without_it_refuses_it(tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx")
    assert read_manifest(bundle)[0].trimming is None
    with pytest.raises(parallax.ConfigError, match="padding= is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, padding="trim")


def test_a_bundle_made_anew_elsewhere_trims(tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", padding="trim", portable=True)
    forge(bundle, lambda manifest: manifest.update(machine="Some CPU|01234567|Linux x86_64"))
    session = parallax.InferenceSession(bundle, cache_dir=tmp_path / "cache")
    assert cut_to(session, FEEDS) == max(LENGTHS)
    check(session.run(None, FEEDS)[0])


def test_an_older_bundle_is_refused_with_the_command_that_makes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    bundle = parallax.compile(path, tmp_path / "m.plx", threads=2)

    def age(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = 3
        del manifest["trimming"], manifest["options"]["padding"]

    forge(bundle, age)
    with pytest.raises(parallax.BundleError) as caught:
        parallax.InferenceSession(bundle)
    assert "format version 3" in str(caught.value)
    assert f"parallax compile {path} --output {bundle} --threads 2" in str(caught.value)


FORGED: dict[str, Any] = {
    "no JSON": "{",
    "another record": json.dumps({"mask": "mask"}),
    "an input from elsewhere": {"inputs": [{"name": "nowhere", "axes": [1]}, {"name": "mask", "axes": [1]}]},
    "a mask that is not cut": {"mask": "ids", "inputs": [{"name": "mask", "axes": [1]}]},
    "an axis that cannot be": {"inputs": [{"name": "mask", "axes": [1 << 40]}]},
    "an output from elsewhere": {"outputs": [{"name": "nowhere", "axes": [1], "value": "0.0"}]},
    "no number": {"outputs": [{"name": "y", "axes": [1], "value": "zero"}]},
    "a length that cannot be": {"shortest": 0},
    "rows of another model": {"rows": [0, 0]},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_bundle_that_says_what_cannot_be_is_refused(change: Any, tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", padding="trim")

    def forged(manifest: dict[str, Any]) -> None:
        known = json.loads(manifest["trimming"])
        manifest["trimming"] = change if isinstance(change, str) else json.dumps(known | change)

    forge(bundle, forged)
    with pytest.raises(parallax.BundleError):
        parallax.InferenceSession(bundle)


def test_the_cache_keeps_both_ways_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    plain = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path / "cache")
    trimming = parallax.InferenceSession(path, cache=True, cache_dir=tmp_path / "cache", padding="trim")
    assert not hasattr(plain.runners.current, "trimming")
    assert cut_to(trimming, FEEDS) == max(LENGTHS)
    check(trimming.run(None, FEEDS)[0])
    assert len(list((tmp_path / "cache" / "bundles").glob("*.plx"))) == 2
    assert read_bundle(next((tmp_path / "cache" / "bundles").glob("*.plx"))).plan.is_whole


def test_copies_and_other_plans_go_on_trimming() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", threads=2)
    copy = pickle.loads(pickle.dumps(session))
    assert cut_to(copy, FEEDS) == max(LENGTHS)
    split = parallax.InferenceSession(MODEL, split="always", threads=2)
    session.swap_plan(split.plan)
    assert len(session.plan.segments) > 1
    assert cut_to(session, FEEDS) == max(LENGTHS)
    check(session.run(None, FEEDS)[0])
    session.set_providers(["CPUExecutionProvider"])
    assert cut_to(session, FEEDS) == max(LENGTHS)
    check(session.run(None, FEEDS)[0])


def test_what_else_has_no_effect_is_said_beside_it() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", adapt=True, threads=2)
    reason = session.plan.provenance.reason
    assert "padding is trimmed" in reason
    assert "adapt=True is of no effect" in reason


def test_without_it_nothing_is_different() -> None:
    session = parallax.InferenceSession(MODEL)
    assert type(session.runners.current).__name__ == "WholeRunner"
    assert "padding" not in session.plan.provenance.reason
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], WANT)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "named"),
    [("plain_mean", "node 'the_head' (ReduceMean)"), ("hidden", "output 'y' keeps the axis 'sequence'")],
)
def test_what_cannot_be_proven_is_refused_with_what_is_in_the_way(head: str, named: str, tmp_path: Path) -> None:
    model = encoder(head=head).SerializeToString()
    for options in ({}, {"split": "always", "threads": 2}, {"tune": True, "cache_dir": tmp_path}):
        with pytest.raises(parallax.ConfigError) as caught:
            parallax.InferenceSession(model, padding="trim", **options)
        assert named in caught.value.what
        assert "docs/sparsity.md" in str(caught.value.fix)
    with pytest.raises(parallax.ConfigError, match='padding="trim" is not for this model'):
        parallax.compile(model, tmp_path / "m.plx", padding="trim")
    assert not (tmp_path / "m.plx").exists()


def test_a_model_in_the_runtime_s_own_format_is_refused(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(MODEL, options)
    with pytest.raises(parallax.ConfigError, match="not in ONNX format"):
        parallax.InferenceSession(tmp_path / "model.ort", padding="trim")


def test_session_options_that_change_the_model_are_refused(tmp_path: Path) -> None:
    least = next(entry for entry in onnx.load_from_string(MODEL).graph.initializer if entry.data_type == 1)
    held = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(onnx.numpy_helper.to_array(least)))
    given, fixed, plain = (onnxruntime.SessionOptions() for _ in range(3))
    given.add_initializer(least.name, held)
    fixed.add_free_dimension_override_by_name("sequence", SIZE)
    plain.intra_op_num_threads = 1
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", padding="trim")
    for options, named in ((given, "add_initializer"), (fixed, "fix free dimensions")):
        with pytest.raises(parallax.ConfigError, match=f'padding="trim" is not for this model: .*{named}'):
            parallax.InferenceSession(MODEL, options, padding="trim")
        with pytest.raises(parallax.ConfigError, match=f"this bundle cannot be run so: .*{named}"):
            parallax.InferenceSession(bundle, options)
    check(parallax.InferenceSession(MODEL, plain, padding="trim").run(None, FEEDS)[0])
    check(parallax.InferenceSession(bundle, plain).run(None, FEEDS)[0])


def test_wrong_feeds_are_refused_as_ever() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim")
    with pytest.raises(ValueError, match="missing"):
        session.run(None, {"mask": FEEDS["mask"]})
    with pytest.raises(Exception, match="nowhere"):
        session.run(None, FEEDS | {"nowhere": np.zeros(2)})
    check(session.run(None, FEEDS)[0])


def test_loaded_models_are_proven_too() -> None:
    session = parallax.InferenceSession(onnx.load_from_string(MODEL), padding="trim")
    check(session.run(None, FEEDS)[0])


# -- batchers --------------------------------------------------------------------------------------------------------


def test_requests_of_like_lengths_run_together() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", threads=1)
    reader = RequestReader(
        session.get_inputs(),
        [],
        axis=BatchAxis(inputs={"ids": 0, "mask": 0}, outputs=(0,)),
        trimming=session.runners.current.trimming,
    )
    classes = [reader.read(feeds([length], SIZE)).shapes for length in (3, 8, 9, 20)]
    assert classes[0].key == classes[1].key
    assert len({entry.key for entry in classes}) == 3
    assert all(entry.rows == 1 for entry in classes)


def test_a_batcher_answers_as_the_full_run() -> None:
    session = parallax.InferenceSession(MODEL, padding="trim", threads=2)
    many = [feeds([length], SIZE, seed=length) for length in (3, 20, 5, 9, 24, 1)]
    with session.batcher(max_batch=4) as batcher:
        futures = [batcher.submit(fed) for fed in many]
        answers = [future.result(60) for future in futures]
    for fed, (answer,) in zip(many, answers, strict=True):
        check(answer, expected(MODEL, fed))
