"""Where a wrong file first departs from its model; float16 that overflows, which a CPU does not show; the remedy."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.targets.serving import small
from vitslim.errors import CheckFailedError, ConfigError, UnsupportedModelError
from vitslim.targets import TARGETS, verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.types import precision_errors, require_precision


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def overflowing(method: str | None = None) -> nn.Module:
    """A model whose second block has attention scores beyond float16."""
    model = small(method)
    with torch.no_grad():
        model.get_submodule("blocks.1.attn.qkv").weight[:96] *= 400
    return model


def weight_of(graph: Any, node: str) -> Any:
    name = next(one.input[1] for one in graph.graph.node if one.name == node)
    return next(one for one in graph.graph.initializer if one.name == name)


@pytest.mark.parametrize("method", [None, "evo_vit", "skipat", "merge", "sparsifiner"])
def test_the_first_layer_that_departs_is_named(method: str | None, images: Tensor, tmp_path: Path) -> None:
    model, path = small(method), tmp_path / "model.onnx"
    export_onnx(model, path)
    target = TARGETS.get("onnx")
    assert target.bisect(model, path, images).at is None
    graph = onnx.load(path)
    weight = weight_of(graph, "blocks.1.mlp.fc1/MatMul")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(graph, path)
    found = target.bisect(model, path, images)
    assert found.at == "blocks.1.mlp.fc1"
    assert found.before is not None
    assert found.before.startswith("blocks.")
    assert found.difference == pytest.approx(0.01, rel=0.3)


def test_openvino_names_it_too(images: Tensor, tmp_path: Path) -> None:
    openvino_target = pytest.importorskip("vitslim.targets.openvino.target", exc_type=ImportError)
    pytest.importorskip("openvino")
    model = small("evo_vit")
    openvino_target.write_ir(model, tmp_path / "model.xml", images)
    assert TARGETS.get("openvino").bisect(model, tmp_path / "model.xml", images).at is None
    with torch.no_grad():
        model.get_submodule("blocks.1.attn.proj").weight.mul_(1.01)
    found = TARGETS.get("openvino").bisect(model, tmp_path / "model.xml", images)
    assert found.at == "blocks.1.attn.proj"


@pytest.mark.parametrize("method", [None, "evo_vit"])
def test_float16_that_overflows_fails_and_the_remedy_helps(method: str | None, images: Tensor, tmp_path: Path) -> None:
    model, path = overflowing(method), tmp_path / "model.onnx"
    export_onnx(model, path, precision="fp16")
    report = verify(model, path, images)
    by_form = {check.form: check.passed for check in report.checks}
    assert by_form == {"as written": True, "rounded": False}  # ONNX Runtime's CPU keeps float32 between operators
    assert any("values beyond 65,504 are infinite" in note for note in report.notes)
    found = TARGETS.get("onnx").bisect(model, path, images)
    assert (found.before, found.at) == ("blocks.1.attn.qkv", "blocks.1.attn.proj")
    assert found.not_finite
    assert "--set fp32_modules=[blocks.1.attn]" in found.remedy
    export_onnx(model, path, precision="fp16", fp32_modules=["blocks.1.attn"])
    assert verify(model, path, images).passed
    with pytest.raises(CheckFailedError, match=r"blocks\.1\.attn"):
        require_precision(path, "fp16")
    others = [line for line in precision_errors(path, "fp16") if "blocks.1.attn" not in line]
    assert all("blocks.steps" in line for line in others)  # what lies between qkv and proj
    assert precision_errors(path, "fp16", ["blocks.1.attn"]) == []


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp32_modules: nothing in the graph belongs to 'blocks\.9'"):
        export_onnx(small(), tmp_path / "model.onnx", precision="fp16", fp32_modules=["blocks.9"])
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_show_their_inside_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="bisect the ONNX file"):
        TARGETS.get("torch-export").inside(tmp_path / "model.pt2")
