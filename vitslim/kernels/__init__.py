"""Pure algorithms: tensors in, tensors out; no knowledge of models."""

from vitslim.kernels.bit_attention import bit_attention, kept_bits
from vitslim.kernels.cost import op_macs
from vitslim.kernels.low_rank import low_rank_factors
from vitslim.kernels.low_rank_linear import low_rank_linear
from vitslim.kernels.normed_selection import taken_apart_normed
from vitslim.kernels.onnx_form import onnx_forms
from vitslim.kernels.skip_function import channel_attention, depthwise_gelu
from vitslim.kernels.sliced import seeded_permutation, sliced_attention, sliced_mask
from vitslim.kernels.sparse_attention import compacted_attention, kept_keys, sparse_attention, strongest
from vitslim.kernels.token_selection import class_row, put_back, ranked, taken_apart
from vitslim.kernels.torch_form import torch_forms

__all__ = [
    "bit_attention",
    "channel_attention",
    "class_row",
    "compacted_attention",
    "depthwise_gelu",
    "kept_bits",
    "kept_keys",
    "low_rank_factors",
    "low_rank_linear",
    "onnx_forms",
    "op_macs",
    "put_back",
    "ranked",
    "seeded_permutation",
    "sliced_attention",
    "sliced_mask",
    "sparse_attention",
    "strongest",
    "taken_apart",
    "taken_apart_normed",
    "torch_forms",
]
