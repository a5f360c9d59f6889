"""The weights axis of SReT: weight matrices that several steps share, and what each step keeps for itself.

A shared block is registered once and holds nothing but matrices, under timm's names. A step sees it through a copy of
its own dense block in which every linear map reads the shared matrix and adds its own low-rank residual and bias;
norms, LayerScale, position tables and drop rates are the copy's own. The adapters call timm's modules in that copy as
ever.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.kernels import low_rank_factors, low_rank_linear
from vitslim.models import DenseTrace
from vitslim.models.sret_parts import NonLinearProjection
from vitslim.trunk import BoundBlock, DroppedPart, Weights


class SharedLinear(nn.Module):
    """A linear map with W = W' + B A: the matrix W' is another module's, the residual B A and the bias are its own.

    timm's attention of EVA and BEiT reads ``weight`` itself instead of calling the module; then it is the full sum.

    Args:
        shared: holds W'.
        bias: this map's own, or none.
        rank: r, columns of B and rows of A; 0 leaves W' alone.
        walked_again: whether W' is read again right after, by the next step or another application of this one.
    """

    bias: nn.Parameter | None

    def __init__(self, shared: nn.Linear, bias: Tensor | None, rank: int, *, walked_again: bool = False) -> None:
        super().__init__()
        # In a tuple, so that it is not registered twice; the trunk owns it. The module is held rather than its tensor:
        # whatever puts another tensor there (a move to a device, a loaded state, functional_call) is seen here too.
        self._shared: tuple[nn.Linear] = (shared,)
        self.in_features, self.out_features = shared.in_features, shared.out_features
        self.rank = min(rank, shared.in_features, shared.out_features)
        self.walked_again = walked_again
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        )
        if self.rank > 0:
            self.up = nn.Parameter(shared.weight.new_empty(self.out_features, self.rank))
            self.down = nn.Parameter(shared.weight.new_empty(self.rank, self.in_features))

    @property
    def weight(self) -> Tensor:
        """W' + B A."""
        shared = self._shared[0].weight
        return shared if self.rank == 0 else shared + self.up @ self.down

    def forward(self, tokens: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        shared = self._shared[0].weight
        if self.rank == 0:
            return F.linear(tokens, shared, self.bias)
        return low_rank_linear(tokens, shared, self.up, self.down, self.bias, walked_again=self.walked_again)

    @torch.no_grad()
    def imitate_(self, weight: Float[Tensor, "o i"]) -> None:
        """Set the residual so that the map comes as close to another matrix as its rank allows."""
        if self.rank > 0:
            # B A = the truncated singular value decomposition of W - W'
            up, down = low_rank_factors(weight.double() - self._shared[0].weight.double(), self.rank)
            self.up.copy_(up)
            self.down.copy_(down)

    def merged(self) -> nn.Linear:
        """An ordinary linear map with the full sum as its weight."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(self.weight.detach().clone(), self._shared[0].weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}"


class SharedBlock(nn.Module):
    """The matrices that several steps share, at the places where timm's block has them; no biases, no norms.

    Args:
        weights: by the path of their linear map; one that asks for a gradient is trained.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for path, weight in weights.items():
            *parents, name = path.split(".")
            place: nn.Module = self
            for parent in parents:
                if parent not in dict(place.named_children()):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.detach(), weight.requires_grad)
            place.add_module(name, linear)


def linear_maps(block: nn.Module) -> dict[str, nn.Linear]:
    """All linear maps of a block by their path."""
    return {path: module for path, module in block.named_modules() if isinstance(module, nn.Linear)}


def view_of(block: nn.Module, shared: SharedBlock, rank: int, *, walked_again: bool = False) -> nn.Module:
    """A copy of a dense block whose linear maps read the shared matrices; residuals are not set yet.

    Args:
        walked_again: whether they are read again right after, by the next step or another application of this one.
    """
    matrices = linear_maps(shared)
    # deepcopy takes what its memo already holds instead of copying it.
    memo = {
        id(own): SharedLinear(matrices[path], own.bias, rank, walked_again=walked_again)
        for path, own in linear_maps(block).items()
    }
    return copy.deepcopy(block, memo)


