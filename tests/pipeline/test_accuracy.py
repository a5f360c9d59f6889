"""The accuracy benchmark: everything trained at one budget, stopped and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim import checkpoint
from vitslim.bench.accuracy import AccuracyReport
from vitslim.errors import ConfigError
from vitslim.files import read_json
from vitslim.pipeline.suite import AccuracyPreset, read_preset, run_accuracy, runner
from vitslim.pipeline.suite.training import model_digest
from vitslim.plans import changed_blocks
from vitslim.trunk import is_converted, plan_of

TINY = (
    "model.options={depth: 4, embed_dim: 48, num_heads: 3, patch_size: 8}",
    "sibling.options={depth: 4, embed_dim: 24, num_heads: 3, patch_size: 8}",
    "data.classes=4",
    "batch_size=8",
    "analyze_images=16",
    "data.val_per_class=4",
    "teacher.steps=3",
    "budget.steps=2",
    "warm_start.steps=2",
    "data.train_per_class=50",
    "students={skipat: {convert: [{method: skipat, layers: auto}], warm_start: true}, "
    "evo-vit: {convert: [{method: evo_vit}]}}",
)
FEW = "students={evo-vit: {convert: [{method: evo_vit}]}}"
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


def run(folder: Path, *overrides: str, **options: Any) -> AccuracyReport:
    return run_accuracy(folder, preset="cpu", quick=True, overrides=(*TINY, *overrides), isolate=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[AccuracyReport, Path]:
    """A whole run. Shared between tests: never change its folder."""
    folder = tmp_path_factory.mktemp("accuracy") / "out"
    return run(folder), folder


def test_everything_is_trained_and_measured(whole: tuple[AccuracyReport, Path]) -> None:
    report, folder = whole
    assert [row.model for row in report.rows] == MODELS
    assert report.left == []
    assert AccuracyReport.model_validate(read_json(folder / "accuracy.json")) == report
    assert str(folder) not in (folder / "accuracy.json").read_text()
    steps = {row.model: row.steps for row in report.rows}
    assert steps.pop("teacher") == 3
    assert set(steps.values()) == {2}  # the same budget for everybody, the dense model included
    assert all(0 <= row.top1 <= 1 and row.images == 16 for row in report.rows)
    assert report.drawn_images_per_second > 0


def test_students_are_compared_with_the_teacher_where_both_see_the_same_images(
    whole: tuple[AccuracyReport, Path],
) -> None:
    agreement = {row.model: row.agreement for row in whole[0].rows}
    assert agreement.pop("teacher") is None
    assert agreement.pop("lower-resolution") is None
    assert all(value is not None for value in agreement.values())


def test_every_row_has_its_speed_and_the_teacher_that_of_dense(whole: tuple[AccuracyReport, Path]) -> None:
    for row in whole[0].rows:
        (timed,) = row.speed
        assert (timed.macs, timed.kind) == (row.macs, row.kind)
        assert timed.model == ("dense" if row.model in ("teacher", "dense-finetuned") else row.model)


def test_the_models_are_there_to_be_loaded(whole: tuple[AccuracyReport, Path]) -> None:
    _, folder = whole
    teacher = checkpoint.load(folder / "teacher" / "model")
    student = checkpoint.load(folder / "skipat" / "model")
    assert not is_converted(teacher)
    chosen = changed_blocks(plan_of(teacher), plan_of(student))
    assert chosen == read_json(folder / "teacher" / "analysis.json")["recommended"]["layers"]
    shallow = checkpoint.load(folder / "depth-drop" / "model")
    assert len(shallow.blocks) == 3
    smaller = checkpoint.load(folder / "lower-resolution" / "model")
    assert smaller.patch_embed.img_size == (24, 24)


def test_a_second_call_trains_nothing_anew(whole: tuple[AccuracyReport, Path]) -> None:
    report, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = run(folder)
    assert again.rows == report.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_run_that_is_stopped_at_every_step_ends_like_one_without_a_stop(
    whole: tuple[AccuracyReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        report = run(tmp_path / "out", FEW, "baselines=[]", minutes=0.15)
        if "speed" not in report.left or calls > 40:
            break
    assert 3 < calls <= 40
    for name in ("teacher", "dense-control", "evo-vit"):
        first = checkpoint.load(whole[1] / name / "model").state_dict()
        second = checkpoint.load(tmp_path / "out" / name / "model").state_dict()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name


def test_another_teacher_does_not_go_on_in_the_folder(whole: tuple[AccuracyReport, Path]) -> None:
    with pytest.raises(ConfigError, match="holds another teacher"):
        run(whole[1], "teacher.steps=4")


@pytest.mark.parametrize("origin", ["code_digest", "library_versions"])
def test_other_code_or_versions_do_not_go_on_in_the_folder(
    origin: str, whole: tuple[AccuracyReport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"code_digest": "other", "library_versions": {"torch": "2.11.0"}}[origin]
    monkeypatch.setattr(f"vitslim.pipeline.suite.training.{origin}", lambda **_: found)
    with pytest.raises(ConfigError, match=r"holds another teacher .*versions or code"):
        run(whole[1])


def test_finished_students_are_replaced_only_when_asked(whole: tuple[AccuracyReport, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[1], tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"holds dense-finetuned, skipat, .* of other settings.*add --again"):
        run(folder, "budget.steps=1")
    assert (folder / "trained" / "skipat.json").is_file()
    # No time is left: what is trained anew stays begun.
    report = run(folder, "budget.steps=1", again=True, minutes=0.0)
    assert [row.model for row in report.rows] == ["teacher"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="this benchmark did not write"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        run(tmp_path / "notes.txt")


def test_only_what_a_setting_decides_is_made_anew() -> None:
    def digests(*overrides: str) -> dict[str, str]:
        preset = read_preset(AccuracyPreset, "cpu", overrides=(*TINY, *overrides))
        return {name: model_digest(preset, name) for name in ["teacher", *preset.names]}

    base = digests()
    assert len(set(base.values())) == len(base)

    def changed(*overrides: str) -> set[str]:
        return {name for name, digest in digests(*overrides).items() if digest != base[name]}

    assert changed("speed.rounds=99") == set()
    assert changed("warm_start.lr=1e-4") == {"skipat"}
    assert changed("sibling.options.depth=3") == {"smaller-sibling"}
    assert changed("budget.lr=1e-4") == {*base} - {"teacher"}
    assert changed("data.classes=5") == {*base}
