"""The page of a folder is rendered again from its JSON, whatever wrote it."""

import shutil
from pathlib import Path

import pytest

from tests.report.reading import words
from tests.report.test_suite_report import ACCURACY, REPORT
from vitslim.bench import count_macs
from vitslim.checkpoint import load
from vitslim.errors import CheckpointError
from vitslim.files import read_json, write_json
from vitslim.opening import dense_baseline
from vitslim.pipeline.rendering import render_again
from vitslim.report.numbers import amount


def test_the_page_of_a_benchmark_is_rendered_again(tmp_path: Path) -> None:
    for name, report in (("suite", REPORT), ("accuracy", ACCURACY)):
        folder = tmp_path / name
        write_json(folder / "suite.json", report.model_dump(mode="json"))
        page = render_again(folder)
        assert page == folder / "suite.html"
        assert "evo-vit" in page.read_text()


def test_the_page_of_a_demo_is_its_comparison_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "skipat")
    write_json(tmp_path / "demo.json", {"notes": ["A quick run."]})
    text = render_again(tmp_path).read_text()
    assert "All models in one table" in text
    assert "A quick run." in text


def test_a_folder_of_students_is_compared(finished: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
    page = render_again(tmp_path)
    assert page == tmp_path / "compare.html"
    assert "builtin: 2 students" in page.read_text()
    assert render_again(tmp_path / "one") == tmp_path / "one" / "report.html"


def test_the_page_of_a_run_holds_what_every_stage_left(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    text = words(render_again(out).read_text())
    cost = read_json(out / "cost.json")
    assert cost["params"] == read_json(out / "config.json")["parameters"]
    assert (cost["macs"], cost["dense_macs"]) == (count_macs(load(out)), count_macs(dense_baseline(load(out))))
    assert f"Parameters {amount(cost['params'])} ".replace("\u202f", " ") in text
    for phrase in (
        "builtin → skipat",
        "Layer-local imitation error on the same batches",
        "Warm start, layer by layer: settings and result.",
        "Distillation: settings and result.",
        "vitslim run recipe.yaml --out run",
    ):
        assert phrase in text, phrase


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "suite.json", {"rows": []})
    with pytest.raises(CheckpointError, match="no report of a benchmark"):
        render_again(tmp_path)
