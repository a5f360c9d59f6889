"""SkipAt: reuse the attention output of an earlier block through a small skip function.

Source: Venkataramanan et al., "Skip-Attention: Improving Vision Transformers by Paying Less Attention", ICLR 2024,
arXiv 2301.02240. The paper's letters: Z^MSA is the attention module's output before LayerScale and the residual add,
Φ the skip function, ẑ what a skipped block adds instead of its own Z.

A skipped block l computes  ẑ_l = [ prefix rows of the source ; Φ_l(patch rows of ẑ_{l-1}) ].

Beyond the paper (ours): ``expansion`` below 2, with which Φ is narrow and also saves most of the cost of the two linear
maps that it replaces; the residual form of narrow Φ; weights that start at identity reuse, for pretrained models; a
linear map of the prefix rows. In the paper's form the class row adds the same vector in every skipped block, which no Φ
can change; before any training that is most of what a pretrained model with a class token loses. One d x d map per
skipped block, fitted in closed form, keeps much of it, at the cost of one token. Distillation closes the difference.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import use_triton
from vitslim.kernels.skip_function import channel_scale, depthwise_gelu
from vitslim.methods.base import Evidence, MethodConfig, register_method, require_evidence
from vitslim.methods.layers import parse_layers, steps_of
from vitslim.models import DenseTrace
from vitslim.plans import AttentionChoice, Cost, ModelPlan, Place
from vitslim.shapes import Count
from vitslim.trunk import Attention, BoundBlock, FitBatch, Regression, Site, Stream

_EVEN = "an even kernel would shift the grid; choose an odd number"


class SkipAtConfig(MethodConfig):
    """Options of SkipAt; the defaults are the paper's."""

    layers: tuple[int, ...] | Literal["auto", "paper"] | None = Field(default=None, examples=["3-8"])
    """Blocks whose attention is skipped, counted from 0. By default the set that an analysis recommends where one is
    made, else the paper's; ``auto`` demands the analysis, ``paper`` is the paper's middle half in every case: 3-8 of
    12."""
    expansion: float = Field(default=2.0, gt=0.0, le=8.0, examples=["0.5"])
    """Hidden width of Φ over the embedding width; 2 is the paper's, 0.5 or 0.25 the narrow form."""
    kernel_size: int = Field(default=5, ge=1, le=31, examples=["3"])
    """Side of Φ's depthwise convolution, odd."""
    identity: bool = False
    """Reuse the source's patch rows as they are, without Φ."""
    prefix: Literal["reuse", "linear"] = "reuse"
    """What becomes of the source's prefix rows. ``reuse`` (the paper): they pass unchanged. ``linear`` (ours): each
    skipped block has a linear map for them."""
    residual: bool | None = None
    """Add Φ's input to its output. By default only where an ``expansion`` below 2 cannot hold the identity."""
    init: Literal["identity", "scratch"] = "identity"
    """``identity`` starts close to identity reuse, for conversion; ``scratch`` is for training from nothing."""

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, value: Any) -> Any:
        return value if value in (None, "auto", "paper") else parse_layers(value)

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(_EVEN)
        return value


class Reuse(AttentionChoice):
    """The attention output of the step before, predicted by Φ; fields as in ``SkipAtConfig``."""

    attends: ClassVar[bool] = False
    reads_z: ClassVar[bool] = True

    kind: Literal["reuse"] = "reuse"
    expansion: float = Field(default=2.0, gt=0.0, le=8.0)
    kernel_size: int = Field(default=5, ge=1, le=31)
    identity: bool = False
    prefix: Literal["reuse", "linear"] = "reuse"
    residual: bool = False
    init: Literal["identity", "scratch"] = "identity"

    @property
    def reads_grid(self) -> bool:
        return not self.identity

    def describe(self) -> str:
        form = "identity" if self.identity else f"expansion {self.expansion:g}"
        return f"reuse ({form}{', prefix mapped' if self.prefix == 'linear' else ''})"

    def errors(self, at: Place) -> list[str]:
        errors: list[str] = []
        if self.prefix == "linear" and at.plan.model.prefix == 0:
            errors.append("prefix='linear': this model has no prefix tokens (class, registers); leave it out")
        if self.kernel_size % 2 == 0:
            errors.append(f"kernel_size={self.kernel_size}: {_EVEN}")
        return errors

    def cost(self, at: Place) -> Cost:
        width, prefix, patches = at.plan.channels, at.plan.model.prefix, at.plan.patches
        total = Cost()
        if self.prefix == "linear":
            total += Cost(prefix * width * width, width * width + width, prefix * width)
        if self.identity:
            return total
        hidden, taps = hidden_width(width, self.expansion), self.kernel_size**2
        # Over the whole grid, whoever is active: two maps, a convolution in each hidden channel.
        macs = patches * hidden * (2 * width + taps)
        parameters = hidden * (width + 1) + hidden * (taps + 1) + width * (hidden + 1) + 3
        return total + Cost(macs, parameters, patches * max(hidden, width))


