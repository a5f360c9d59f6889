"""The weights axis of SReT: weight matrices that several steps share, and what each step keeps for itself.

A shared block is registered once and holds nothing but matrices, under timm's names. A step sees it through a copy of
its own dense block in which every linear map reads the shared matrix and adds its own low-rank residual and bias;
norms, LayerScale, position tables and drop rates are the copy's own. The adapters call timm's modules in that copy as
ever.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vitslim.kernels import low_rank_factors
from vitslim.models import DenseTrace
from vitslim.models.sret_parts import NonLinearProjection
from vitslim.plans import Cost, LinearShape, Place, StepPlan, WeightsChoice
from vitslim.plans.place import parts_used
from vitslim.trunk import BoundBlock, DroppedPart, Site, Weights

_OF_THE_GROUP = "members", "home", "shared", "rank", "merged"


class Shared(WeightsChoice):
    """Matrices W' + B A, of which W' is that of a group of blocks; perhaps applied once more."""

    kind: Literal["shared"] = "shared"
    members: tuple[int, ...] = Field(min_length=1)
    """The dense blocks of the group; one alone shares with nobody."""
    home: int = Field(ge=0)
    """The member as which the shared matrices are registered."""
    shared: Literal["average", "stepwise"] = "average"
    """W' starts as the members' average, or as the matrix of ``home``."""
    rank: int = Field(default=0, ge=0)
    """Of the residuals B A."""
    application: int = Field(default=0, ge=0)
    """How many steps before this one apply the same block; where some do, LRC starts it as the identity."""
    lrc: bool = False
    """Learnable residual coefficients."""
    nll: float | None = Field(default=None, gt=0.0, le=8.0)
    """Hidden width over the width of a non-linear projection after the step."""
    merged: bool = False
    """W' + B A is written out for the block."""

    @property
    def has_view(self) -> bool:
        """Whether steps see shared matrices in place of the block."""
        return len(self.members) > 1 and not self.merged

    def describe(self) -> str:
        words = ["own"]
        if len(self.members) > 1:
            words = [f"{'merged from' if self.merged else 'shared by'} {', '.join(map(str, self.members))}"]
            words += [f"rank {self.rank}"] if self.rank else []
        words += [f"application {self.application + 1}"] if self.application else []
        words += [word for word, there in (("nll", self.nll is not None), ("lrc", self.lrc)) if there]
        return ", ".join(words)

    def errors(self, at: Place) -> list[str]:
        errors: list[str] = []
        block, steps = at.step.block, at.plan.steps
        if block not in self.members:
            errors.append(
                f"block {block} is not among the blocks {self.members} that share; name it, or give it its own"
            )
        unknown = [one for one in self.members if not 0 <= one < at.plan.model.depth]
        if unknown:
            errors.append(f"members {unknown} do not exist; choose from 0..{at.plan.model.depth - 1}")
        if self.home not in self.members:
            errors.append(f"home={self.home}: shared matrices are registered as one of {self.members}")
        before = sum(step.block == block for step in steps[: at.index])
        if self.application != before:
            errors.append(f"application={self.application}: {before} steps before it run block {block}; give {before}")
        if self.application and at.plan.model.positions_per_block:
            errors.append(
                f"this {at.plan.model.family} has rotary positions of its own for every block (mixed), and none for "
                "further applications; apply the block once"
            )
        for step in steps:
            if step.block in self.members and not (isinstance(step.weights, Shared) and self.goes_with(step.weights)):
                errors.append(
                    f"block {step.block} should share with {self.members}, but has other weights "
                    f"({step.weights.describe()}); give all steps of a group the same"
                )
        return errors + self._unlike(at)

    def goes_with(self, other: Shared) -> bool:
        """Whether both belong to one group."""
        return all(getattr(self, name) == getattr(other, name) for name in _OF_THE_GROUP)

    def registered_as(self, block: int) -> int:
        return self.home if self.has_view else block

    def linear_macs(self, at: Place, path: str, tokens: int, *, called: bool) -> int:
        linear = at.block.linears[path]
        rank = self._rank_of(linear)
        if linear.reads_weight and not called:
            # B A
            return tokens * linear.products + linear.outputs * rank * linear.inputs
        return tokens * (linear.products + rank * (linear.inputs + linear.outputs))

    def linear_activations(self, at: Place, path: str, tokens: int, *, called: bool) -> int:
        linear = at.block.linears[path]
        # B A is a matrix of the map's own size.
        made = linear.products if linear.reads_weight and not called and self._rank_of(linear) else 0
        return max(tokens * linear.outputs, made)

    def cost(self, at: Place) -> Cost:
        width, tokens = at.plan.channels, at.tokens_in_mlp
        total = Cost(parameters=at.block_parameters() + 4 * self.lrc)
        if self.nll is not None:
            hidden = int(width * self.nll)
            total += Cost(
                2 * tokens * width * hidden, (2 * width + 1) * hidden + 3 * width + 2, tokens * max(width, hidden)
            )
        if not self.has_view:
            return total
        group = [step for step in at.plan.steps if isinstance(step.weights, Shared) and self.goes_with(step.weights)]
        own = _used_maps(at, [step for step in group if step.block == at.step.block])
        matrices = 0
        if group[0] is at.step:
            matrices = sum(linear.products for linear in _used_maps(at, group).values())
        if at.is_first_of_block:
            residuals = (self._rank_of(linear) * (linear.inputs + linear.outputs) for linear in own.values())
            matrices += sum(residuals) - sum(linear.products for linear in own.values())
        return total + Cost(parameters=matrices)

    def _rank_of(self, linear: LinearShape) -> int:
        return min(self.rank, linear.inputs, linear.outputs) if self.has_view else 0

    def _unlike(self, at: Place) -> list[str]:
        """Maps of this block that differ in shape from those of the group's first."""
        first = next((step for step in at.plan.steps if step.block in self.members), at.step)
        ours, others = at.block.linears, at.block_of(first).linears
        odd = [path for path in ours.keys() & others.keys() if _shape(ours[path]) != _shape(others[path])]
        return [
            f"blocks {first.block} and {at.step.block} cannot share {path}, which is {_shape(others[path])} in one and "
            f"{_shape(ours[path])} in the other; put them into two groups"
            for path in sorted(odd)
        ]


