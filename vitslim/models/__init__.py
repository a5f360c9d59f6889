"""All that vitslim knows of timm: creating a model, its tokens, what its blocks do."""

from vitslim.models.adapter import BlockAdapter, Context, inputs_of
from vitslim.models.any_size import take_any_size_
from vitslim.models.base import build_base, describe
from vitslim.models.base_model import BaseModel
from vitslim.models.catalog import ModelInfo, catalog
from vitslim.models.create import create_model, resolve_name
from vitslim.models.entry import Entry, entry
from vitslim.models.families import adapter_for, family_of, register_adapter
from vitslim.models.image_input import Preprocessing, preprocessing, set_preprocessing_
from vitslim.models.init import init_from_scratch_
from vitslim.models.layout import TokenLayout, token_layout
from vitslim.models.sret_pyramid import SretPyramid
from vitslim.models.trace import DenseTrace, output_behind_blocks, trace
from vitslim.models.weights_file import read_weights

__all__ = [
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
    "create_model",
    "describe",
    "entry",
    "family_of",
    "init_from_scratch_",
    "inputs_of",
    "output_behind_blocks",
    "preprocessing",
    "read_weights",
    "register_adapter",
    "resolve_name",
    "set_preprocessing_",
    "take_any_size_",
    "token_layout",
    "trace",
]
