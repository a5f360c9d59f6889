import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import change
from tests.report.reading import read, words
from vitslim.bench import BenchReport
from vitslim.errors import CheckpointError
from vitslim.files import read_json, write_json
from vitslim.report import ComparisonRow, read_comparison, render_comparison

RATIOS = {"dense": (1.0, None), "paper": (0.917, "slower"), "narrow": (1.25, "faster")}


def rated(folder: Path, ratios: dict[str, tuple[float, Any]]) -> dict[str, Any]:
    """The benchmark of a folder with other models in it."""
    found = BenchReport(**read_json(folder / "bench.json"))
    rows = [
        found.rows[0].model_copy(update={"model": name, "speedup_vs_dense": ratio, "verdict": verdict})
        for name, (ratio, verdict) in ratios.items()
    ]
    return found.model_copy(update={"rows": rows}).model_dump(mode="json")


@pytest.fixture
def family(made: Path, tmp_path: Path) -> Path:
    """Two students in folders of their own, and one benchmark for all."""
    root = tmp_path / "family"
    root.mkdir()
    for name, top1 in (("narrow", 0.75), ("paper", 0.8)):
        shutil.copytree(made, root / name, ignore=shutil.ignore_patterns("bench.json"))
        change(root / name / "metrics.json", lambda found, top1=top1: found["student"].update(top1=top1))
        change(root / name / "metrics.json", lambda found: found["teacher"].update(top1=0.7))
    write_json(root / "bench.json", rated(made, RATIOS))
    return root


def row_of(folder: Path, model: str) -> ComparisonRow:
    return next(row for row in read_comparison(folder).rows if row.model == model)


def test_the_page_shows_dense_models_first_and_every_model_with_its_ratio(family: Path) -> None:
    found = read_comparison(family, "Toys")
    assert [row.model for row in found.rows] == ["dense teacher", "dense finetuned", "paper", "narrow"]
    assert found.settings == [("torch", "fp32", 1)]
    page = render_comparison(found)
    text = words(page)
    for phrase in ("2 students against 2 dense models", "1.25× faster", "0.92× slower", "+5.00 points"):
        assert phrase in text, phrase
    assert page.count("<svg") == 2  # one setting, the work
    assert read(page).open == []


def test_folders_with_benchmarks_of_their_own_are_compared_by_ratio_only(family: Path, made: Path) -> None:
    (family / "bench.json").unlink()
    for name in ("narrow", "paper"):
        write_json(family / name / "bench.json", rated(made, {"dense": (1.0, None), "student": (1.25, "faster")}))
    text = words(render_comparison(read_comparison(family)))
    assert "The timings come from 2 sessions" in text
    assert text.count("1.25× faster") == 4  # in the overview and in the timings of both


def test_what_was_not_measured_is_named_not_dropped(family: Path) -> None:
    (family / "paper" / "metrics.json").unlink()
    assert "Not shown, accuracy or speed missing: paper." in words(render_comparison(read_comparison(family)))
    (family / "bench.json").unlink()
    text = words(render_comparison(read_comparison(family)))
    assert "Speed not measured: run vitslim bench narrow paper --out bench.json" in text


def test_students_of_different_teachers_are_cautioned_and_compared_with_their_own(family: Path) -> None:
    change(family / "paper" / "metrics.json", lambda found: found["teacher"].update(top1=0.2))
    assert read_comparison(family).cautions == [
        "The folders report different figures for the teacher, so they were evaluated differently."
    ]
    change(family / "paper" / "config.json", lambda found: found["base"].update(architecture="other"))
    found = read_comparison(family)
    assert found.cautions == ["The students start from different models: builtin, other."]
    rows = {row.model: row for row in found.rows}
    assert rows["paper"].top1_vs_teacher == pytest.approx(0.6)
    assert rows["narrow"].top1_vs_teacher == pytest.approx(0.05)
    assert {"dense teacher (other)", "dense teacher (builtin)"} < set(rows)


def test_folders_are_given_one_by_one_or_by_what_holds_them(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "paper", tmp_path / "elsewhere" / "paper")
    both = read_comparison([family / "narrow", family / "paper", family])
    assert [row.model for row in both.rows if not row.is_dense] == ["paper", "narrow"]
    alike = read_comparison([family / "paper", tmp_path / "elsewhere"])
    assert [row.model for row in alike.rows if not row.is_dense] == ["family/paper", "elsewhere/paper"]


def test_a_student_that_the_common_benchmark_leaves_out_has_its_own(family: Path, made: Path) -> None:
    shutil.copytree(family / "paper", family / "late")
    write_json(family / "late" / "bench.json", rated(made, {"dense": (1.0, None), "student": (1.1, "faster")}))
    assert [one.speedup_vs_dense for one in row_of(family, "late").speed] == [1.1]
    assert len(read_comparison(family).benches) == 2


def test_a_dense_folder_has_the_timings_of_the_dense_model(family: Path) -> None:
    (family / "tuned").mkdir()
    shutil.copy(family / "paper" / "train" / "dense" / "config.json", family / "tuned")
    tuned = row_of(family, "tuned")
    assert tuned.is_dense
    assert [one.speedup_vs_dense for one in tuned.speed] == [1.0]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_output_folders_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no output folders"):
        read_comparison(tmp_path / name)
