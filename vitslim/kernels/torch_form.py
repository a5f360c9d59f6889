"""The custom ops spelled out in torch's own operators, for files that should run without vitslim."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vitslim.kernels.sparse_attention import masked_attention, topk_keys


def torch_forms() -> Mapping[Any, Callable[..., Any]]:
    """For ``ExportedProgram.run_decompositions``: each op, and the function it is replaced with.

    The numbers stay the same. What a kernel of its own would save is lost: sparse attention computes all scores.
    """
    ops = torch.ops.vitslim
    return {ops.sparse_attention.default: masked_attention, ops.kept_keys.default: topk_keys}
