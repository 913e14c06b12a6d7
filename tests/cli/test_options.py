"""Every option of every command, misspelt, of the wrong type and out of range: one line, status 2, nothing half done.

The commands and their options are those that the parser has, so that one that is added is tried as well; what a wrong
value is, a table says, which must name every option that takes one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import parallax
from parallax.cli import app
from tests.cli._models import affine, choosing, invoke

FLAGS = {
    *("--json", "--tune", "--no-tune", "--portable", "--force", "--version", "--help"),
    *("--install-completion", "--show-completion", "--sparsity", "--measure", "--adapt"),
}

WRONG: dict[str, tuple[str, ...]] = {
    "--batch": ("many", "0", "-1", "1.5"),
    "--cache-dir": ("{file}",),
    "--calibration": ("{folder}/gone.npz", "{folder}", "{file}"),
    "--callers": ("many", "0", "-3", "1025"),
    "--device": ("pixel-7-gpu", "nothing"),
    "--duration": ("long", "0", "-1", "inf", "nan"),
    "--input": ("no-input", "z=1", "x=words", "x={folder}/gone.npy", "{folder}/gone.npz"),
    "--margin": ("much", "-0.1", "1", "nan"),
    "--max-time": ("long", "0", "-5", "inf", "nan"),
    "--max-zeros": ("many", "-0.1", "1.1", "nan"),
    "--memory-budget": ("much", "0", "-1MiB", "150%", "5 XB"),
    "--memory-limit": ("much", "0", "-1MiB", "5 XB"),
    "--min-flops": ("many", "-1", "inf", "nan"),
    "--min-gain": ("much", "-0.1", "1", "nan"),
    "--models": ("{folder}/gone.onnx", "zoo:nothing", "{file}"),
    "--objective": ("speed", "throughput"),
    "--output": ("{folder}/gone/file",),
    "--padding": ("cut",),
    "--plot": ("{folder}/gone/file", "{folder}"),
    "--policy": ("parallel",),
    "--provider": (
        "emulated:pixel-7-gpu",
        "emulatd:pixel-6-gpu",
        "CUDAExecutionProvider",
        "CUDAExecutonProvider",
        "emulated:pixel-6-gpu,speed",
        "emulated:pixel-6-gpu,memory_budget=much",
        "nothing",
    ),
    "--resume": ("{folder}/gone", "{file}"),
    "--rule": ("price",),
    "--runs": ("many", "0", "-1", "1.5"),
    "--samples": ("many", "0", "-1", "1.5"),
    "--save": ("{folder}/gone/file", "{folder}"),
    "--seed": ("x", "-1", "1.5"),
    "--shape": ("2,3", "z=2,3", "x=2", "x=2,4", "x=two,3", "x=2,-3"),
    "--split": ("sometimes",),
    "--steps": ("many", "0", "99", "1.5"),
    "--threads": ("many", "0", "-1", "1.5", "1000000000"),
    "--trace": ("{folder}/gone/file", "{folder}"),
    "--wait": ("long", "-1", "inf", "nan"),
}
"""Values that are refused, on a model whose only input is x, float32 [2, 3]."""

ABOUT_ZEROS = {"--calibration", "--samples", "--min-flops", "--max-zeros", "--plot"}


def commands(group: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands by the words that call them."""
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = dict(commands())


def long_options(command: Any) -> dict[str, Any]:
    """By the name that begins with two dashes."""
    found = {}
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("--"):
                found[name] = parameter
    return found


def takes_value(parameter: Any) -> bool:
    return not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)


def arguments_of(words: tuple[str, ...], folder: Path) -> list[str]:
    """What makes each command run, if nothing else is wrong."""
    model = str(affine(folder / "m.onnx"))
    if words == ("compile",):
        return [model, "--output", str(folder / "out.plx")]
    if words[0] == "bundle":
        return [str(parallax.compile(model, folder / "there.plx"))]
    if words == ("zoo", "export"):
        return ["lstm-if-loop", "--output", str(folder / "zoo.onnx")]
    if words == ("train",):
        return ["--output", str(folder / "networks"), "--steps", "100"]
    return [model] if words[0] in ("inspect", "run", "bench", "tune") else []


def listing(folder: Path) -> set[str]:
    return {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}


CASES = [
    (words, option, value)
    for words, command in COMMANDS.items()
    for option, parameter in long_options(command).items()
    if takes_value(parameter)
    for value in WRONG.get(option, ())
]


def test_the_table_names_every_option_that_takes_a_value() -> None:
    named = {
        option
        for command in COMMANDS.values()
        for option, parameter in long_options(command).items()
        if takes_value(parameter)
    }
    assert named - FLAGS == WRONG.keys()


def test_there_are_the_commands_that_the_readme_names() -> None:
    assert {" ".join(words) for words in COMMANDS} == {
        *("inspect", "run", "bench", "tune", "compile", "devices", "train"),
        *("bundle info", "bundle verify", "bundle prune", "zoo list", "zoo export"),
    }


