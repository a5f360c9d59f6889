"""The Sliced Recursive Transformer's own pyramid networks, as timm models.

Three convolutions with stride 8 in all and a learned position map lead to three stages of recursive transformer blocks;
a strided depthwise convolution between two stages halves the grid and doubles the width. There is no class token: the
mean over the last grid feeds the classifier. Every block is applied several times in a row, each time followed by a
small projection of its own.

Source: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297. Parameters are named as in the
authors' released weights; of a block, which those name once per application, the first name is kept.

Departure: where the second application of a block is sliced, its tokens are permuted. The authors draw that
permutation anew in every forward, at inference too; here it is fixed by a seed, so that outputs are deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels import seeded_permutation, sliced_attention

__all__ = ["NonLinearProjection", "SretPyramid"]

STEM_STRIDE = 8
_LayerNorm = partial(nn.LayerNorm, eps=1e-6)


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
        self.norm1 = _LayerNorm(width)
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
        self.norm1 = _LayerNorm(width)
        self.attn = SlicedAttention(width, heads, drop_rate, attn_drop_rate)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = _LayerNorm(width)
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
        return self.attn(tokens[:, order], groups)[:, inverse]


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
        permutation = cast("tuple[Tensor, Tensor]", (self.order, self.inverse)) if again and self.groups[1] > 1 else None
        tokens = self.blocks[str(2 * first)](tokens, self.groups[int(again)], permutation)
        return self.blocks[str(2 * application + 1)](tokens)


class Pool(nn.Module):
    """The way to the next stage: a depthwise 3 × 3 convolution with stride 2 and several outputs per channel."""

    def __init__(self, width: int, next_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, next_width, 3, stride=2, padding=1, groups=width)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


class ConvStem(nn.Module):
    """Three 3 × 3 convolutions with stride 2, batch norm and ReLU."""

    def __init__(self, in_chans: int, width: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.img_size = img_size
        self.grid_size = (img_size[0] // STEM_STRIDE, img_size[1] // STEM_STRIDE)
        self.conv1, self.bn1 = nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)

    def forward(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d rows columns"]:
        image = F.relu(self.bn1(self.conv1(images)))
        image = F.relu(self.bn2(self.conv2(image)))
        return F.relu(self.bn3(self.conv3(image)))


class SretPyramid(nn.Module):
    """The authors' network; ``timm.create_model("vitslim_sret_tiny")`` and its sisters build it.

    Args:
        img_size: pixels, one number or (height, width), multiples of 8.
        num_classes: outputs of the classifier; 0 removes it.
        global_pool: ``avg``, or empty for the last grid itself.
        base_dims: width per head of each stage.
        heads: per stage; a stage is ``base_dims · heads`` wide.
        depths: applications per stage.
        unique: blocks per stage, divisors of ``depths``.
        mlp_ratio: hidden width of the blocks' MLP over their width.
        nll_ratio: the same for the projections after each application.
        sliced: attend in slices; without, every application sees the whole grid.
        groups_first: slices per stage at the first application of a block, in raster order.
        groups_second: slices per stage at all further ones, in permuted order where there are several.
        seed: of the permutation.
        drop_path_rate: stochastic depth, rising over the network as the authors set it.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        base_dims: Sequence[int] = (32, 32, 32),
        heads: Sequence[int] = (2, 4, 8),
        depths: Sequence[int] = (4, 10, 6),
        unique: Sequence[int] = (2, 5, 3),
        mlp_ratio: float = 3.6,
        nll_ratio: float = 1.0,
        sliced: bool = True,
        groups_first: Sequence[int] = (8, 4, 1),
        groups_second: Sequence[int] = (2, 1, 1),
        seed: int = 0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        size = cast("tuple[int, int]", to_2tuple(img_size))
        groups = list(zip(groups_first, groups_second, strict=True)) if sliced else [(1, 1)] * len(depths)
        grids = _grids(size, len(depths))
        _check_sizes(size, depths, unique, groups, grids)
        widths = [base * count for base, count in zip(base_dims, heads, strict=True)]
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": STEM_STRIDE * 2**stage, "module": f"transformers.{stage}"}
            for stage, width in enumerate(widths)
        ]
        self.patch_embed = ConvStem(in_chans, widths[0], size)
        self.pos_embed = nn.Parameter(torch.empty(1, widths[0], *grids[0]))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = _drop_path_rates(drop_path_rate, depths, unique)
        rest = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.transformers = nn.ModuleList(
            Stage(
                [RecursiveBlock(widths[s], heads[s], mlp_ratio, drop_path=rate, **rest) for rate in rates[s]],
                [NonLinearProjection(widths[s], nll_ratio) for _ in range(depths[s])],
                groups[s],
                grids[s][0] * grids[s][1],
                seed + s,
            )
            for s in range(len(depths))
        )
        self.pools = nn.ModuleList(
            Pool(width, next_width) for width, next_width in zip(widths, widths[1:], strict=False)
        )
        self.norm = _LayerNorm(widths[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], num_classes) if num_classes > 0 else nn.Identity()
        # Linear maps and convolutions keep PyTorch's start, as the authors' do.
        trunc_normal_(self.pos_embed, std=0.02)

    def forward_features(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d rows columns"]:
        """The grid that leaves the last stage."""
        return list(self._stages(images))[-1]

    def forward_head(self, features: Float[Tensor, "b d rows columns"], pre_logits: bool = False) -> Tensor:
        """Mean over the grid, norm, classifier."""
        if self.global_pool == "":
            return features
        pooled = self.head_drop(self.norm(features.mean(dim=(2, 3))))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Float[Tensor, "b c height width"]) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The grids that leave the stages, as timm's hierarchical models give them.

        Args:
            indices: stages, or how many of the last ones; all by default.
            norm: the network normalises pooled features only, so nothing is there to apply.
        """
        if norm or output_fmt != "NCHW":
            raise ConfigError(f"norm={norm}, output_fmt={output_fmt!r}: stages give their grids as they are, NCHW")
        wanted, last = feature_take_indices(len(self.transformers), indices)
        grids = [grid for stage, grid in enumerate(self._stages(x)) if not stop_early or stage <= last]
        chosen = [grids[stage] for stage in wanted]
        return chosen if intermediates_only else (grids[-1], chosen)

    def get_classifier(self) -> nn.Module:
        """The last linear map."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for another number of classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        reference = self.norm.weight
        head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(device=reference.device, dtype=reference.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the tokens between applications for the backward pass."""
        for stage in self.transformers:
            cast(Stage, stage).grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers leave without weight decay."""
        return {"pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise learning rates."""
        stage = r"^(?:transformers|pools)\.(\d+)"
        fine = [(r"^transformers\.(\d+)\.blocks\.(\d+)", None), (r"^pools\.(\d+)", (0,)), (r"^norm", (99999,))]
        return {"stem": r"^(?:patch_embed|pos_embed)", "blocks": stage if coarse else fine}

    def _stages(self, images: Tensor) -> Iterator[Tensor]:
        image = self.patch_embed(images)
        if image.shape[2:] != self.pos_embed.shape[2:]:
            height, width = images.shape[2:]
            raise ConfigError(
                f"an image of {height}×{width} pixels reached a pyramid built for "
                f"{self.patch_embed.img_size[0]}×{self.patch_embed.img_size[1]}; build it with img_size=..."
            )
        image = self.pos_drop(image + self.pos_embed)
        for index, stage in enumerate(self.transformers):
            image = stage(image)
            yield image
            if index < len(self.pools):
                image = self.pools[index](image)


def checkpoint_filter_fn(state: dict[str, Tensor], model: SretPyramid) -> dict[str, Tensor]:
    """The authors' weights as this network names them: every shared block once, positions at this image size.

    Raises:
        ValueError: two applications of a block that is shared here have different weights in the file.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = _first_name(name, model)
        if own in renamed and not torch.equal(renamed[own], tensor):
            raise ValueError(f"{name} differs from {own}, which is the same parameter of a shared block")
        renamed.setdefault(own, tensor)
    positions, wanted = renamed.get("pos_embed"), model.pos_embed.shape[2:]
    if positions is not None and positions.shape[2:] != wanted:
        renamed["pos_embed"] = F.interpolate(positions, size=tuple(wanted), mode="bicubic", antialias=True)
    return renamed


def _first_name(name: str, model: SretPyramid) -> str:
    parts = name.split(".")
    if parts[:1] != ["transformers"] or parts[2:3] != ["blocks"] or int(parts[3]) % 2 == 1:
        return name
    loops = cast(Stage, model.transformers[int(parts[1])]).loops
    application = int(parts[3]) // 2
    return ".".join([*parts[:3], str(2 * (application - application % loops)), *parts[4:]])


def _grids(size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    grids = [(size[0] // STEM_STRIDE, size[1] // STEM_STRIDE)]
    for _ in range(stages - 1):
        # Kernel 3, stride 2, padding 1: odd sides are rounded up.
        rows, columns = grids[-1]
        grids.append((-(-rows // 2), -(-columns // 2)))
    return grids


def _check_sizes(
    size: tuple[int, int],
    depths: Sequence[int],
    unique: Sequence[int],
    groups: Sequence[tuple[int, int]],
    grids: Sequence[tuple[int, int]],
) -> None:
    if size[0] % STEM_STRIDE or size[1] % STEM_STRIDE:
        raise ConfigError(f"img_size={size}: the stem has stride {STEM_STRIDE}; choose multiples of {STEM_STRIDE}")
    for stage, (depth, blocks) in enumerate(zip(depths, unique, strict=True)):
        if blocks < 1 or depth % blocks:
            raise ConfigError(f"stage {stage}: {blocks} blocks cannot share {depth} applications evenly")
        rows, columns = grids[stage]
        if any(count < 1 or (rows * columns) % count for count in groups[stage]):
            raise ConfigError(
                f"stage {stage}: {rows}×{columns} tokens cannot be cut into slices of equal size, "
                f"{groups[stage][0]} at first and {groups[stage][1]} then; choose another img_size, or sliced=False"
            )


def _drop_path_rates(rate: float, depths: Sequence[int], unique: Sequence[int]) -> list[list[float]]:
    # The authors count applications up to a stage's start, then blocks within it.
    total = sum(depths)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [[rate * (start + block) / total for block in range(count)] for start, count in zip(starts, unique, strict=True)]


def _pretrained_cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": "head",
        "fixed_input_size": True,
    }


default_cfgs = generate_default_cfgs(
    {name: _pretrained_cfg() for name in ("vitslim_sret_tiny", "vitslim_sret_lt", "vitslim_sret_small")}
)


def _build(name: str, pretrained: bool, shape: dict[str, Any], options: dict[str, Any]) -> SretPyramid:
    return build_model_with_cfg(
        SretPyramid,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**shape, **options},
    )


@register_model
def vitslim_sret_tiny(pretrained: bool = False, **options: Any) -> SretPyramid:
    """SReT-T: 4.8 M parameters, 1.1 GMAC, 76.0 % (README); distilled 77.6 %."""
    return _build("vitslim_sret_tiny", pretrained, {"mlp_ratio": 3.6}, options)


@register_model
def vitslim_sret_lt(pretrained: bool = False, **options: Any) -> SretPyramid:
    """SReT-LT: 5.0 M parameters, 1.2 GMAC, 76.7 % (README); distilled 77.7 %."""
    return _build("vitslim_sret_lt", pretrained, {"mlp_ratio": 4.0}, options)


@register_model
def vitslim_sret_small(pretrained: bool = False, **options: Any) -> SretPyramid:
    """SReT-S: 20.9 M parameters, 4.2 GMAC, 81.9 % (README); distilled 82.7 %."""
    shape = {"base_dims": (42, 42, 42), "heads": (3, 6, 12), "mlp_ratio": 3.0, "nll_ratio": 2.0}
    return _build("vitslim_sret_small", pretrained, shape, options)
