import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import timm
import torch
from onnx import numpy_helper

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError
from vitslim.methods import convert
from vitslim.runtime import working_copy
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.parity import comparing as parity
from vitslim.targets.parity.comparing import _About, _compare, _OnItsChoices
from vitslim.targets.parity.distance import distance
from vitslim.targets.parity.result import ParityReport
from vitslim.targets.parity.tolerances import TOLERANCES, Tolerance
from vitslim.targets.record import export_record_path

LIMITS = Tolerance(relative=1e-2, cosine=0.999, top1_agreement=1.0, tie=1e-2)


@pytest.mark.parametrize("name", ["vit", "eva", "beit", "skipat", "skipat_eva"])
def test_every_family_keeps_its_function_in_fp32_at_batch_1_and_3(exported, images, name):
    model, path, _ = exported(name)
    report = verify(model, path, images)
    assert report.failures() == []
    assert report.passed
    assert [check.batch for check in report.checks] == [1, 3]
    for check in report.checks:
        assert (check.artifact, check.precision, check.images) == (path.name, "fp32", 7)
        assert check.max_abs < 2e-6 * check.scale  # far inside the tolerance, which leaves room for real sizes
        assert check.top1_agreement == 1.0


# In half a family's graph is that of float32 with casts.
@pytest.mark.parametrize(
    "name", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("eva", "beit", "skipat"))]
)
def test_every_family_keeps_its_function_in_fp16(exported, images, name):
    model, path, _ = exported(name, "fp16")
    report = verify(model, path, images)
    assert report.failures() == []
    for check in report.checks:
        assert check.precision == "fp16"
        assert 1e-6 * check.scale < check.max_abs < check.tolerance  # it did compute in fp16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_deit_small_stays_far_inside_the_tolerance(tmp_path, alive, precision):
    model = alive(timm.create_model("deit_small_patch16_224"))
    export_onnx(model, tmp_path / "deit.onnx", precision=precision)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for check in verify(model, tmp_path / "deit.onnx", images).checks:
        assert check.passed
        assert check.max_abs < 0.1 * check.tolerance


def test_a_file_of_another_model_fails_and_says_by_how_much(exported, images):
    path = exported("vit")[1]
    other = working_copy(exported("vit")[0])
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight.mul_(0.5)
    report = verify(other, path, images)
    assert not report.passed
    assert re.match(r"vit-fp32.onnx, batch 1( and batch 3)?: largest difference .* exceeds", report.failures()[0])


def test_one_lost_bias_is_outside_the_tolerance_of_fp16_too(exported, images):
    path = exported("vit", "fp16")[1]
    other = working_copy(exported("vit")[0])
    with torch.no_grad():
        other.blocks[2].mlp.fc1.bias.zero_()
    assert not verify(other, path, images).passed


def test_a_fixed_batch_is_checked_as_it_is_with_a_note(tmp_path, exported, images):
    model = exported("one_block")[0]
    export_onnx(model, tmp_path / "two.onnx", batch=2)
    report = verify(model, tmp_path / "two.onnx", images[:3])
    assert report.passed
    assert [check.batch for check in report.checks] == [2]
    assert report.notes == ["the file takes batch 2 only; asked for [1, 3]"]


def test_one_image_is_enough_and_none_is_refused(exported, images):
    model, path, _ = exported("one_block")
    assert verify(model, path, images[:1], batches=(3,)).passed
    with pytest.raises(ConfigError, match="at least one image"):
        verify(model, path, images[:0])


def test_a_report_survives_json(exported, images):
    model, path, _ = exported("one_block")
    report = verify(model, path, images[:2])
    assert ParityReport.model_validate(report.model_dump(mode="json")) == report
    assert report.passed


def compared(expected, given, classes=True, limits=LIMITS):
    return _compare(about(classes, limits), 1, torch.tensor(expected), torch.tensor(given))


def about(classes=True, limits=LIMITS):
    return _About("m.onnx", "as written", "ort", "fp32", (32, 32), limits, classes, chooses=False)


def test_a_changed_class_counts_unless_the_two_best_were_a_tie():
    tie = compared([[1.0, 0.995]], [[0.995, 1.0]])
    assert (tie.top1_agreement, tie.ties, tie.passed) == (0.0, 1, True)
    wide = LIMITS.model_copy(update={"relative": 1.0, "cosine": 0.0})
    changed = compared([[1.0, 0.5]], [[0.5, 1.0]], limits=wide)
    assert changed.failures == ["top-1 agreement 0.0000 is below 1.0: 1 of 1 images changed class, 0 of them ties"]
    assert compared([[1.0, 0.5]], [[0.5, 1.0]], classes=False, limits=wide).top1_agreement is None


