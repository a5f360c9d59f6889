"""Pure algorithms: tensors in, tensors out; no knowledge of models."""

from vitslim.kernels.cost import op_macs
from vitslim.kernels.low_rank import low_rank_factors
from vitslim.kernels.onnx_form import onnx_forms
from vitslim.kernels.skip_function import depthwise_gelu
from vitslim.kernels.sliced import seeded_permutation, sliced_attention, sliced_mask
from vitslim.kernels.sparse_attention import compacted_attention, kept_keys, sparse_attention, topk
from vitslim.kernels.token_selection import argsort_by_score, class_row, gather_split, scatter_back
from vitslim.kernels.torch_form import torch_forms

__all__ = [
    "argsort_by_score",
    "class_row",
    "compacted_attention",
    "depthwise_gelu",
    "gather_split",
    "kept_keys",
    "low_rank_factors",
    "onnx_forms",
    "op_macs",
    "scatter_back",
    "seeded_permutation",
    "sliced_attention",
    "sliced_mask",
    "sparse_attention",
    "topk",
    "torch_forms",
]