def merged_view(view: nn.Module) -> nn.Module:
    """A copy of a view whose linear maps have the full sums as their weights, as a dense block's have."""
    memo = {id(part): part.merged() for part in view.modules() if isinstance(part, SharedLinear)}
    return copy.deepcopy(view, memo)


@dataclass(frozen=True, kw_only=True)
class ScaledBlock(BoundBlock):
    """A block with learnable residual coefficients (LRC), four numbers a1 .. a4."""

    coefficients: Tensor

    def add_attention(self, tokens: Tensor, z: Tensor) -> Tensor:
        # x ← a1 x + a2 Attn(LN1 x)
        return self.coefficients[0] * tokens + self.coefficients[1] * self.adapter.attention_branch(self.block, z)

    def add_mlp(self, tokens: Tensor) -> Tensor:
        # x ← a3 x + a4 MLP(LN2 x)
        return self.coefficients[2] * tokens + self.coefficients[3] * self.adapter.mlp_branch(self.block, tokens)


class Recursive(Weights):
    """One application of a block that is applied more than once.

    Args:
        name: for lists and plans.
        own: this step's view of the shared block; ``None`` where it runs the block itself, or ``lender``'s view.
        lender: an earlier application whose view this one uses again.
        coefficients: the start of a1 .. a4; ``None`` without LRC.
        nll: follows after the two branches, in this step alone.
    """

    lrc: nn.Parameter | None

    def __init__(
        self,
        name: str,
        own: nn.Module | None,
        *,
        lender: Recursive | None = None,
        coefficients: Tensor | None = None,
        nll: NonLinearProjection | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.own = own
        # In a tuple, so that it is not registered twice.
        self._lender: tuple[Recursive] | None = None if lender is None else (lender,)
        self.register_parameter("lrc", None if coefficients is None else nn.Parameter(coefficients))
        self.nll = nll

    @property
    def view(self) -> nn.Module | None:
        """What this step sees in place of the block; ``None`` where it is the block itself."""
        return self.own if self._lender is None else self._lender[0].own

    def bind(self, bound: BoundBlock) -> BoundBlock:
        block = bound.block if self.view is None else self.view
        if self.lrc is None:
            return BoundBlock(bound.adapter, block, bound.token_state)
        return ScaledBlock(bound.adapter, block, bound.token_state, coefficients=self.lrc)

    def finish(self, tokens: Tensor) -> Tensor:
        return tokens if self.nll is None else self.nll(tokens)

    def local_loss(self, step: int, dense: DenseTrace) -> Tensor | None:
        if self.own is None:
            return None
        tokens, target = dense.block_inputs[step].detach(), dense.block_outputs[step].detach()
        bound = self.bind(BoundBlock(dense.adapter, self.own))
        if isinstance(self.own.attn, DroppedPart):
            z = dense.z[step].detach()
        else:
            z = bound.attend(bound.attention_input(tokens), dense.contexts[step])
        made = self.finish(bound.add_mlp(bound.add_attention(tokens, z)))
        # ‖made - target‖² / ‖u - mean u‖² with u = target - x, what the dense block adds
        added = target.float() - tokens.float()
        spread = (added - added.mean(dim=(0, 1))).square().sum()
        return (made.float() - target.float()).square().sum() / spread.clamp_min(1e-12)

    def describe(self) -> str:
        extras = [word for word, part in (("nll", self.nll), ("lrc", self.lrc)) if part is not None]
        return ", ".join([self.name, *extras])


def identity_projection(width: int, ratio: float) -> NonLinearProjection:
    """An NLL that changes nothing at the start, b1 = 1 and b2 = 0; the authors' start would destroy what is learnt."""
    projection = NonLinearProjection(width, ratio)
    nn.init.zeros_(projection.coefficient2.bias)
    return projection
