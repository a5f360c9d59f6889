"""The list of timm's isotropic vision transformers and whether vitslim takes each."""

from collections.abc import Iterator

import timm
import torch

from vitslim.errors import UnsupportedModelError
from vitslim.models.families import adapter_for, family_of
from vitslim.models.open import BUILTIN, open_model
from vitslim.shapes import Result

_ISOTROPIC = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "deit",
    "eva",
    "beit",
    "naflexvit",
    "vitamin",
    "deepseek_vit",
    "gemma4_vit",
    "qwen3_vit",
)


class ModelInfo(Result):
    """One row of the list: the timm name, its family, whether it can be converted, and the reason if not."""

    name: str
    family: str
    supported: bool
    reason: str = ""


def isotropic_names() -> list[str]:
    """Names of all timm models whose blocks keep one width and one grid."""
    return sorted({name for module in _ISOTROPIC for name in timm.list_models(module=module)})


def catalog() -> Iterator[ModelInfo]:
    """Every isotropic ViT of the installed timm, built on the meta device, so that no weights are allocated."""
    for name in (BUILTIN, *isotropic_names()):
        yield model_info(name)


def model_info(name: str) -> ModelInfo:
    """Whether one model can be converted."""
    with torch.device("meta"):
        model = open_model(name, pretrained=False)
    try:
        adapter_for(model)
    except UnsupportedModelError as error:
        return ModelInfo(name=name, family=family_of(model), supported=False, reason=str(error))
    return ModelInfo(name=name, family=family_of(model), supported=True)
