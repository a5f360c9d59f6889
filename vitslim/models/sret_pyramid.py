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
from itertools import islice, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.models.sret_parts import LayerNorm, NonLinearProjection, RecursiveBlock, Stage

__all__ = ["SretPyramid"]

STEM_STRIDE = 8


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
        self.pools = nn.ModuleList(Pool(*pair) for pair in pairwise(widths))
        self.norm = LayerNorm(widths[-1])
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
        indices: int | Sequence[int] | None = None,
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
        asked = list(indices) if isinstance(indices, Sequence) else indices
        wanted, last = feature_take_indices(len(self.transformers), asked)
        grids = list(islice(self._stages(x), last + 1 if stop_early else None))
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
        own = first_name(name, model)
        if own in renamed and not torch.equal(renamed[own], tensor):
            raise ValueError(f"{name} differs from {own}, which is the same parameter of a shared block")
        renamed.setdefault(own, tensor)
    positions, wanted = renamed.get("pos_embed"), model.pos_embed.shape[2:]
    if positions is not None and positions.shape[2:] != wanted:
        renamed["pos_embed"] = F.interpolate(positions, size=tuple(wanted), mode="bicubic", antialias=True)
    return renamed


def first_name(name: str, model: SretPyramid) -> str:
    """Of the names that the authors' weights give a parameter, one per application, the one that is kept here."""
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
    return [
        [rate * (start + block) / total for block in range(count)] for start, count in zip(starts, unique, strict=True)
    ]


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


def _build(name: str, pretrained: bool, shape: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    return build_model_with_cfg(
        SretPyramid,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**shape, **options},
    )


@register_model
def vitslim_sret_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """SReT-T: 4.8 M parameters, 1.1 GMAC, 76.0 % (README); distilled 77.6 %."""
    return _build("vitslim_sret_tiny", pretrained, {"mlp_ratio": 3.6}, options)


@register_model
def vitslim_sret_lt(pretrained: bool = False, **options: Any) -> nn.Module:
    """SReT-LT: 5.0 M parameters, 1.2 GMAC, 76.7 % (README); distilled 77.7 %."""
    return _build("vitslim_sret_lt", pretrained, {"mlp_ratio": 4.0}, options)


@register_model
def vitslim_sret_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """SReT-S: 20.9 M parameters, 4.2 GMAC, 81.9 % (README); distilled 82.7 %."""
    shape = {"base_dims": (42, 42, 42), "heads": (3, 6, 12), "mlp_ratio": 3.0, "nll_ratio": 2.0}
    return _build("vitslim_sret_small", pretrained, shape, options)
