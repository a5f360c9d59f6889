"""The list of timm's isotropic vision transformers and whether vitslim takes each."""

from collections.abc import Iterator

import timm
import torch

from vitslim.errors import UnsupportedModelError
from vitslim.models.create import create_model
from vitslim.models.families import ADAPTERS, adapter_for, family_of
from vitslim.names import BUILTIN
from vitslim.shapes import Result

# Modules of timm beside those of the classes that have an adapter.
_OTHER_MODULES = (
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
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
    """Names of all models that timm knows whose blocks keep one width and one grid, registered by timm or others."""
    adapted = {kind.model.__module__.rpartition(".")[2] for _, kind in ADAPTERS.items()}
    return sorted({name for module in {*adapted, *_OTHER_MODULES} for name in timm.list_models(module=module)})


def catalog() -> Iterator[ModelInfo]:
    """Every isotropic ViT of the installed timm, built on the meta device, so that no weights are allocated."""
    for name in (BUILTIN, *isotropic_names()):
        yield model_info(name)


def model_info(name: str) -> ModelInfo:
    """Whether one model can be converted."""
    with torch.device("meta"):
        model = create_model(name, pretrained=False)
    try:
        adapter_for(model)
    except UnsupportedModelError as error:
        return ModelInfo(name=name, family=family_of(model), supported=False, reason=str(error))
    return ModelInfo(name=name, family=family_of(model), supported=True)
