"""A training from its beginning to its files: deterministic, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import parallax
from parallax.errors import ConfigError, MissingExtraError
from parallax.planner import open_placer
from parallax.training import CHECKPOINT_NAME, TrainedNetworks, read_settings, train
from tests.cli._models import invoke
from tests.planner.test_placers import CPU, PHONE, two_chains
from tests.training._small import MISSING, needs_extra, random_examples, small_settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedNetworks]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(small_settings(folder.parent), folder)


@pytest.mark.skipif(not MISSING, reason="all that training needs is installed")
def test_without_the_extra_the_command_to_install_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'parallax-runtime\[train\]'") as refused:
        train(small_settings(tmp_path), tmp_path / "out")
    assert "torch" in str(refused.value)
    assert not (tmp_path / "out").exists()
    result = invoke("train", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'parallax-runtime[train]'" in result.stderr


@needs_extra
def test_what_comes_out_is_a_policy_with_a_card(trained: tuple[Path, TrainedNetworks]) -> None:
    folder, made = trained
    placer = open_placer(f"learned,network={made.proposer},scheduler={made.scheduler}")
    assert placer.digest == made.digest
    imitated = open_placer(f"learned,network={made.proposer},scheduler={folder / 'scheduler-imitation.onnx'}")
    assert len({placement.label for placement in imitated.propose(random_examples(1)[0].features.problem)}) == 5
    card = json.loads((folder / "card.json").read_text())
    assert card["digest"] == made.digest
    assert card["settings"] == read_settings(folder)
    assert [entry["part"] for entry in card["history"]] == [
        "labels",
        *(f"proposer, round {number}" for number in range(3)),
        *(f"scheduler, round {number}" for number in range(3)),
        *(f"rewards, part {number}" for number in range(4)),
    ]
    names = {entry.name for entry in made.judged}
    assert {"etf", "closed-form", "descent", "untrained", "trained", "trained, and etf", "DAgger alone"} <= names
    assert min(entry.mean_regret for entry in made.judged) == 1.0 or len(made.judged) > 1
    by_name = {entry.name: entry.mean_regret for entry in made.judged}
    assert by_name["trained, and etf"] <= by_name["etf"], "what is judged beside it is among its proposals"
    session = parallax.InferenceSession(
        two_chains(),
        providers=[PHONE, CPU],
        policy=f"learned,network={made.proposer},scheduler={made.scheduler}",
        threads=1,
    )
    assert made.digest in session.plan.provenance.reason


@needs_extra
def test_the_same_seed_gives_the_same_digest_and_another_seed_another(
    trained: tuple[Path, TrainedNetworks], tmp_path: Path
) -> None:
    folder, made = trained
    again = train(small_settings(tmp_path), tmp_path / "again")
    assert again.digest == made.digest
    assert (tmp_path / "again" / "card.json").read_bytes() == (folder / "card.json").read_bytes()
    other = train(small_settings(tmp_path, seed=1), tmp_path / "other")
    assert other.digest != made.digest


@needs_extra
@pytest.mark.parametrize("stage", ["labels", "proposer, round 1", "scheduler, round 2", "rewards, part 2"])
def test_an_interrupted_training_goes_on_to_the_same_networks(
    trained: tuple[Path, TrainedNetworks], tmp_path: Path, stage: str
) -> None:
    _, made = trained

    def interrupt(at: str, done: int, total: int) -> None:
        if at == stage and done > total // 2:
            raise KeyboardInterrupt

    settings, folder = small_settings(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(settings, folder, progress=interrupt)
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    stages: list[str] = []
    assert train(settings, folder, progress=lambda at, done, total: stages.append(at)).digest == made.digest
    if stage.startswith("rewards"):
        assert (folder / CHECKPOINT_NAME).exists()
        assert not [at for at in stages if at.startswith(("labels", "proposer", "scheduler", "rewards, part 1"))]


@pytest.fixture(scope="module")
def with_ablations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedNetworks]:
    folder = tmp_path_factory.mktemp("ablations")
    return folder, train(replace(small_settings(folder.parent), ablations=True), folder)


@needs_extra
def test_ablations_are_rows_and_files_and_change_nothing_else(
    trained: tuple[Path, TrainedNetworks], with_ablations: tuple[Path, TrainedNetworks]
) -> None:
    folder, made = with_ablations
    assert made.digest == trained[1].digest
    assert made.compared == {
        "DAgger alone": folder / "scheduler-imitation.onnx",
        "SAC alone": folder / "scheduler-sac.onnx",
        "PPO": folder / "scheduler-ppo.onnx",
    }
    rows = {entry.name for entry in made.judged}
    for name, path in made.compared.items():
        assert {name, f"{name}, and etf"} <= rows
        placer = open_placer(f"learned,network={made.proposer},scheduler={path}")
        proposed = [placement.label for placement in placer.propose(random_examples(1)[0].features.problem)]
        assert "learned scheduler" in proposed
    files = [path.read_bytes() for path in (made.scheduler, *made.compared.values())]
    assert len({files[0], *files[2:]}) == 3, "of rewards alone another network comes"
    steps = {
        name: sum(entry["steps"] for entry in made.history if entry["part"].startswith(f"{name}, part"))
        for name in ("rewards", "SAC alone", "PPO")
    }
    assert steps == dict.fromkeys(steps, 120)
    assert set(json.loads((folder / "card.json").read_text())["files"]) == {
        "proposer.onnx",
        "scheduler.onnx",
        *(path.name for path in made.compared.values()),
    }


@needs_extra
@pytest.mark.parametrize("stage", [None, "SAC alone, part 2", "PPO, part 1"])
def test_ablations_may_be_asked_for_after_a_training_and_interrupted(
    trained: tuple[Path, TrainedNetworks],
    with_ablations: tuple[Path, TrainedNetworks],
    tmp_path: Path,
    stage: str | None,
) -> None:
    out = shutil.copytree(trained[0], tmp_path / "out")
    settings = small_settings(tmp_path)
    stages: list[str] = []

    def note(at: str, done: int, total: int) -> None:
        stages.append(at)
        if at == stage and done > total // 2:
            raise KeyboardInterrupt

    if stage is not None:
        with pytest.raises(KeyboardInterrupt):
            train(replace(settings, ablations=True), out, progress=note)
        stage = None
        again = train(settings, out, progress=note)  # they were asked for before
    else:
        again = train(replace(settings, ablations=True), out, progress=note)
    assert not [at for at in stages if at.startswith(("labels", "proposer", "scheduler", "rewards"))]
    for name, path in with_ablations[1].compared.items():
        assert again.compared[name].read_bytes() == path.read_bytes()
    assert (out / "card.json").read_bytes() == (with_ablations[0] / "card.json").read_bytes()


@needs_extra
def test_rewards_begin_with_the_best_that_only_imitated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parallax.training import _run

    costs = iter([3.0, 1.0, 2.0])
    actors: list[dict[str, Any]] = []

    def note(actor: Any) -> None:
        actors.append({name: part.clone() for name, part in actor.state_dict().items()})

    def validate(actor: Any, *_: Any) -> float:
        note(actor)
        return next(costs)

    def begin(agent: Any, **_: Any) -> None:
        note(agent.actor)
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "mean_cost", validate)
    monkeypatch.setattr(_run, "learn", begin)
    with pytest.raises(KeyboardInterrupt):
        train(small_settings(tmp_path), tmp_path / "out")
    first, best, last, begun = actors
    assert [all(bool((one[name] == begun[name]).all()) for name in begun) for one in (first, best, last)] == [
        False,
        True,
        False,
    ]


@needs_extra
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_ends_the_command_with_130_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    settings, out = small_settings(tmp_path), tmp_path / "out"
    words = ["--steps", "4000", "--device", "pixel-6-gpu", "--models", str(settings.models[0].path), "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "parallax", "train", *words], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / CHECKPOINT_NAME).exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"`parallax train --resume {out}` goes on" in err
    assert err.endswith("interrupted\n")
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_NAME, "settings.json"]


@needs_extra
def test_a_folder_of_another_training_is_refused(trained: tuple[Path, TrainedNetworks], tmp_path: Path) -> None:
    folder, _ = trained
    with pytest.raises(ConfigError, match="other settings"):
        train(small_settings(tmp_path, seed=3), folder)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        train(small_settings(tmp_path), tmp_path / "file" / "out")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    (damaged / CHECKPOINT_NAME).write_bytes((folder / CHECKPOINT_NAME).read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be read"):
        train(small_settings(tmp_path), damaged)


@needs_extra
def test_the_command_trains_resumes_and_refuses(tmp_path: Path) -> None:
    small_settings(tmp_path)
    out = tmp_path / "out"
    words = ("--steps", 100, "--device", "emulated:pixel-6-gpu", "--models", tmp_path / "two_chains.onnx", "-o", out)
    result = invoke("train", *words, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["settings"]["steps"] == 100
    assert report["policy"] == f"learned,network={out / 'proposer.onnx'},scheduler={out / 'scheduler.onnx'}"
    assert report["judged"]
    again = invoke("train", "--resume", out)
    assert again.exit_code == 0
    assert f"digest: {report['digest']}" in again.stdout
    for refused, message in (
        (words, "holds a training already"),
        (("--resume", out, "--seed", 4), "begun with another --seed"),
        (("--resume", tmp_path / "none"), "no training was begun"),
        ((), "nowhere to write to"),
        (("--steps", 100, "--models", "zoo:none-such", "-o", tmp_path / "new"), "none-such"),
        (("--device", "openvino:CPU", "-o", tmp_path / "new"), "no emulated device"),
    ):
        result = invoke("train", *refused)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "new").exists()