def _shape(linear: LinearShape) -> tuple[int, int]:
    return linear.outputs, linear.inputs


def _used_maps(at: Place, steps: list[StepPlan]) -> dict[str, LinearShape]:
    """The linear maps that any of these steps uses of its block."""
    return {
        path: linear
        for step in steps
        for path, linear in at.block_of(step).linears.items()
        if linear.part in parts_used([step])
    }


class SharedLinear(nn.Module):
    """A linear map with W = W' + B A: the matrix W' is another module's, the residual B A and the bias are its own.

    timm's attention of EVA and BEiT reads ``weight`` itself instead of calling the module; then it is the full sum. The
    map is three plain products: whoever wants it fast merges W' + B A (``merged``), which is one, and no kernel that
    multiplies by A and B as well can be below that.

    Args:
        shared: holds W'.
        bias: this map's own, or none.
        rank: r, columns of B and rows of A; 0 leaves W' alone.
    """

    bias: nn.Parameter | None

    def __init__(self, shared: nn.Linear, bias: Tensor | None, rank: int) -> None:
        super().__init__()
        # In a tuple, so that it is not registered twice; the trunk owns it. The module is held rather than its tensor:
        # whatever puts another tensor there (a move to a device, a loaded state, functional_call) is seen here too.
        self._shared: tuple[nn.Linear] = (shared,)
        self.in_features, self.out_features = shared.in_features, shared.out_features
        self.rank = min(rank, shared.in_features, shared.out_features)
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
        # x W'ᵀ + b + (x Aᵀ) Bᵀ
        return F.linear(tokens, shared, self.bias) + F.linear(F.linear(tokens, self.down), self.up)

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


def view_of(block: nn.Module, shared: SharedBlock, rank: int) -> nn.Module:
    """A copy of a dense block whose linear maps read the shared matrices; residuals are not set yet."""
    matrices = linear_maps(shared)
    # deepcopy takes what its memo already holds instead of copying it.
    memo = {id(own): SharedLinear(matrices[path], own.bias, rank) for path, own in linear_maps(block).items()}
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
    """One application of a block that is applied more than once, or shares its matrices.

    Args:
        own: this step's view of the shared block; ``None`` where it runs the block itself, or a lent view.
        lent: the view of an earlier application, which this one uses again.
        coefficients: the start of a1 .. a4; ``None`` without LRC.
        nll: follows after the two branches, in this step alone.
    """

    lrc: nn.Parameter | None

    def __init__(
        self,
        own: nn.Module | None = None,
        *,
        lent: nn.Module | None = None,
        coefficients: Tensor | None = None,
        nll: NonLinearProjection | None = None,
    ) -> None:
        super().__init__()
        self.own = own
        # In a tuple, so that it is not registered twice.
        self._lent: tuple[nn.Module] | None = None if lent is None else (lent,)
        self.register_parameter("lrc", None if coefficients is None else nn.Parameter(coefficients))
        self.nll = nll

    @property
    def view(self) -> nn.Module | None:
        """What this step sees in place of the block; ``None`` where it is the block itself."""
        return self.own if self._lent is None else self._lent[0]

    @property
    def fits(self) -> bool:
        return self.own is not None

    def bind(self, bound: BoundBlock) -> BoundBlock:
        block = bound.block if self.view is None else self.view
        if self.lrc is None:
            return replace(bound, block=block)
        return ScaledBlock(bound.adapter, block, bound.token_state, coefficients=self.lrc)

    def finish(self, tokens: Tensor) -> Tensor:
        return tokens if self.nll is None else self.nll(tokens)

    def local_loss(self, block: int, dense: DenseTrace) -> Tensor | None:
        if self.own is None:
            return None
        tokens, target, z = (seen[block].detach() for seen in (dense.block_inputs, dense.block_outputs, dense.z))
        bound = self.bind(BoundBlock(dense.adapter, self.own))
        if not isinstance(self.own.attn, DroppedPart):
            z = bound.attend(bound.attention_input(tokens), dense.contexts[block])
        elif isinstance(self.own.mlp, DroppedPart):
            return None
        made = bound.add_attention(tokens, z)
        if isinstance(self.own.mlp, DroppedPart):
            # Another module stands for the MLP; what is left to imitate is the attention.
            target = BoundBlock(dense.adapter, dense.blocks[block]).add_attention(tokens, dense.z[block]).detach()
        else:
            made = self.finish(bound.add_mlp(made))
        # ‖made - target‖² / ‖u - mean u‖² with u = target - x, what the dense block adds
        added = target.float() - tokens.float()
        spread = (added - added.mean(dim=(0, 1))).square().sum()
        return (made.float() - target.float()).square().sum() / spread.clamp_min(1e-12)