@pytest.mark.parametrize(("apart", "passes"), [(1.9, True), (2.1, False)])
def test_scores_change_places_where_rounding_moves_one_up_and_one_down(apart, passes):
    outputs = torch.tensor([[1.0, 0.5]])
    excess = torch.tensor([apart * LIMITS.relative])
    on_choices = _OnItsChoices(outputs, outputs, differs=torch.tensor([True]), excess=excess)
    check = _compare(about(), 1, outputs, outputs, on_choices)
    assert (check.passed, check.chosen_otherwise) == (passes, 1)


def test_outputs_that_are_not_finite_fail_and_still_fit_json():
    check = compared([[1.0, 0.5]], [[float("nan"), 0.5]])
    assert check.not_finite == 1
    assert "1 outputs are NaN or infinite" in check.failures
    assert check.max_abs == 0.0


def test_a_model_that_gives_zeros_is_compared_without_dividing_by_zero():
    assert compared([[0.0, 0.0]], [[0.0, 0.0]]).passed
    assert not compared([[0.0, 0.0]], [[1e-3, 0.0]]).passed


def test_another_shape_is_another_model():
    with pytest.raises(CheckFailedError, match="was the file made from this model"):
        compared([[1.0, 0.5]], [[1.0, 0.5, 0.2]])


def test_a_model_that_gives_nan_gets_a_verdict_that_fits_json(exported, images):
    model, path, _ = exported("one_block")
    broken = working_copy(model)
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    report = verify(broken, path, images)
    assert not report.passed
    assert report.checks[0].failures == ["the model itself gives NaN or infinity for 7 of 7 images"]
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


# --- what was guaranteed --------------------------------------------------------------------------------------------


def doctored(source: Path, target: Path, *, scale: float = 1.0, says: str | None = None) -> Path:
    """A copy of an exported file with its record, whose classifier is scaled, and which says another precision."""
    model = onnx.load(source)
    for weight in model.graph.initializer:
        if weight.name.startswith("head."):
            values = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array((values * scale).astype(values.dtype), weight.name))
    if says is not None:
        onnx.helper.set_model_props(
            model, {entry.key: entry.value for entry in model.metadata_props} | {"precision": says}
        )
    onnx.save(model, target)
    shutil.copy(export_record_path(source), export_record_path(target))
    return target


def test_a_file_is_compared_with_what_was_guaranteed_and_not_with_what_it_says(exported, images, tmp_path):
    model, source, _ = exported("one_block")
    report = verify(model, doctored(source, tmp_path / "m.onnx", scale=1.05, says="bf16"), images)
    check = report.checks[0]
    assert not report.passed
    assert (check.precision, check.limits) == ("fp32", TOLERANCES["fp32"])
    assert check.failures[0] == "it says bf16 of itself, exported was fp32"
    assert check.failures[1] == "it was changed after it was exported; export it again, or remove m.onnx.json"
    assert check.failures[2].startswith("largest difference")
    for says in ("bf16", "fp16"):
        assert not verify(model, doctored(source, tmp_path / "same.onnx", says=says), images).passed


def test_without_a_record_a_file_is_held_to_fp32_or_to_who_asks_never_to_itself(exported, images, tmp_path):
    model, source, _ = exported("one_block")
    path = doctored(source, tmp_path / "m.onnx", scale=1.01, says="bf16")
    export_record_path(path).unlink()
    report = verify(model, path, images)
    assert (report.passed, report.checks[0].precision) == (False, "fp32")
    assert "calls itself bf16; no m.onnx.json beside it names a guarantee" in report.notes[0]
    # Its weights are float32, whatever is asked.
    assert not verify(model, path, images, precision="bf16").passed
    half = shutil.copy(exported("one_block", "fp16")[1], tmp_path / "half.onnx")
    assert not verify(model, half, images).passed
    assert verify(model, half, images, precision="fp16").passed


def test_a_precision_that_contradicts_the_record_is_refused(exported, images):
    model, path, _ = exported("one_block", "fp16")
    with pytest.raises(ConfigError, match=r"was exported as fp16 \(.*json\); --precision bf16 contradicts it"):
        verify(model, path, images, precision="bf16")


