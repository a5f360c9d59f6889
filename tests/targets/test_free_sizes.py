"""Files that take images of any height and width: one export, many sizes, each against torch at that size."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.cases import CASES
from tests.variants import dense, images_for, lively_
from vitslim.errors import UnsupportedModelError
from vitslim.methods import convert
from vitslim.runtime import OrtRunner
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.free_sizes import probe_sizes
from vitslim.targets.onnx.types import precision_errors
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.target import write_onnx

SIZES = [(32, 32), (24, 56), (16, 64), (64, 16), (48, 48)]
"""Square, oblong, and two with as many patches as the model's own 4 × 4."""


def converted(*cases: str, source: str = "vit_dynamic_size", **changes: int) -> nn.Module:
    model = dense(source, **changes)
    for case in cases:
        model = convert(model, CASES[case].method, **CASES[case].options)
    # New modules start close to the identity, to which the grid makes no difference.
    return lively_(copy.deepcopy(model))


def built_for(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model with another fixed size: it knows its grid without looking at the images."""
    copied = copy.deepcopy(model)
    copied.set_input_size(size)
    return copied


# An export takes seconds: the other cases differ by plain products and by the prefix.
@pytest.mark.parametrize(
    "cases", [("skipat_prefix",), pytest.param(("sret_stepwise", "skipat_narrow"), marks=pytest.mark.slow)]
)
def test_one_file_computes_what_torch_does_at_every_size(tmp_path, cases):
    model = converted(*cases)
    record = export_onnx(model, tmp_path / "m.onnx", dynamic_image_size=True)
    assert record.inputs[0].shape == [None, 3, None, None]
    with OrtRunner(tmp_path / "m.onnx") as runner, torch.no_grad():
        for size in SIZES:
            images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
            expected = built_for(model, size)(images)
            # Sums in another order; fifty times less than what a transposed grid changes.
            torch.testing.assert_close(runner.run(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["vit_four_registers", pytest.param("distilled", marks=pytest.mark.slow)])
def test_a_model_that_was_opened_for_one_size_gives_such_a_file_too(tmp_path, source):
    model = converted("skipat", source=source, depth=3)
    record = export_onnx(model, tmp_path / "m.onnx", dynamic_image_size=True)
    assert record.inputs[0].shape == [None, 3, None, None]
    assert not model.dynamic_img_size
    with OrtRunner(tmp_path / "m.onnx") as runner, torch.no_grad():
        for size in SIZES[1:3]:
            images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(runner.run(images), built_for(model, size)(images), rtol=0, atol=1e-5)
    report = verify(model, tmp_path / "m.onnx", images_for(model, batch=3))
    assert report.failures() == []
    assert {check.image_size for check in report.checks} == {(32, 32), probe_sizes(model)[0]}


def test_a_wrong_grid_would_show():
    model, images = converted("skipat"), torch.randn(2, 3, 16, 64)
    turned = built_for(model, (64, 16))
    tokens = model._pos_embed(model.patch_embed(images))
    with torch.no_grad():
        assert (turned.blocks(tokens) - built_for(model, (16, 64)).blocks(tokens)).abs().max() > 1e-2


def test_a_dense_file_is_verified_at_a_second_size_too(tmp_path):
    model = dense("vit_dynamic_size", depth=1)
    export_onnx(model, tmp_path / "m.onnx", dynamic_image_size=True)
    report = verify(model, tmp_path / "m.onnx", images_for(model, batch=3))
    assert report.failures() == []
    assert {check.image_size for check in report.checks} == {(32, 32), probe_sizes(model)[0]}


def test_bytes_and_half_precision_go_with_free_sizes(tmp_path):
    model = converted("skipat", depth=3)
    record = export_onnx(
        model, tmp_path / "m.onnx", precision="fp16", input_format="uint8-nhwc", dynamic_image_size=True
    )
    assert (record.inputs[0].dtype, record.inputs[0].shape) == ("uint8", [None, None, None, 3])
    assert precision_errors(tmp_path / "m.onnx", "fp16") == []
    assert verify(model, tmp_path / "m.onnx", images_for(model, batch=3)).failures() == []


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (("evo_vit",), "kept 50 %.*how many patches take part has to be a constant"),
        (("sparsifiner_tile",), "40 % of the keys.*how many keys are kept has to be a constant"),
        (("sparsifiner_pruned",), "has to be a constant"),
        (("sret, sliced",), "4 slices.*the size of a slice are fixed for one grid"),
        (("skipat", "evo_vit"), "how many patches take part has to be a constant"),
    ],
)
def test_a_method_that_needs_constants_is_refused_with_the_reason(tmp_path, cases, message):
    with pytest.raises(UnsupportedModelError, match=rf"dynamic_image_size: .*{message}; export one file per size"):
        export_onnx(converted(*cases), tmp_path / "m.onnx", dynamic_image_size=True)
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_sizes_for_an_engine_is_refused_by_its_own_name(tmp_path):
    wanted = EngineOptions(image_size=(32, 64, 128))
    message = r"^image_size \(--image-size\): this model has steps with .*; export one file per size"
    with pytest.raises(UnsupportedModelError, match=message):
        write_onnx(converted("evo_vit"), tmp_path / "m.onnx", wanted, {})


def test_a_table_of_the_traced_size_keeps_its_size(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"at 32x32 the file would differ .*rotary positions"):
        export_onnx(dense("eva_dinov3", depth=1), tmp_path / "m.onnx", dynamic_image_size=True)
    with pytest.raises(UnsupportedModelError, match="this Eva has rotary positions for one image size; export one"):
        export_onnx(dense("eva_rotary", depth=1), tmp_path / "m.onnx", dynamic_image_size=True)
    with pytest.raises(UnsupportedModelError, match="this Beit is built for one image size"):
        export_onnx(dense("beit_own_bias", depth=1), tmp_path / "m.onnx", dynamic_image_size=True)
    assert list(tmp_path.iterdir()) == []
