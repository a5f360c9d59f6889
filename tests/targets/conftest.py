"""Small models, each exported once per module."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.targets.serving import saved as saved
from vitslim.methods import convert
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.result import OnnxExport

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
        chosen = "".join(f"-{option}-{value}" for option, value in options.items())
        path = folder / f"{name}-{precision}{chosen}.onnx"
        return built(name), path, export_onnx(built(name), path, precision=precision, **options)

    return export


@pytest.fixture(scope="session", name="alive")
def alive_() -> Callable[[nn.Module], nn.Module]:
    return alive


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A machine with an NVIDIA L4 and a TensorRT that only plays along."""
    from tests.targets.tensorrt_stub import pretend

    yield from pretend(monkeypatch)