def hidden_width(width: int, expansion: float) -> int:
    """Neurons of Φ."""
    return max(1, round(width * expansion))


class SkipFunction(nn.Module):
    """Φ: predicts one block's attention output on the patch tokens from the block before.

    Linear d→e·d, GELU; depthwise convolution over the patch grid, GELU; Linear e·d→d; efficient channel attention.
    4d² + 55d + 3 parameters in the paper's form.

    Args:
        width: embedding dimension d.
        expansion: e, hidden width over d.
        kernel_size: side of the depthwise convolution.
        residual: add the input to the output.
    """

    def __init__(self, width: int, expansion: float = 2.0, kernel_size: int = 5, *, residual: bool = False) -> None:
        super().__init__()
        hidden = hidden_width(width, expansion)
        self.residual = residual
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.reduce = nn.Linear(hidden, width)
        # Efficient channel attention (Wang et al. 2020, arXiv 1910.03151): one kernel of three over the channels.
        self.channel_attention = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: tuple[Count, Count],
        *,
        front: Float[Tensor, "b f d"] | None = None,
        prefix: int = 0,
    ) -> Float[Tensor, "b m d"]:
        """Φ(Z), or [front ; Φ(Z)], for patch tokens that lie on ``grid`` row by row.

        Args:
            tokens: the patches, behind ``prefix`` rows that are left out.
            grid: rows and columns of patches.
            front: what is to stand before Φ(Z), such as the prefix rows.
        """
        reduced = self.reduce(self.hidden(tokens, grid, prefix))
        scale = self.channel_scale(reduced)
        predicted = torch.addcmul(tokens[:, prefix:], reduced, scale) if self.residual else reduced * scale
        return predicted if front is None else torch.cat([front, predicted], dim=1)

    def hidden(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[Count, Count], prefix: int = 0
    ) -> Float[Tensor, "b p hidden"]:
        """What the last linear map reads."""
        expanded = F.gelu(self.expand(tokens))
        return depthwise_gelu(expanded, self.depthwise.weight, cast(Tensor, self.depthwise.bias), grid, prefix)

    def channel_scale(self, predicted: Float[Tensor, "b p d"]) -> Float[Tensor, "b 1 d"]:
        """Efficient channel attention: one factor 0..1 per channel."""
        return channel_scale(predicted, self.channel_attention.weight)

    @torch.no_grad()
    def start_at_identity_(self) -> None:
        """Set weights with which Φ gives back nearly what it reads.

        With the residual the last map is zero. Without it the identity goes through the hidden layer in pairs:
        GELU(x) - GELU(-x) = x holds exactly; the second GELU is kept in its straight part by a shift, which cancels
        between the two of a pair. Hidden channels beyond the pairs start small and unused by the output.
        """
        nn.init.zeros_(self.channel_attention.weight)
        nn.init.zeros_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)
        if self.residual:
            return
        width, hidden = self.expand.in_features, self.expand.out_features
        pairs = min(width, hidden // 2)
        self.expand.weight[: 2 * pairs].zero_()
        self.expand.bias.zero_()
        self.depthwise.weight.zero_()
        centre = self.depthwise.kernel_size[0] // 2
        self.depthwise.weight[:, 0, centre, centre] = 1.0
        # At 3, GELU deviates from a straight line by 1 %; the gain lifts small Z above the rounding of bf16 near 3.
        gain, shift = 4.0, 3.0
        nn.init.constant_(cast(Tensor, self.depthwise.bias), shift)
        eye = torch.eye(pairs, width, device=self.expand.weight.device, dtype=self.expand.weight.dtype)
        self.expand.weight[:pairs] = gain * eye
        self.expand.weight[pairs : 2 * pairs] = -gain * eye
        # σ(0) = ½ of the channel attention is taken back here.
        self.reduce.weight[:, :pairs] = 2.0 / gain * eye.T
        self.reduce.weight[:, pairs : 2 * pairs] = -2.0 / gain * eye.T


class ReuseAttention(Attention):
    """The attention branch of a skipped block: ẑ of the step before, through Φ on the patch rows.

    The prefix rows (class, distillation, register tokens) pass unchanged or through a linear map; without ``phi`` the
    patch rows pass unchanged.

    Args:
        source: the dense block of the step before, whose Z it learns to start from.
    """

    def __init__(self, phi: SkipFunction | None, prefix_map: nn.Linear | None, source: int) -> None:
        super().__init__()
        self.phi = phi
        self.prefix_map = prefix_map
        self.source = source

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        source = stream.z
        if source is None:
            raise ConfigError("a reusing step has no earlier attention output; the first step must attend")
        prefix, grid, state = stream.layout.prefix, stream.layout.grid, stream.token_state
        if state is None or self.phi is None:
            z = self.predict(source, prefix, grid)
            return z, replace(stream, z=z)
        # Φ convolves over the whole grid, so it also runs on inactive patches: no saving from their absence here.
        z, state = state.part_z(self.predict(state.whole_z(source), prefix, grid))
        return z, replace(stream, z=z, token_state=state)

    def predict(self, source: Float[Tensor, "b n d"], prefix: int, grid: tuple[Count, Count]) -> Float[Tensor, "b n d"]:
        """ẑ of this step from the one before."""
        if self.phi is None and self.prefix_map is None:
            return source
        # ẑ_l = [ z_prefix(source) ; Φ_l(ẑ_{l-1}) ],  with our map  ẑ_l = [ P_l z_prefix(ẑ_{l-1}) ; Φ_l(ẑ_{l-1}) ]
        front = source[:, :prefix] if self.prefix_map is None else self.prefix_map(source[:, :prefix])
        if self.phi is None:
            return torch.cat([front, source[:, prefix:]], dim=1)
        if not use_triton(source, "skip_function", source.shape[1]):
            return self.phi(source[:, prefix:], grid, front=front)
        # The kernel leaves the prefix rows out itself; a matrix product would copy a slice of every image first.
        return self.phi(source, grid, front=front, prefix=prefix)

    def local_loss(self, block: int, dense: DenseTrace) -> Tensor | None:
        source, target = dense.z[self.source].detach(), dense.z[block].detach()
        prefix = dense.layout.prefix
        losses: list[Tensor] = []
        if self.phi is not None:
            losses.append(_unexplained(self.phi(source[:, prefix:], dense.layout.grid), target[:, prefix:]))
        if self.prefix_map is not None:
            losses.append(_unexplained(self.prefix_map(source[:, :prefix]), target[:, :prefix]))
        return torch.stack(losses).sum() if losses else None

    def regressions(self, batch: FitBatch) -> list[Regression]:
        state, source = batch.stream.token_state, batch.stream.z
        assert source is not None
        if state is None or self.phi is None:
            target = batch.target_z()
        else:  # Φ reads the patches in their grid, all of them; the prefix stands in front in any order
            source, target = state.whole_z(source), batch.natural_z()
        prefix, grid = batch.stream.layout.prefix, batch.stream.layout.grid
        problems: list[Regression] = []
        if self.phi is not None:
            hidden = self.phi.hidden(source[:, prefix:], grid)
            wanted = target[:, prefix:] - source[:, prefix:] if self.phi.residual else target[:, prefix:]
            wanted = wanted / self.phi.channel_scale(self.phi.reduce(hidden))
            problems.append(Regression(self.phi.reduce, hidden.flatten(0, 1), wanted.flatten(0, 1)))
        if self.prefix_map is not None:
            front = source[:, :prefix].flatten(0, 1)
            problems.append(Regression(self.prefix_map, front, target[:, :prefix].flatten(0, 1)))
        return problems


def _unexplained(predicted: Tensor, target: Tensor) -> Tensor:
    # ‖Φ(Z_{l-1}) - Z_l‖² / ‖Z_l - mean Z_l‖², that is 1 - R²
    spread = (target.float() - target.float().mean(dim=(0, 1))).square().sum()
    return (predicted.float() - target.float()).square().sum() / spread.clamp_min(1e-12)


def _realise(choice: Reuse, site: Site) -> ReuseAttention:
    width, prefix_map = site.width, None
    source = site.place.plan.steps[site.place.index - 1].block
    if choice.prefix == "linear":
        prefix_map = nn.Linear(width, width, device=site.device, dtype=site.dtype)
        if site.is_drawn:
            nn.init.eye_(prefix_map.weight)
            nn.init.zeros_(prefix_map.bias)
    if choice.identity:
        return ReuseAttention(None, prefix_map, source)
    with torch.device(site.device):
        phi = SkipFunction(width, choice.expansion, choice.kernel_size, residual=choice.residual)
    if site.is_drawn:
        if choice.init == "identity":
            phi.start_at_identity_()
        else:
            _start_from_scratch_(phi)
    return ReuseAttention(phi.to(site.dtype), prefix_map, source)


def _start_from_scratch_(phi: SkipFunction) -> None:
    # The authors leave PyTorch's default start; for a linear map of fan-in f that is uniform within ±1/√f.
    for module in (phi.expand, phi.depthwise, phi.reduce, phi.channel_attention):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))


