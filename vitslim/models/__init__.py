"""All that vitslim knows of timm: opening a model, its tokens, the verbs of its blocks."""

from vitslim.models.adapter import BlockAdapter, Context, inputs_of
from vitslim.models.any_size import take_any_size_
from vitslim.models.base import BaseModel, build_base, describe, remember_depth_
from vitslim.models.catalog import ModelInfo, catalog
from vitslim.models.entry import Entry, entry
from vitslim.models.families import adapter_for, family_of
from vitslim.models.image_input import Preprocessing, preprocessing, set_preprocessing_
from vitslim.models.layout import TokenLayout, token_layout
from vitslim.models.open import ALIASES, BUILTIN, open_model, resolve_name
from vitslim.models.sret_pyramid import SretPyramid
from vitslim.models.trace import DenseTrace, trace
from vitslim.models.weights_file import read_weights

__all__ = [
    "ALIASES",
    "BUILTIN",
    "BaseModel",
    "BlockAdapter",
    "Context",
    "DenseTrace",
    "Entry",
    "ModelInfo",
    "Preprocessing",
    "SretPyramid",
    "TokenLayout",
    "adapter_for",
    "build_base",
    "catalog",
    "describe",
    "entry",
    "family_of",
    "inputs_of",
    "open_model",
    "preprocessing",
    "read_weights",
    "remember_depth_",
    "resolve_name",
    "set_preprocessing_",
    "take_any_size_",
    "token_layout",
    "trace",
]
