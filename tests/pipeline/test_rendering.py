"""The page of a folder is rendered again from its JSON, whatever wrote it."""

from pathlib import Path

import pytest

from tests.report.test_suite_report import ACCURACY, REPORT
from vitslim.errors import CheckpointError
from vitslim.files import write_json
from vitslim.pipeline.rendering import render_again


def test_the_page_of_a_benchmark_is_rendered_again(tmp_path: Path) -> None:
    for name, report in (("suite", REPORT), ("accuracy", ACCURACY)):
        folder = tmp_path / name
        write_json(folder / f"{name}.json", report.model_dump(mode="json"))
        page = render_again(folder)
        assert page == folder / f"{name}.html"
        assert "evo-vit" in page.read_text()


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "accuracy.json", {"rows": []})
    with pytest.raises(CheckpointError, match="no report of the accuracy benchmark"):
        render_again(tmp_path)