@register_method(
    "skipat",
    SkipAtConfig,
    source="Venkataramanan et al., ICLR 2024, arXiv 2301.02240",
    modules={Reuse: _realise},
    advised="layers",
    usual="paper",
    neutral={"layers": ()},
    example={"layers": (1, 2)},
    forms={"identity": {"layers": (1, 2), "identity": True}},
    strengths=lambda plan: ({"identity": True},),
)
def skipat(plan: ModelPlan, options: SkipAtConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with the attention of ``options.layers`` replaced by reuse."""
    layers = _layers(options, plan, evidence)
    found = steps_of(plan, "skipat.layers", layers)
    for index in found:
        if index == 0:
            raise ConfigError(
                f"skipat.layers={layers}: block {plan.steps[0].block} has no earlier attention to reuse; "
                f"choose from 1..{plan.model.depth - 1}"
            )
        attention = plan.steps[index].attention
        if not attention.attends:
            raise ConfigError(
                f"skipat.layers={layers}: block {plan.steps[index].block} computes no attention any more "
                f"({attention.describe()})"
            )
    reuse = Reuse(
        expansion=options.expansion,
        kernel_size=options.kernel_size,
        identity=options.identity,
        prefix=options.prefix,
        # The identity goes through a hidden layer in pairs, for which a narrow one has no room.
        residual=options.expansion < 2.0 if options.residual is None else options.residual,
        init=options.init,
    )
    return plan.with_steps({index: plan.steps[index].but(attention=reuse) for index in found})


def _layers(options: SkipAtConfig, plan: ModelPlan, evidence: Evidence | None) -> tuple[int, ...]:
    if isinstance(options.layers, tuple):
        return options.layers
    if options.layers != "paper" and evidence is not None:
        layers = parse_layers(require_evidence(evidence, "recommended", "layers"))
        if not layers:
            # The paper's set would be taken against the evidence, an empty one would be the dense model renamed.
            raise ConfigError(
                "skipat.layers: the analysis recommends no block; name layers, ask for the paper's set (layers=paper), "
                "or leave skipat out"
            )
        return layers
    if options.layers == "auto":
        raise ConfigError(
            "skipat.layers='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), "
            "or --data on the command line"
        )
    blocks, depth = [step.block for step in plan.steps], plan.depth
    first, count = (depth // 4, depth // 2) if depth >= 4 else (1, depth - 1)
    return tuple(dict.fromkeys(blocks[first : first + count]))
