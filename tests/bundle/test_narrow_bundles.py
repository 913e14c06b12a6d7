"""Bundles for less memory than a run of the whole model wants: they hold a plan that computes it in slices."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.bundle import read_bundle
from parallax.errors import BudgetError, BundleError, ConfigError
from parallax.memory import Budget
from tests._threads import in_threads
from tests.bundle._models import forge, forge_plan
from tests.bundle.test_elsewhere import ELSEWHERE
from tests.session.test_computed_constants import ON_PHONE
from tests.session.test_narrow_budgets import WIDTH, fed, image, stem_model, tokens_model

MARGIN = 0.1


def share_of_run(share: float, model: bytes, **options: Any) -> int:
    """The budget of a bundle of one segment whose runs hold this share of what the whole model's do."""
    wanted = parallax.InferenceSession(model, memory_budget="1GiB", threads=2, **options).memory().run_peak_bytes
    assert wanted is not None
    return int((Budget.of(0, weight_bytes=0).held_bytes + share * wanted) / (1 - MARGIN)) + 1


def least_bytes(source: bytes | Path, **options: Any) -> int:
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(source, memory_budget=1, threads=2, **options)
    assert caught.value.least_bytes is not None
    return caught.value.least_bytes


def check(session: parallax.InferenceSession, model: bytes, feeds: list[dict[str, Any]]) -> None:
    """Eight threads get the answers of ONNX Runtime."""
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [stock.run(None, feed)[0] for feed in feeds]

    def work(thread: int) -> None:
        for number in range(3):
            place = (thread + number) % len(feeds)
            np.testing.assert_allclose(session.run(None, feeds[place])[0], answers[place], rtol=1e-4, atol=1e-5)

    in_threads(8, work)
    usage = session.memory()
    if usage.limit_bytes is not None:
        assert usage.admitted_peak_bytes <= usage.limit_bytes


@pytest.mark.parametrize("portable", [False, True])
def test_a_bundle_for_a_narrow_budget_computes_parts_in_slices(portable: bool, tmp_path: Path) -> None:
    model = stem_model()
    budget = share_of_run(0.3, model)
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=budget, threads=2, portable=portable)
    assert parallax.InferenceSession(bundle, threads=2).plan.stretches, "without a budget, too: it holds one plan"
    session = parallax.InferenceSession(bundle, memory_budget=budget, threads=2)
    assert session.plan.stretches
    assert len(session.plan.segments) == 1
    check(session, model, [image(seed) for seed in range(8)])
    copy = pickle.loads(pickle.dumps(session))
    assert copy.plan == session.plan
    check(copy, model, [image(0)])
    usage = session.memory()
    assert usage.least_budget_bytes is not None
    assert usage.least_budget_bytes <= budget


@pytest.mark.parametrize(("share", "rounds"), [(0.7, 1), (0.45, 2)])
def test_a_bundle_for_a_narrow_budget_computes_a_chain_in_slices_of_its_rows(
    share: float, rounds: int, tmp_path: Path
) -> None:
    model = tokens_model()
    budget = share_of_run(share, model) + (1 << 20)  # room for what the segments take
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=budget, threads=2)
    session = parallax.InferenceSession(bundle, memory_budget=budget, threads=2)
    assert (session.plan.rows_permille, session.plan.rows_rounds) == (500, rounds)
    check(session, model, [fed(seed=seed) for seed in range(8)])


def test_a_refusal_names_a_budget_with_which_the_bundle_is_made_and_opens(tmp_path: Path) -> None:
    model, target = stem_model(), tmp_path / "m.plx"
    with pytest.raises(BudgetError) as caught:
        parallax.compile(model, target, memory_budget="1MiB", threads=2)
    assert not target.exists()
    least = caught.value.least_bytes
    assert least is not None
    with pytest.raises(BudgetError):
        parallax.compile(model, target, memory_budget=least - 1, threads=2)
    parallax.compile(model, target, memory_budget=least, threads=2)
    session = parallax.InferenceSession(target, memory_budget=least, threads=2)
    assert session.plan.stretches
    check(session, model, [image(0)])
    with pytest.raises(BudgetError, match="too small") as refused:
        parallax.InferenceSession(target, memory_budget=least - 1, threads=2)
    assert refused.value.least_bytes == least


def test_a_budget_that_only_the_session_has_is_for_the_plan_in_the_bundle(tmp_path: Path) -> None:
    model = stem_model()
    bundle = parallax.compile(model, tmp_path / "m.plx", threads=2)
    narrow = share_of_run(0.3, model)
    with pytest.raises(BudgetError, match="compile the bundle with the smaller budget") as caught:
        parallax.InferenceSession(bundle, memory_budget=narrow, threads=2)
    least = caught.value.least_bytes
    assert least is not None
    session = parallax.InferenceSession(bundle, memory_budget=least, threads=2)
    assert session.plan.is_whole
    check(session, model, [image(seed) for seed in range(2)])
    parallax.compile(model, bundle, threads=2, memory_budget=narrow)
    check(parallax.InferenceSession(bundle, memory_budget=narrow, threads=2), model, [image(0)])


