"""Small models, each exported once per module."""

import sys
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitslim.export import OnnxExport, export_onnx
from vitslim.export.tensorrt import build, refit
from vitslim.methods import convert
from vitslim.runtime.machine import Machine

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
SHALLOW = SIZE | {"depth": 2}  # exporting takes time in proportion to the depth
MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**SIZE),
    "one_block": lambda: VisionTransformer(**SIZE | {"depth": 1}),
    "eva": lambda: Eva(**SHALLOW, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True),
    "beit": lambda: Beit(**SHALLOW, use_rel_pos_bias=True, init_values=0.1),
    "skipat": lambda: convert(VisionTransformer(**SIZE).eval(), "skipat", layers=range(1, 3)),
    "skipat_eva": lambda: convert(Eva(**SHALLOW, use_rot_pos_emb=True).eval(), "skipat", layers=(1,)),
}


def alive(model: nn.Module) -> nn.Module:
    """Every parameter away from its start value: a zero bias or a LayerScale of 1e-5 would hide a lost node."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


@cache
def built(name: str) -> nn.Module:
    return alive(MODELS[name]())


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., tuple[nn.Module, Path, OnnxExport]]:
    """Model, file and record; the same request is exported once."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def export(name: str, precision: str = "fp32", **options: object) -> tuple[nn.Module, Path, OnnxExport]:
        path = folder / f"{name}-{precision}-{len(options)}.onnx"
        return built(name), path, export_onnx(built(name), path, precision=precision, **options)

    return export


@pytest.fixture(scope="session", name="alive")
def alive_() -> Callable[[nn.Module], nn.Module]:
    return alive


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Generator[Machine]:
    """A machine with an NVIDIA L4 and a TensorRT that only plays along, as far as our own process looks."""
    here = Machine(gpu="NVIDIA L4", compute_capability="8.9", driver="580.1", cuda="13.0")
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_tensorrt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (build, refit):
        monkeypatch.setattr(module, "this_machine", lambda: here)
    yield here
    for name in ("tensorrt", "tensorrt.plugin"):
        sys.modules.pop(name, None)
