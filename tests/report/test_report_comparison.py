import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_report_page import read, words

from vitslim.errors import CheckpointError
from vitslim.report import (
    Comparison,
    ComparisonEntry,
    comparison_rows,
    read_comparison,
    render_comparison,
    write_comparison,
)
from vitslim.report.documents import Bench, Evaluation


@pytest.fixture
def family(tmp_path: Path, parts: dict[str, Any]) -> Path:
    """Two students in folders of their own, and one benchmark for all."""
    root = tmp_path / "family"
    for name, top1 in (("narrow", 0.77), ("paper", 0.79)):
        out = root / name
        out.mkdir(parents=True)
        metrics = parts["metrics.json"] | {"student": {"images": 400, "top1": top1, "agreement": 0.9}}
        (out / "metrics.json").write_text(json.dumps(metrics))
        (out / "config.json").write_text(json.dumps(parts["config.json"]))
    rows = {row["backend"]: row for row in parts["bench.json"]["rows"] if row["model"] == "dense"}
    shared = [
        rows["torch"],
        rows["torch"] | {"model": "paper", "latency_ms_p50": 10.9, "speedup_vs_dense": 0.917, "speedup_p90": 0.93},
        rows["torch"] | {"model": "narrow", "latency_ms_p50": 8.0, "speedup_vs_dense": 1.25, "speedup_p10": 1.2},
    ]
    (root / "bench.json").write_text(json.dumps(parts["bench.json"] | {"rows": shared}))
    return root


def test_dense_models_come_first_then_students_in_the_order_of_the_benchmark(family: Path) -> None:
    comparison = read_comparison(family, "Toys")
    assert [entry.name for entry in comparison.entries] == ["dense teacher", "dense control", "paper", "narrow"]
    assert comparison.settings == [("torch", "fp32", 1)]


def test_the_page_shows_every_model_with_its_ratio(family: Path) -> None:
    page = render_comparison(read_comparison(family, "Toys"))
    text = words(page)
    for phrase in (
        "Toys",
        "2 students against 2 dense models",
        "1.25× faster",
        "0.92× slower",
        "−2.25 points",
        "+0.50 points",
    ):
        assert phrase in text, phrase
    assert "the teacher’s timings stand for it" in text
    assert "tensorrt fp16: no GPU." in text
    assert "Toy CPU" in text
    assert page.count("<svg") == 2
    assert read(page).open == []


def test_folders_with_benchmarks_of_their_own_are_compared_by_ratio_only(family: Path, parts: dict[str, Any]) -> None:
    (family / "bench.json").unlink()
    for name in ("narrow", "paper"):
        (family / name / "bench.json").write_text(json.dumps(parts["bench.json"]))
    text = words(render_comparison(read_comparison(family)))
    assert "The timings come from 2 sessions" in text
    assert text.count("1.25× faster") == 4  # in the overview and in the timings of both


def test_without_timings_the_page_says_so(family: Path) -> None:
    (family / "bench.json").unlink()
    text = words(render_comparison(read_comparison(family)))
    assert "Speed not measured: run vitslim bench narrow paper --out bench.json" in text
    assert "Not counted" in text


def test_a_student_without_accuracy_is_named_not_dropped(family: Path) -> None:
    (family / "paper" / "metrics.json").unlink()
    assert "Not shown, accuracy or speed missing: paper." in words(render_comparison(read_comparison(family)))


def test_students_of_different_teachers_are_cautioned_and_held_against_their_own(
    family: Path, parts: dict[str, Any]
) -> None:
    metrics = parts["metrics.json"] | {"teacher": {"images": 5, "top1": 0.2}}
    (family / "paper" / "metrics.json").write_text(json.dumps(metrics))
    assert read_comparison(family).cautions == [
        "The folders report different figures for the teacher, so they were evaluated differently."
    ]
    config = parts["config.json"] | {"base": {"architecture": "other"}}
    (family / "paper" / "config.json").write_text(json.dumps(config))
    found = read_comparison(family)
    assert found.cautions == ["The students start from different models: other, vit_toy."]
    rows = {row.model: row for row in comparison_rows(found)}
    assert rows["paper"].top1_vs_teacher == pytest.approx(0.7875 - 0.2)
    assert rows["narrow"].top1_vs_teacher == pytest.approx(0.77 - 0.8125)
    assert {"dense teacher (other)", "dense teacher (vit_toy)"} < set(rows)


def test_folders_are_given_one_by_one_or_by_what_holds_them(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "paper", tmp_path / "elsewhere" / "paper")
    both = read_comparison([family / "narrow", family / "paper", family])
    assert [entry.name for entry in both.entries if not entry.is_dense] == ["paper", "narrow"]
    alike = read_comparison([family / "paper", tmp_path / "elsewhere"])
    assert [entry.name for entry in alike.entries if not entry.is_dense] == ["family/paper", "elsewhere/paper"]
    assert alike.title == "vit_toy: 2 students"


def test_a_student_that_the_common_benchmark_leaves_out_has_its_own(family: Path, parts: dict[str, Any]) -> None:
    shutil.copytree(family / "paper", family / "late")
    (family / "late" / "bench.json").write_text(json.dumps(parts["bench.json"]))
    found = read_comparison(family)
    late = next(entry for entry in found.entries if entry.name == "late")
    assert [row.speedup_vs_dense for row in late.rows] == [1.25, 0.9]
    assert len(found.benches) == 2


def test_a_comparison_can_be_put_together_by_hand(tmp_path: Path, parts: dict[str, Any]) -> None:
    bench = Bench.model_validate(parts["bench.json"])
    entries = [
        ComparisonEntry("dense", Evaluation(images=100, top1=0.8), bench.rows_of("dense"), is_dense=True, macs=40),
        ComparisonEntry("<b>", Evaluation(images=100, top1=0.7), bench.rows_of("student"), note="by hand"),
    ]
    path = write_comparison(Comparison("By hand", entries, [bench], ["Toys only."]), tmp_path / "page.html")
    page = path.read_text()
    assert "<b>" not in page
    assert "Mind: Toys only." in words(page)
    assert page.count("<svg") == 3  # two settings, one bar chart


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_output_folders_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no output folders"):
        read_comparison(tmp_path / name)


def test_parameters_are_of_the_model_that_was_evaluated_not_of_the_one_that_was_timed(family: Path) -> None:
    path = family / "paper" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": 1_234_000}))
    found = {entry.name: entry.parameters for entry in read_comparison(family).entries}
    timed = read_comparison(family).entries[0].rows[0].params
    assert found["paper"] == 1_234_000
    assert found["narrow"] == timed
    assert "1.234 M" in words(render_comparison(read_comparison(family)))


def test_a_dense_folder_has_the_timings_of_the_dense_model(family: Path) -> None:
    path = family / "paper" / "config.json"
    dense = json.loads(path.read_text()) | {"conversions": []}
    (family / "control").mkdir()
    (family / "control" / "config.json").write_text(json.dumps(dense))
    control = next(entry for entry in read_comparison(family).entries if entry.name == "control")
    assert control.is_dense
    assert [row.speedup_vs_dense for row in control.rows] == [1.0]
