"""The opset that is chosen when none is asked for: TensorRT takes such a file as it stands, in every precision."""

import pytest
from timm.models.vision_transformer import VisionTransformer

from tests.variants import SIZE
from vitslim.errors import ConfigError
from vitslim.targets.onnx.export import OPSETS, export_onnx
from vitslim.targets.tensorrt.build import build_engine
from vitslim.targets.tensorrt.options import EngineOptions

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (vitslim[rtx]); no engine can be built here")


@pytest.fixture(scope="module")
def dense():
    return VisionTransformer(**{**SIZE, "depth": 1}).eval()


@pytest.mark.parametrize(("precision", "fused"), [("fp32", 0), ("fp16", 1), ("bf16", 1)])
def test_tensorrt_builds_the_default_file_unchanged_and_fuses_attention_in_half(tmp_path, dense, precision, fused):
    record = export_onnx(dense, tmp_path / "m.onnx", precision=precision)
    assert (record.opset, record.notes) == (OPSETS[precision], [])
    options = EngineOptions(flavor="rtx", batch=(1, 2, 4), precision=precision)
    engine = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", options)
    # What trtexec would read: nothing had to be mended.
    assert engine.changes == []
    assert (engine.fused_mha.found, engine.fused_mha.expected) == (fused, 1)


def test_the_attention_operator_in_float32_is_noted_and_no_engine_is_built_from_it(tmp_path, dense):
    record = export_onnx(dense, tmp_path / "m.onnx", opset=23)
    assert "which TensorRT does not build in fp32; opset 20, the default, runs everywhere" in record.notes[0]
    with pytest.raises(ConfigError, match=r"holds 1 Attention operators, .* does not build in fp32; export with opset"):
        build_engine(
            tmp_path / "m.onnx", tmp_path / "m.engine", EngineOptions(flavor="rtx", batch=(1, 1, 1), precision="fp32")
        )
    assert not (tmp_path / "m.engine").exists()