@pytest.mark.parametrize(("words", "option", "value"), CASES, ids=[" ".join([*w, o, v]) for w, o, v in CASES])
def test_a_wrong_value_is_refused_before_anything_is_done(
    words: tuple[str, ...], option: str, value: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    given = arguments_of(words, tmp_path)
    if option == "--output" and words in (("run",), ("train",)):
        value = "{file}"  # a folder that is not there is made
    elif option == "--output":
        given = given[:1]
    if option == "--resume":
        given = []
    if option == "--margin":
        given += ["--memory-budget", "1GiB"]
    if option == "--wait" and words == ("compile",):
        given.append("--tune")
    if option == "--policy" and words == ("inspect",):
        given += ["--provider", "emulated:pixel-6-gpu"]
    if words == ("inspect",) and option in ABOUT_ZEROS:
        given.append("--sparsity")
    before = listing(tmp_path)
    result = invoke(*words, *given, option, value.format(folder=tmp_path, file=tmp_path / "file"))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert "; " in line
    assert listing(tmp_path) == before
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_misspelt_option_is_refused_with_the_one_that_was_meant(words: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments_of(words, tmp_path)
    before = listing(tmp_path)
    for option, parameter in long_options(COMMANDS[words]).items():
        misspelt = option[:-2] + option[-1] if len(option) > 6 else option + "x"
        value = ["1"] if takes_value(parameter) else []
        result = invoke(*words, *given, misspelt, *value)
        assert result.exit_code == 2, (option, result.output)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: parallax {' '.join(words)} has no option {misspelt}; did you mean ")
        assert option in line
        assert f"`parallax {' '.join(words)} --help`" in line
    assert listing(tmp_path) == before


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_option_without_its_value_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments_of(words, tmp_path)
    for option, parameter in long_options(COMMANDS[words]).items():
        if takes_value(parameter):
            result = invoke(*words, *given, option)
            assert result.exit_code == 2
            assert option in result.stderr
            assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_one_argument_too_many_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    result = invoke(*words, *arguments_of(words, tmp_path), "another", "more")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: got unexpected extra argument")


def test_a_misspelt_command_is_refused_with_the_one_that_was_meant() -> None:
    result = invoke("benhc", "model.onnx")
    assert result.exit_code == 2
    assert result.stderr == "error: no such command 'benhc'; did you mean 'bench'? see `parallax --help`\n"
    assert "did you mean 'export'?" in invoke("zoo", "exprot").stderr


@pytest.mark.parametrize("words", [(), ("zoo",), ("bundle",)])
def test_a_group_without_a_command_shows_its_help_and_ends_with_2(words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Commands" in result.stderr


@pytest.mark.parametrize("words", [(), ("zoo",), ("bundle",), *COMMANDS], ids=" ".join)
def test_h_is_help_everywhere(words: tuple[str, ...]) -> None:
    short, long = invoke(*words, "-h"), invoke(*words, "--help")
    assert short.exit_code == long.exit_code == 0
    assert short.stdout == long.stdout
    assert "-h, --help" in short.stdout
    assert all(len(line) <= 80 for line in short.stdout.splitlines())


def test_options_that_say_two_things_are_refused(tmp_path: Path) -> None:
    model = affine(tmp_path / "m.onnx")
    for arguments, says in [
        (["bench", model, "--callers", 2, "--runs", 5], "--runs"),
        (["compile", model, "-o", tmp_path / "m.plx", "--wait", 5], "--tune"),
        (["bundle", "prune", tmp_path, "--cache-dir", tmp_path], "--cache-dir"),
        (["bench", model, "--batch", 4], "fixes the size of its batch"),
        (["inspect", model, "--policy", "sequential"], "--provider"),
        *((["run", model, "--margin", share], "--memory-budget") for share in (0, 0.2)),
        (["compile", model, "-o", tmp_path / "m.plx", "--margin", 0.2], "--memory-budget"),
        (["compile", model, "-o", tmp_path / "m.plx", "--split", "always", "--policy", "heft"], "exclude each other"),
    ]:
        result = invoke(*arguments)
        assert result.exit_code == 2, arguments
        assert says in result.stderr
        assert len([line for line in result.stderr.splitlines() if not line.startswith("note: ")]) == 1
    assert not (tmp_path / "m.plx").exists()


def test_variables_of_the_environment_are_checked_like_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = choosing(tmp_path / "m.onnx")
    monkeypatch.setenv("PARALLAX_THREADS", "many")
    result = invoke("run", model)
    assert result.exit_code == 2
    assert "PARALLAX_THREADS" in result.stderr
    monkeypatch.setenv("PARALLAX_THREADS", "1")
    monkeypatch.setenv("PARALLAX_MEMORY_BUDGET", "much")
    assert "256MiB" in invoke("run", model).stderr
