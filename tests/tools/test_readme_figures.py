"""The texts' figures are those of the results files, and a text that says otherwise is found out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from _figures import Figure, Verdict, counted, read_figures

from tools.readme_figures import ROOT, check, expected, stray_figures

ORIGIN = {"command": "python benchmarks/x.py", "commit": "abc", "date": "2026-11-28 20:00 UTC", "machine": "m"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the texts and the results files, with the figures written."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_texts_of_this_project_say_what_its_results_files_say() -> None:
    assert check(ROOT) == []


def test_a_changed_digit_in_the_readme_is_noticed(project: Path) -> None:
    readme = project / "README.md"
    figure = next(figure for figure in read_figures(_results(project)) if figure["unit"] == "ratio")
    shown = f"{figure['value']:.3f}"
    other = shown[:-1] + str((int(shown[-1]) + 1) % 10)
    lines = readme.read_text(encoding="utf-8").splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith(f"| {figure['what']}")]
    lines[place] = lines[place].replace(shown, other, 1)
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")
    complaints = check(project)
    assert [line for line in complaints if line.startswith("-") and other in line]
    assert [line for line in complaints if line.startswith("+") and shown in line]


def test_a_changed_digit_in_a_results_file_is_noticed(project: Path) -> None:
    path = next(path for path in _results(project) if json.loads(path.read_text())["figures"])
    document = json.loads(path.read_text())
    figure = document["figures"][0]
    figure["bound"] = None
    figure["verdict"] = str(Verdict.NO_BOUND)
    path.write_text(json.dumps(document))
    assert check(project)


def test_a_measured_figure_in_the_running_text_is_noticed(project: Path) -> None:
    readme = project / "README.md"
    text = readme.read_text(encoding="utf-8").replace("## Install", "It takes 35 ms instead of 70.\n\n## Install", 1)
    readme.write_text(text, encoding="utf-8")
    (complaint,) = check(project)
    assert "It takes 35 ms" in complaint


def test_settings_and_code_are_no_measured_figures() -> None:
    assert stray_figures('With `idle_trim_s=30`, or "64MiB".\n\n```\n38.1 ms\n```\n') == []


def test_a_verdict_that_does_not_follow_from_its_figure_is_refused(tmp_path: Path) -> None:
    figure = Figure(name="a", what="a", value=1.1, unit="ratio", interval=(1.05, 1.2), bound=1.0).to_json(ORIGIN)
    assert figure["verdict"] == "missed"
    _write(tmp_path / "a.json", [figure | {"verdict": "met"}])
    with pytest.raises(ValueError, match="a is called 'met', but is 'missed'"):
        read_figures([tmp_path / "a.json"])


def test_two_figures_of_one_name_are_refused(tmp_path: Path) -> None:
    figure = counted("a", "a", 1).to_json(ORIGIN)
    for name in ("one.json", "two.json"):
        _write(tmp_path / name, [figure])
    with pytest.raises(ValueError, match=r"two.json and one.json both have a figure 'a'"):
        read_figures([tmp_path / "one.json", tmp_path / "two.json"])


def test_what_goes_against_us_comes_first(project: Path) -> None:
    _write(
        project / "benchmarks" / "results" / "z.json",
        [
            Figure(name="z1", what="zz good", value=0.5, unit="ratio", interval=(0.4, 0.6), bound=1.0).to_json(ORIGIN),
            Figure(name="z2", what="zz open", value=0.9, unit="ratio", interval=(0.8, 1.1), bound=1.0).to_json(ORIGIN),
            Figure(name="z3", what="zz bad", value=1.5, unit="ratio", interval=(1.4, 1.6), bound=1.0).to_json(ORIGIN),
        ],
    )
    text = expected(project)[project / "README.md"]
    places = [text.index(f"| {what} |") for what in ("zz bad", "zz open", "zz good")]
    assert places == sorted(places)


def test_the_readme_links_each_figure_with_a_bound_to_a_page_that_is_there(project: Path) -> None:
    figures = [Figure(name="z", what="zz unbounded", value=1.0, unit="ratio", interval=(1.0, 1.0)).to_json(ORIGIN)]
    _write(project / "benchmarks" / "results" / "z.json", figures)
    text = expected(project)[project / "README.md"]
    assert "zz unbounded" not in text
    table = text[text.index("figures: begin") : text.index("figures: end")]
    linked = set(re.findall(r"\]\((benchmarks/results/[^)]*)\) \|", table))
    assert len(linked) > 10
    assert [page for page in linked if not (ROOT / page).exists()] == []
    verdicts = re.search(
        r"Of (\d+) figures with a bound, (\d+) miss it, (\d+) are not shown to keep it, and (\d+) keep", text
    )
    assert verdicts is not None
    all_of_them, *each = map(int, verdicts.groups())
    assert all_of_them == sum(each) == len(re.findall(r"^\| .*\.md\) \|$", table, re.M))


def test_a_page_states_the_figures_that_it_names_and_no_others(project: Path) -> None:
    page = project / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(
        "<!-- figures of sparsity.slim.* sparsity.zeros.*: begin -->\n<!-- figures: end -->\n", encoding="utf-8"
    )
    text = expected(project)[page]
    for figure in read_figures(_results(project)):
        asked = figure["name"].startswith(("sparsity.slim.", "sparsity.zeros."))
        assert (f"| {figure['what']} |" in text) == asked
    assert any("slim=True" in line for line in check(project))
    page.write_text(text, encoding="utf-8")
    assert check(project) == []
    page.write_text(text.replace("sparsity.slim.*", "sparsity.nothing"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no figure is called sparsity\.nothing"):
        check(project)


def _results(project: Path) -> list[Path]:
    return sorted((project / "benchmarks" / "results").glob("*.json"))


def _write(path: Path, figures: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"figures": figures}))
