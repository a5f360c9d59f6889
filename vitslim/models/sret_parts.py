"""The parts of the Sliced Recursive Transformer's own networks, with the authors' names of parameters.

Source: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, Mlp
from timm.models import checkpoint
from torch import Tensor, nn

from vitslim.kernels import seeded_permutation, sliced_attention

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Coefficient(nn.Module):
    """A learnable factor of a whole branch, 1 at the start (LRC)."""

    def __init__(self) -> None:
        super().__init__()
        # The name is the authors'; it is a factor.
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.bias


class NonLinearProjection(nn.Module):
    """NLL, what follows one application of a shared block: x ← b1 x + b2 MLP(LN x).

    Args:
        width: embedding dimension d.
        ratio: hidden width over d.
    """

    def __init__(self, width: int, ratio: float = 1.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * ratio))
        self.coefficient1 = Coefficient()
        self.coefficient2 = Coefficient()

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.coefficient1(tokens) + self.coefficient2(self.mlp(self.norm1(tokens)))


class SlicedAttention(nn.Module):
    """Multi-head attention whose number of slices is the caller's choice at each application."""

    def __init__(self, width: int, heads: int, drop_rate: float, attn_drop_rate: float) -> None:
        super().__init__()
        self.num_heads = heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, tokens: Float[Tensor, "b n d"], groups: int = 1) -> Float[Tensor, "b n d"]:
        joined = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = sliced_attention(self._attend, query, key, value, groups)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        dropout = self.attn_drop_rate if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


class RecursiveBlock(nn.Module):
    """A transformer block with learnable residual coefficients: x ← a1 x + a2 Attn(LN x); x ← a3 x + a4 MLP(LN x)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, drop_rate: float, attn_drop_rate: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SlicedAttention(width, heads, drop_rate, attn_drop_rate)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop=drop_rate)
        self.coefficient1 = Coefficient()
        self.coefficient2 = Coefficient()
        self.coefficient3 = Coefficient()
        self.coefficient4 = Coefficient()

    def forward(
        self, tokens: Float[Tensor, "b n d"], groups: int = 1, permutation: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        """One application.

        Args:
            groups: slices of the attention.
            permutation: order in which the tokens are cut into slices, and its inverse; raster order by default.
        """
        attended = self._attend(self.norm1(tokens), groups, permutation)
        tokens = self.coefficient1(tokens) + self.coefficient2(self.drop_path(attended))
        return self.coefficient3(tokens) + self.coefficient4(self.drop_path(self.mlp(self.norm2(tokens))))

    def _attend(self, tokens: Tensor, groups: int, permutation: tuple[Tensor, Tensor] | None) -> Tensor:
        if permutation is None:
            return self.attn(tokens, groups)
        order, inverse = permutation
        # One Gather in an ONNX file; written as tokens[:, order] it became GatherND between two transpositions, which
        # were slower and in float16 took ONNX Runtime 1.24 to 1.31 down (its issue 28392).
        return self.attn(tokens.index_select(1, order), groups).index_select(1, inverse)


class Stage(nn.Module):
    """Blocks on one grid, each applied ``loops`` times in a row (A A B B), each application with its own projection.

    Args:
        blocks: the shared blocks, in order.
        projections: one per application.
        groups: slices at the first application of a block, and at all further ones.
        tokens: number of tokens, for the permutation.
        seed: of the permutation at further applications.
    """

    def __init__(
        self,
        blocks: Sequence[RecursiveBlock],
        projections: Sequence[NonLinearProjection],
        groups: tuple[int, int],
        tokens: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.depth, self.groups, self.tokens, self.seed = len(projections), groups, tokens, seed
        self.loops = self.depth // len(blocks)
        self.grad_checkpointing = False
        # The authors' list alternates: a block, a projection, the same block again, a projection. Here every block is
        # registered at its first place only, for safetensors takes each tensor once.
        self.blocks = nn.ModuleDict()
        for application, projection in enumerate(projections):
            if application % self.loops == 0:
                self.blocks[str(2 * application)] = blocks[application // self.loops]
            self.blocks[str(2 * application + 1)] = projection
        if groups[1] > 1:
            order = torch.tensor(seeded_permutation(tokens, seed))
            self.register_buffer("order", order, persistent=False)
            self.register_buffer("inverse", order.argsort(), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Fill the permutation again, which timm asks for after a start on the meta device."""
        if self.groups[1] > 1:
            order, inverse = cast("tuple[Tensor, Tensor]", (self.order, self.inverse))
            order.copy_(torch.tensor(seeded_permutation(self.tokens, self.seed), device=order.device))
            inverse.copy_(order.argsort())

    def forward(self, image: Float[Tensor, "b d height width"]) -> Float[Tensor, "b d height width"]:
        """All applications on the tokens of one grid."""
        grid = (image.shape[2], image.shape[3])
        tokens = image.flatten(2).transpose(1, 2)
        for application in range(self.depth):
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self._apply_once, tokens, application)
            else:
                tokens = self._apply_once(tokens, application)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _apply_once(self, tokens: Tensor, application: int) -> Tensor:
        first = application - application % self.loops
        again = application != first
        permutation = (
            cast("tuple[Tensor, Tensor]", (self.order, self.inverse)) if again and self.groups[1] > 1 else None
        )
        tokens = self.blocks[str(2 * first)](tokens, self.groups[int(again)], permutation)
        return self.blocks[str(2 * application + 1)](tokens)