def test_slices_are_of_models_with_fixed_shapes_and_others_take_every_shape(tmp_path: Path) -> None:
    model, target = tokens_model("n"), tmp_path / "m.plx"
    shapes = {"x": (1024, WIDTH)}
    with pytest.raises(BudgetError) as caught:
        parallax.compile(model, target, memory_budget="4MiB", threads=2, shapes=shapes)
    least = caught.value.least_bytes
    parallax.compile(model, target, memory_budget=least, threads=2, shapes=shapes)
    session = parallax.InferenceSession(target, memory_budget=least, threads=2)
    assert not session.plan.is_rewritten
    check(session, model, [fed(1024)])
    parallax.compile(model, target, memory_budget=least, threads=2, shapes=shapes, portable=True)
    check(
        parallax.InferenceSession(target, memory_budget=least, threads=2), model, [fed(1024), fed(40), fed(7), fed(512)]
    )


def test_what_is_decided_is_refused_and_what_the_bundle_is_may_be_said(tmp_path: Path) -> None:
    model = stem_model()
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=share_of_run(0.3, model), threads=2)
    with pytest.raises(ConfigError, match="split= is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, threads=2, split="never")
    with pytest.raises(BudgetError):
        parallax.compile(
            model, tmp_path / "n.plx", memory_budget=share_of_run(0.3, model), threads=2, policy="sequential"
        )


def test_the_cache_has_a_bundle_for_all_budgets_and_one_for_each_that_is_narrower(tmp_path: Path) -> None:
    model, path, cache = stem_model(), tmp_path / "model.onnx", tmp_path / "cache"
    path.write_bytes(model)
    narrow = share_of_run(0.3, model)
    options: dict[str, Any] = {"threads": 2, "cache": True, "cache_dir": cache}
    for _ in range(2):
        session = parallax.InferenceSession(path, memory_budget=narrow, **options)
        assert session.plan.stretches
        assert session._opened.bundle is not None
        check(session, model, [image(seed) for seed in range(8)])
    for wide in ("1GiB", "2GiB", None):
        session = parallax.InferenceSession(path, memory_budget=wide, **options)
        assert session.plan.is_whole
        assert session._opened.bundle is not None
        check(session, model, [image(0)])
    assert len(list((cache / "bundles").iterdir())) == 2
    least = least_bytes(path, cache=True, cache_dir=cache)
    check(parallax.InferenceSession(path, memory_budget=least, **options), model, [image(0)])


def test_a_portable_bundle_is_made_anew_for_its_budget(tmp_path: Path) -> None:
    model = stem_model()
    budget = share_of_run(0.3, model)
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=budget, margin=0.05, threads=2, portable=True)
    options = read_bundle(bundle).manifest.options
    assert (options.memory_budget, options.margin) == (budget, "0.05")
    forge(bundle, lambda manifest: manifest.update(ELSEWHERE["another CPU"]))
    session = parallax.InferenceSession(
        bundle, memory_budget=budget, margin=0.05, threads=2, cache_dir=tmp_path / "cache"
    )
    assert session.plan.stretches
    check(session, model, [image(0)])


def test_devices_give_way_to_slices_where_a_budget_asks_for_that(tmp_path: Path) -> None:
    model = stem_model()
    budget = share_of_run(0.3, model)
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=budget, **ON_PHONE)
    session = parallax.InferenceSession(bundle, memory_budget=budget, threads=ON_PHONE["threads"])
    assert session.plan.stretches
    check(session, model, [image(seed) for seed in range(8)])


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda plan: plan["provenance"].update(source="tables"), id="of another origin"),
        pytest.param(lambda plan: plan["stretches"][0].update(slices=1), id="in one slice"),
    ],
)
def test_a_plan_in_slices_that_was_changed_is_refused(edit: Any, tmp_path: Path) -> None:
    model = stem_model()
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=share_of_run(0.3, model), threads=2)
    forge_plan(bundle, edit)
    with pytest.raises(BundleError):
        parallax.InferenceSession(bundle, threads=2)


MEASURE = """
import sys, threading
sys.path.insert(0, {root!r})
import parallax
from parallax.machine import private_bytes, trim_heap
from tests.session.test_narrow_budgets import image

session = parallax.InferenceSession({bundle!r}, memory_budget={budget}, threads=2)
feeds = [image(seed) for seed in range({threads})]
trim_heap()
before = private_bytes()
stop, highest = False, 0
def watch():
    global highest
    while not stop:
        highest = max(highest, private_bytes() - before)
watcher = threading.Thread(target=watch)
watcher.start()
def work(feed):
    for _ in range(20):
        session.run(None, feed)
workers = [threading.Thread(target=work, args=(feed,)) for feed in feeds]
for worker in workers: worker.start()
for worker in workers: worker.join()
stop = True
watcher.join()
print(highest, len(session.plan.stretches))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
@pytest.mark.parametrize("threads", [1, 8])
def test_a_process_that_runs_a_bundle_in_slices_grows_by_no_more_than_the_budget(
    threads: int, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Slices that the runtime joined when it optimised the graph, or runs in another order, would hold more."""
    model = stem_model()
    budget = share_of_run(0.3, model)
    bundle = parallax.compile(model, tmp_path / "m.plx", memory_budget=budget, threads=2)
    script = MEASURE.format(root=str(pytestconfig.rootpath), bundle=str(bundle), budget=budget, threads=threads)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    highest, stretches = map(int, result.stdout.split())
    assert stretches
    assert highest <= budget, f"{highest} bytes measured"
