"""Students side by side, from the command line and from Python."""

import shutil
from pathlib import Path

import pytest

import vitslim as package
from tests.cli.conftest import Command
from vitslim.errors import ConfigError
from vitslim.files import read_json


@pytest.fixture
def students(student: Path, dense: Path, tmp_path: Path) -> Path:
    """A folder with a student, a dense model, and one benchmark of both."""
    root = tmp_path / "runs"
    for folder in (student, dense):
        shutil.copytree(folder, root / folder.name)
    return root


def test_a_benchmark_of_all_becomes_one_table_with_ratios_across_backends(
    students: Path, tmp_path: Path, vitslim: Command
) -> None:
    words = ("--backend", "torch,ort", "--batch", 1, "--rounds", 5, "--out", students / "bench.json")
    shown = vitslim("bench", students / "student", *words)
    assert shown.code == 0, shown.err
    assert "vs dense torch" in shown.out
    assert "Against dense in torch: the dense model's median in torch fp32" in shown.out
    rows = {(row["model"], row["backend"]): row for row in read_json(students / "bench.json")["rows"]}
    compared = vitslim("compare", students, "--json").document
    assert [row["model"] for row in compared["rows"]] == ["plain", "student"]
    (_, across) = compared["rows"][1]["speed"]
    assert (across["backend"], across["verdict"]) == ("ort", rows["student", "ort"]["verdict"])
    dense_ms, own_ms = rows["dense", "torch"]["latency_ms_p50"], rows["student", "ort"]["latency_ms_p50"]
    assert across["speedup_vs_dense_torch"] == dense_ms / own_ms
    assert compared["page"] == str(students / "compare.html")
    assert compared["sessions"] == 1
    table = vitslim("compare", students)
    assert table.code == 0, table.err
    assert "builtin: 1 student" in table.out
    assert f"wrote {students / 'compare.html'}" in table.err.replace("\n", "")


def test_folders_are_named_one_by_one_and_the_page_goes_where_it_is_asked_to(
    students: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = (students / "student", students / "plain")
    assert vitslim("compare", *both, "--out", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").is_file()
    assert package.compare(both).page == students / "compare.html"
    apart = shutil.copytree(students / "student", tmp_path / "apart")
    monkeypatch.chdir(tmp_path)
    assert package.compare([*both, apart]).page == Path("compare.html")


def test_only_a_page_of_ours_is_replaced_without_being_asked(students: Path, tmp_path: Path, vitslim: Command) -> None:
    page = tmp_path / "notes.html"
    page.write_text("<html>mine</html>")
    refused = vitslim("compare", students, "--out", page)
    assert (refused.code, "no page of vitslim's; pass --overwrite" in refused.error) == (2, True)
    assert page.read_text() == "<html>mine</html>"
    assert vitslim("compare", students, "--out", page, "--overwrite").code == 0
    assert vitslim("compare", students, "--out", page).code == 0


def test_what_holds_no_students_is_refused_and_nothing_written(tmp_path: Path, vitslim: Command) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert "has no output folders in it; give the folders" in vitslim("compare", folder).error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="given no folder"):
        package.compare([])
