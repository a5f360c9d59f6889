"""The accuracy benchmark: everything trained at one budget, stopped and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitslim import checkpoint
from vitslim.bench.suite import SuiteReport
from vitslim.files import read_json
from vitslim.pipeline.rendering import read_suite
from vitslim.pipeline.suite import Suite, process, read_preset, runner
from vitslim.pipeline.suite.training import model_digest
from vitslim.plans import changed_blocks
from vitslim.trunk import is_converted, plan_of

TINY = (
    "models.teacher.options={depth: 4, embed_dim: 48, num_heads: 3, patch_size: 8}",
    "models.sibling.options={depth: 4, embed_dim: 24, num_heads: 3, patch_size: 8}",
    "training.data.classes=4",
    "training.batch_size=8",
    "training.analyze_images=16",
    "training.data.val_per_class=4",
    "training.teacher.steps=3",
    "training.budget.steps=2",
    "training.warm_start.steps=2",
    "training.data.train_per_class=50",
    "competitors={skipat: {convert: [{method: skipat, layers: auto}], warm_start: true}, "
    "evo-vit: {convert: [{method: evo_vit}]}}",
    "groups.0.competitors=[skipat, evo-vit, depth-drop, narrow-mlp, lower-resolution, smaller-sibling]",
)
MODELS = [
    "teacher",
    "dense-finetuned",
    "skipat",
    "evo-vit",
    "depth-drop",
    "narrow-mlp",
    "lower-resolution",
    "smaller-sibling",
]


def run(folder: Path, *overrides: str, **options: Any) -> SuiteReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_in_child", process.attempt)
        return Suite("accuracy", folder, quick=True, overrides=(*TINY, *overrides)).run(**options)


def model_in(folder: Path, name: str) -> nn.Module:
    (found,) = folder.glob(f"{name}-*/model")
    return checkpoint.load(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteReport, Path]:
    """A whole run. Shared between tests: never change its folder."""
    folder = tmp_path_factory.mktemp("accuracy") / "out"
    return run(folder), folder


def test_everything_is_trained_and_measured(whole: tuple[SuiteReport, Path]) -> None:
    report, folder = whole
    assert list(report.accuracy) == MODELS
    assert report.left == []
    assert read_suite(folder) == report
    assert str(folder) not in (folder / "suite.json").read_text()
    steps = {name: row.steps for name, row in report.accuracy.items()}
    assert steps.pop("teacher") == 3
    assert set(steps.values()) == {2}  # the same budget for everybody, the fine-tuned baseline included
    assert all(0 <= row.top1 <= 1 and row.images == 16 for row in report.accuracy.values())


def test_students_are_compared_with_the_teacher_where_both_see_the_same_images(
    whole: tuple[SuiteReport, Path],
) -> None:
    agreement = {name: row.agreement for name, row in whole[0].accuracy.items()}
    assert agreement.pop("teacher") is None
    assert agreement.pop("lower-resolution") is None
    assert all(value is not None for value in agreement.values())


def test_every_model_has_its_speed_and_the_teacher_that_of_dense(whole: tuple[SuiteReport, Path]) -> None:
    (case,) = whole[0].cases
    for one in whole[0].trained:
        timed = case.row("dense" if one.model in ("teacher", "dense-finetuned") else one.model)
        assert (timed.macs, timed.params, timed.kind) == (one.row.macs, one.row.params, one.row.kind)
        assert timed.model == one.timed_as


def test_the_models_are_there_to_be_loaded(whole: tuple[SuiteReport, Path]) -> None:
    _, folder = whole
    teacher, student = model_in(folder, "teacher"), model_in(folder, "skipat")
    assert not is_converted(teacher)
    (analysis,) = folder.glob("teacher-*/analysis-16.json")
    assert changed_blocks(plan_of(teacher), plan_of(student)) == read_json(analysis)["recommended"]["layers"]
    assert len(model_in(folder, "depth-drop").blocks) == 3
    assert model_in(folder, "lower-resolution").patch_embed.img_size == (24, 24)


def test_a_second_call_trains_nothing_anew(whole: tuple[SuiteReport, Path]) -> None:
    report, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = run(folder)
    assert (again.trained, again.cases) == (report.trained, report.cases)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_run_that_is_stopped_at_every_step_ends_like_one_without_a_stop(
    whole: tuple[SuiteReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(runner.time, "perf_counter", clock)
    calls = 0
    while True:
        calls += 1
        # The clock runs a second at each look, so that a call lasts some steps.
        report = run(tmp_path / "out", minutes=0.4)
        if not {*MODELS} & {*report.left} or calls > 40:
            break
    assert 3 < calls <= 40
    for name in MODELS:
        first, second = (model_in(folder, name).state_dict() for folder in (whole[1], tmp_path / "out"))
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name


def test_without_a_teacher_no_student_is_trained(tmp_path: Path) -> None:
    report = run(tmp_path / "out", "training.teacher.lr=1.0e+30")
    assert report.statuses == {"teacher": "failed"}
    assert {*MODELS[1:]} < {*report.left}


def test_what_other_settings_trained_stays(whole: tuple[SuiteReport, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[1], tmp_path / "out"))
    # No time is left: what is trained anew stays begun.
    report = run(folder, "training.budget.steps=1", minutes=0.0)
    assert list(report.accuracy) == ["teacher"]
    again = run(folder)
    assert (again.trained, again.cases) == (whole[0].trained, whole[0].cases)


@pytest.mark.parametrize("origin", ["code_digest", "library_versions"])
def test_other_code_or_versions_are_trained_anew(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = read_preset("accuracy", "cpu")
    before = model_digest(preset, "teacher")
    found = {"code_digest": "other", "library_versions": {"torch": "2.11.0"}}[origin]
    monkeypatch.setattr(f"vitslim.pipeline.suite.training.{origin}", lambda **_: found)
    assert model_digest(preset, "teacher") != before


def test_only_what_a_setting_decides_is_made_anew() -> None:
    def digests(*overrides: str) -> dict[str, str]:
        preset = read_preset("accuracy", "cpu", overrides=(*TINY, *overrides))
        return {name: model_digest(preset, name) for name in ["teacher", *preset.students]}

    base = digests()
    assert len(set(base.values())) == len(base)

    def changed(*overrides: str) -> set[str]:
        return {name for name, digest in digests(*overrides).items() if digest != base[name]}

    assert changed("rounds=99") == set()
    assert changed("competitors.skipat.warm_start=false") == {"skipat"}
    assert changed("training.budget.lr=1e-4") == {*base} - {"teacher"}
    assert changed("training.data.classes=5") == {*base}