def identity_projection(width: int, ratio: float) -> NonLinearProjection:
    """An NLL that changes nothing at the start, b1 = 1 and b2 = 0; the authors' start would destroy what is learnt."""
    projection = NonLinearProjection(width, ratio)
    nn.init.zeros_(projection.coefficient2.bias)
    return projection


def realise_shared(choice: Shared, site: Site) -> Recursive:
    """The module of a choice; the first step of a group makes its shared matrices."""
    former = None if site.former is None else site.former.weights
    if choice.merged and isinstance(former, Recursive):
        if former.own is not None:
            site.blocks[site.place.step.block] = merged_view(former.own)
        return Recursive(coefficients=former.lrc, nll=former.nll)
    if choice.merged and site.is_drawn and _is_first(choice, site.place):
        _merge_dense_(choice, site)
    own = lent = coefficients = projection = None
    if choice.has_view and choice.application:
        place = site.place
        turn = next(index for index, step in enumerate(place.plan.steps) if step.block == place.step.block)
        lent = cast(Recursive, site.weights[turn]).view
    elif choice.has_view:
        if choice.home not in site.shared:
            site.shared[choice.home] = _shared_block(choice, site)
        own = _view(choice, site.place.step.block, cast(SharedBlock, site.shared[choice.home]), site)
    if choice.lrc:
        # With a2 = a4 = 0 a further application gives back what it reads.
        start = [1.0, 0.0, 1.0, 0.0] if choice.application else [1.0, 1.0, 1.0, 1.0]
        coefficients = torch.tensor(start, device=site.device, dtype=site.dtype)
    if choice.nll is not None:
        with torch.device(site.device):
            projection = identity_projection(site.width, choice.nll).to(site.dtype)
    return Recursive(own, lent=lent, coefficients=coefficients, nll=projection)


def _is_first(choice: Shared, place: Place) -> bool:
    return not any(step.block in choice.members for step in place.plan.steps[: place.index])


def _shared_block(choice: Shared, site: Site) -> SharedBlock:
    maps = {block: linear_maps(site.blocks[block]) for block in choice.members if block in site.blocks}
    steps = {block: [step for step in site.place.plan.steps if step.block == block] for block in maps}
    used = {block: _used_maps(site.place, steps[block]) for block in maps}
    shared: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for block in maps for path in maps[block]):
        # A block that does not use its matrix, or has it no more, has no say in it.
        owners = [block for block in maps if path in maps[block]]
        owners = [block for block in owners if path in used[block]] or owners
        if choice.shared == "stepwise":
            nearest = min(owners, key=lambda owner: abs(owner - choice.home))
            matrix = maps[nearest][path].weight.detach().clone()
        else:
            together = torch.stack([maps[owner][path].weight.detach().double() for owner in owners])
            matrix = together.mean(dim=0).to(site.dtype)
        shared[path] = matrix.requires_grad_(any(maps[owner][path].weight.requires_grad for owner in owners))
    return SharedBlock(shared)


def _view(choice: Shared, block: int, shared: SharedBlock, site: Site) -> nn.Module:
    dense = site.blocks[block]
    view = view_of(dense, shared, choice.rank)
    if site.is_drawn:
        for path, linear in linear_maps(dense).items():
            cast(SharedLinear, view.get_submodule(path)).imitate_(linear.weight)
    return view


def _merge_dense_(choice: Shared, site: Site) -> None:
    """Write W' + B A into the matrices of all members."""
    shared = _shared_block(choice, site)
    for block in choice.members:
        if block in site.blocks:
            site.blocks[block] = merged_view(_view(choice, block, shared, site))
