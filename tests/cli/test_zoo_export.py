"""`zoo export`: a model of one's own file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from parallax import zoo
from tests.cli._models import invoke

NAME = "lstm-if-loop"


def test_a_model_is_written_where_it_is_wanted_and_is_that_of_the_zoo(tmp_path: Path) -> None:
    result = invoke("zoo", "export", NAME, "-o", tmp_path / "model.onnx", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    written = (tmp_path / "model.onnx").read_bytes()
    assert report == {"model": f"zoo:{NAME}", "path": str(tmp_path / "model.onnx"), "bytes": len(written)}
    assert hashlib.sha256(written).digest() == hashlib.sha256(zoo.load(NAME).read_bytes()).digest()
    assert [entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.output] == list(zoo.info(NAME).outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_without_a_target_it_is_named_after_the_model_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote lstm-if-loop.onnx" in invoke("zoo", "export", f"zoo:{NAME}").stdout
    assert (tmp_path / f"{NAME}.onnx").is_file()


def test_a_file_that_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("mine")
    refused = invoke("zoo", "export", NAME, "-o", target)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert target.read_text() == "mine"
    assert invoke("zoo", "export", NAME, "-o", target, "--force").exit_code == 0
    assert target.stat().st_size == zoo.info(NAME).file_bytes


def test_a_misspelt_name_gets_the_one_that_was_meant(tmp_path: Path) -> None:
    result = invoke("zoo", "export", "resnet-18", "-o", tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert "did you mean resnet18?" in result.stderr
    assert list(tmp_path.iterdir()) == []