def test_other_weights_than_those_of_the_export_are_said(exported, images):
    model, path, _ = exported("one_block")
    other = working_copy(model)
    with torch.no_grad():
        other.head.bias.add_(1.0)
    assert any(
        "exported from other weights than the model has now" in note for note in verify(other, path, images).notes
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', "NaN"])
def test_a_damaged_record_is_named(text, exported, images, tmp_path):
    model, source, _ = exported("one_block")
    path = doctored(source, tmp_path / "m.onnx")
    export_record_path(path).write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.onnx\.json"):
        verify(model, path, images)


def test_the_same_model_gives_the_same_file(exported, tmp_path):
    model, source, _ = exported("one_block")
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == source.read_bytes()
    assert export_record_path(tmp_path / "again.onnx").read_bytes() == export_record_path(source).read_bytes()


# --- choices that fall otherwise ------------------------------------------------------------------------------------

STRICT = TOLERANCES["fp32"]


def outputs(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(0))


def nudged(expected: torch.Tensor, images: int, by: float) -> torch.Tensor:
    given = expected.clone()
    given[:images, 0] += by * expected.abs().max()
    return given


@pytest.mark.parametrize(
    ("count", "images", "by", "is_flip"),
    [
        (32, 1, 1e-3, True),
        (32, 8, 1e-3, True),
        (32, 9, 1e-3, False),
        (2, 1, 1e-3, True),
        (1, 1, 1e-3, False),
        (32, 1, 5e-2, False),
        (32, 0, 0.0, False),
    ],
)
def test_few_images_that_moved_a_little_are_a_flipped_choice(count, images, by, is_flip):
    expected = outputs(count)
    given = nudged(expected, images, by)
    found = distance(expected, given, STRICT, classes=False, chooses=True)
    assert (found.exceeding, found.is_flipped_choice) == (images, is_flip)
    assert not distance(expected, given, STRICT, classes=False, chooses=False).is_flipped_choice


@pytest.mark.parametrize(("by", "is_flip"), [(0.11, True), (0.13, False)])
def test_what_rounding_does_comes_on_top_of_a_flipped_choice(by, is_flip):
    expected = outputs(32)
    found = distance(expected, nudged(expected, 1, by), TOLERANCES["bf16"], classes=False, chooses=True)
    assert (found.exceeding, found.is_flipped_choice) == (1, is_flip)


def test_a_changed_class_or_nan_is_no_flipped_choice():
    expected = outputs()
    expected[0, :2] = expected[0].max() + torch.tensor([1.0, 0.999])
    given = expected.clone()
    given[0, :2] = expected[0, [1, 0]]
    assert distance(expected, given, STRICT, classes=False, chooses=True).is_flipped_choice
    assert not distance(expected, given, STRICT, classes=True, chooses=True).is_flipped_choice
    given[0, 0] = float("nan")
    assert not distance(expected, given, STRICT, classes=False, chooses=True).is_flipped_choice


def test_a_file_of_a_model_that_chooses_is_still_held_to_its_numbers(alive, images, tmp_path):
    model = alive(convert(timm.create_model("test_vit", img_size=32, depth=2), "sparsifiner"))
    export_onnx(model, tmp_path / "m.onnx")
    assert verify(model, tmp_path / "m.onnx", images, batches=(3,)).passed
    for factor in (1.05, 1.01, 1.001):
        path = doctored(tmp_path / "m.onnx", tmp_path / "scaled.onnx", scale=factor)
        assert not verify(model, path, images, batches=(3,)).passed, factor
    other = working_copy(model)
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.roll(1, dims=0))
    assert not verify(other, tmp_path / "m.onnx", images, batches=(3,)).passed
    content = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        verify(model, tmp_path / "m.onnx", images)


def test_a_flipped_choice_passes_and_is_said_once(exported, images, monkeypatch):
    model, path, _ = exported("one_block")
    nudge = nudged
    run = parity._in_batches
    monkeypatch.setattr(parity, "trunk_of", lambda model: SimpleNamespace(chooses=True))
    monkeypatch.setattr(parity, "is_converted", lambda model: True)
    monkeypatch.setattr(
        parity,
        "_in_batches",
        lambda call, given, size: nudge(run(call, given, size), int(call.__self__.backend == "ort"), 1e-3),
    )
    report = verify(model, path, images)
    assert report.passed
    assert [check.exceeding for check in report.checks] == [1, 1]
    assert report.notes == [
        f"{path.name}: 1 of 7 images exceeds; probably a flipped choice; top-1 100 %, "
        f"cosine {report.checks[0].cosine:.6f}"
    ]
