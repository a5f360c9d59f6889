import pytest
import timm
import torch

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.export import TOLERANCES, ParityReport, Tolerance, export_onnx, require_parity, tolerance_for, verify
from vitslim.export.parity import _About, _compare
from vitslim.methods import convert
from vitslim.runtime import working_copy

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


@pytest.mark.parametrize("name", ["vit", "eva", "beit", "skipat"])
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
    with pytest.raises(CheckFailedError, match=r"vit-fp32.onnx \(fp32, batch 1\): largest difference .* exceeds"):
        require_parity(report)


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
    require_parity(report)


def compared(expected, given, classes=True, limits=LIMITS):
    about = _About("as written", "ort", "fp32", (32, 32))
    return _compare(about, 1, torch.tensor(expected), torch.tensor(given), limits, classes)


def test_a_changed_class_counts_unless_the_two_best_were_a_tie():
    tie = compared([[1.0, 0.995]], [[0.995, 1.0]])
    assert (tie.top1_agreement, tie.ties, tie.passed) == (0.0, 1, True)
    wide = LIMITS.model_copy(update={"relative": 1.0, "cosine": 0.0})
    changed = compared([[1.0, 0.5]], [[0.5, 1.0]], limits=wide)
    assert changed.failures == ["top-1 agreement 0.0000 is below 1.0: 1 of 1 images changed class, 0 of them ties"]
    assert compared([[1.0, 0.5]], [[0.5, 1.0]], classes=False, limits=wide).top1_agreement is None


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


def test_only_half_precision_of_a_model_that_chooses_has_wider_limits(exported):
    dense = exported("vit")[0]
    for method in ("evo_vit", "sparsifiner"):
        choosing = convert(dense, method)
        assert tolerance_for(choosing, "fp32") == TOLERANCES["fp32"]
        for precision in ("fp16", "bf16"):
            usual, wider = TOLERANCES[precision], tolerance_for(choosing, precision)
            assert wider.relative > usual.relative
            assert wider.model_copy(update={"relative": usual.relative}) == usual
    for model in (dense, convert(dense, "skipat"), convert(dense, "sret")):
        assert tolerance_for(model, "fp16") == TOLERANCES["fp16"]
