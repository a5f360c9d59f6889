"""Sparsifiner: a small predictor chooses, for each image, which keys each query attends to.

Source: Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers", CVPR
2023, arXiv 2303.13755. n tokens, e head width, m rows of the basis (32 for 197 tokens).

    K_down = P (K W_kᵀ + b_k)                      the keys, narrower and summed into m rows
    coef   = softmax(s (Q W_qᵀ + b_q) K_downᵀ)     m weights per patch query
    Ã      = coef · basis                          what the attention rows may look like
    kept   = the k largest of each row of Ã, with the 8 largest coef of a row and the basis' entries above 0.02

Attention is then the softmax over the kept keys. The class row is full, as are those of all prefix tokens.

*Attention core* means: Q Kᵀ and A V, which are 2 n² d multiply-accumulates per block, and here the predictor as well;
qkv, output projection and MLP are the same before and after. For DeiT-S at 224 px ours is 49 % below the dense one;
``tests/methods/test_sparsifiner_cost.py`` names every term, and those of the authors' order of products (48 %). Of the
whole model it is 4 %, and the reference form of the op saves nothing at all: see ``vitslim.kernels``.

It is trained in two phases: first the predictor alone, which imitates the dense attention rows
(``vitslim.train.warm_start``, by ``local_loss``), then the backbone alone, which gets used to the kept keys
(``vitslim.train.distill``); see ``phase_parameters``. recipes/sparsifiner_deit_small.yaml has the authors' settings.

Departures: prefix tokens are always kept as keys, among the k, where the authors' class token competes with the patches
(``prefix_keys="chosen"`` does as they do); P K is taken before W_k, and W_q multiplied into K_down, which gives the
same numbers for fewer products; pruned tokens are not computed rather than masked, where the authors' class query still
reads them, as zeros, and come back at the end as they were. Beyond the paper (ours): one key set per tile of queries or
per image; matrices that follow the resolution; a start that makes the predictor sensible before any training.

A shared key set is that of the queries' summed coefficients. One coefficient row of their mean query would be cheaper
still, but costs agreement with the dense model: on the built-in task, before any training, with a quarter of the keys
74 % become 69 with tiles of 16 queries, and 51 become 47 with one key set per image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels.connectivity import ConnectivityPredictor
from vitslim.kernels.sparse_attention import kept_keys, sparse_attention, tile_count
from vitslim.kernels.token_axis import columns_at
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.layers import parse_layers, parse_numbers, refuse_ruled_tokens, steps_of
from vitslim.methods.prune import Prune
from vitslim.models import DenseTrace
from vitslim.plans import (
    AttentionChoice,
    Cost,
    Dense,
    ModelPlan,
    Place,
    StepPlan,
    dense_attention_cost,
    linear_cost,
    share_of,
)
from vitslim.trunk import BoundBlock, DenseAttention, Site, Stream, trunk_of

Granularity = Literal["query", "tile", "image"]
PrefixKeys = Literal["kept", "chosen"]

_PROBES = 256  # random tokens from which the start learns which directions of q and k carry anything
_TILES_PAY_FROM = 1025  # tokens, from which a tile's own keys are estimated to be worth a kernel of their own
_SHARED_ROWS = 32  # rows of the basis where queries share a key set
_OURS = {"n_down", "grid"}  # options that a plan has always
_ALWAYS = 1e4  # a basis entry that outweighs all others


class SparsifinerConfig(MethodConfig):
    """Options of Sparsifiner; the defaults are the paper's. No option reads an analysis."""

    layers: tuple[int, ...] | None = Field(default=None, examples=["2-11"])
    """Blocks whose attention becomes sparse, counted from 0; by default all that have dense attention."""
    keep_rate: float = Field(default=0.25, gt=0.0, le=1.0, examples=["0.5"])
    """Share of the tokens that a patch query keeps as keys; 1 is the dense model."""
    k: int | None = Field(default=None, ge=1, examples=["48"])
    """The same as a number of keys, those of the prefix among them; takes the place of ``keep_rate``."""
    prefix_keys: PrefixKeys = "kept"
    """``kept`` keeps the prefix tokens (class, registers) as keys of every query (ours); ``chosen`` lets them compete
    like the patches, as the authors do."""
    granularity: Granularity = "query"
    """Who shares a key set, per head: nobody (``query``, the paper), ``tile`` consecutive queries, or all patch queries
    of the ``image``, which is key and value compaction before ordinary fused attention."""
    tile: int = Field(default=64, ge=2, examples=["32"])
    """Patch queries per tile, for granularity ``tile`` alone."""
    n_down: int | None = Field(default=None, ge=1, examples=["16"])
    """Rows of the basis. By default a sixth of the tokens, 32 of 197, but not fewer than ``coefficients``; where
    queries share a key set at most 32: of 4,097 tokens a sixth would make the choice 23 % of dense attention's products
    at that length, 32 rows make it 1 or 2 %."""
    coefficients: int = Field(default=8, ge=1, examples=["4"])
    """How many of a row's coefficients count; with fewer rows in the basis, all."""
    basis_threshold: float = Field(default=0.02, ge=0.0, examples=["0.05"])
    """Basis entries up to this size count as zero in choosing."""
    scale: Literal["heads", "width"] = "heads"
    """Scale of the coefficients. ``heads`` is h^-½, which the authors use, perhaps by a slip; ``width`` is e^-½ of the
    head width e, as in attention."""
    init: Literal["regions", "scratch"] = "regions"
    """``regions`` starts with attention to regions of the grid, for conversion; ``scratch`` with the authors' random
    start."""
    token_keep_rate: float = Field(default=1.0, gt=0.0, le=1.0, examples=["0.7"])
    """Share r of the patches that stay after each block of ``prune_layers``: r, r², r³ of all. At 1 every patch stays.
    The others take part no more, in no later block; at the end they come back as they were."""
    prune_layers: tuple[int, ...] | None = Field(default=None, examples=["3,6,9"])
    """Blocks after which patches are pruned, by the class token's attention in that block (without a class token, by
    the mean patch query's). By default at each quarter of the depth, after 3, 6 and 9 of 12."""
    grid: tuple[int, int] | None = Field(default=None, examples=["14,14"])
    """Rows and columns of patches for which P and basis are stored, by default the model's own; at another size they
    are interpolated in each forward, as a position embedding would be."""

    @field_validator("layers", "prune_layers", mode="before")
    @classmethod
    def _read_layers(cls, value: Any) -> Any:
        return None if value is None else parse_layers(value)

    @field_validator("grid", mode="before")
    @classmethod
    def _read_grid(cls, value: Any) -> Any:
        numbers = parse_numbers(value)
        return numbers * 2 if isinstance(numbers, tuple) and len(numbers) == 1 else numbers

    @field_validator("grid")
    @classmethod
    def _has_patches(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError(f"grid={value} has no patches; give rows and columns")
        return value


class Sparse(AttentionChoice):
    """The block's own attention with, for every patch query, only the keys that a predictor keeps.

    Fields as in ``SparsifinerConfig``, ``n_down`` and ``grid`` being those of the stored matrices.
    """

    picks: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "how many keys are kept has to be a constant"

    kind: Literal["sparse"] = "sparse"
    keep_rate: float = Field(default=0.25, gt=0.0, le=1.0)
    k: int | None = Field(default=None, ge=1)
    prefix_keys: PrefixKeys = "kept"
    granularity: Granularity = "query"
    tile: int = Field(default=64, ge=2)
    n_down: int = Field(ge=1)
    coefficients: int = Field(default=8, ge=1)
    basis_threshold: float = Field(default=0.02, ge=0.0)
    scale: Literal["heads", "width"] = "heads"
    init: Literal["regions", "scratch"] = "regions"
    grid: tuple[int, int]

    def always(self, prefix: int) -> int:
        """How many tokens at the front are keys of every query, whatever their scores."""
        return prefix if self.prefix_keys == "kept" else 0

    def keys(self, prefix: int, patches: int) -> int:
        """How many keys a patch query keeps at this image size; at least those kept always and one more."""
        tokens = prefix + patches
        wanted = share_of(tokens, self.keep_rate) if self.k is None else self.k
        return min(tokens, max(wanted, self.always(prefix) + 1))

    def queries(self, patches: int) -> int:
        """How many of so many patch queries share a key set."""
        return {"query": 1, "tile": self.tile, "image": patches}[self.granularity]

    def describe(self) -> str:
        keys = f"{100 * self.keep_rate:g} % of the keys" if self.k is None else f"{self.k} keys"
        shared = {"query": "query", "tile": f"{self.tile} queries", "image": "image"}[self.granularity]
        return f"sparse ({keys} per {shared}{', prefix keys chosen too' if self.prefix_keys == 'chosen' else ''})"

    def errors(self, at: Place) -> list[str]:
        errors: list[str] = []
        always, tokens = self.always(at.plan.model.prefix), at.plan.model.prefix + self.grid[0] * self.grid[1]
        if min(self.grid) < 1:
            errors.append(f"grid={self.grid} has no patches; give rows and columns")
        elif self.k is not None and not always < self.k <= tokens:
            errors.append(
                f"k={self.k}: of {tokens} tokens the first {always} are always kept; choose from {always + 1}..{tokens}"
            )
        rate = at.dense_block.attention_dropout
        if rate > 0:
            errors.append(
                f"block {at.step.block} drops attention weights in training (rate {rate:g}), which sparse attention "
                "does not; open the model with attn_drop_rate=0"
            )
        return errors

    def engine_advice(self, at: Place) -> str:
        tokens, keys = at.tokens_in_attention, self.keys(at.plan.model.prefix, at.plan.patches)
        if self.granularity == "image" or tokens >= _TILES_PAY_FROM or keys >= tokens:
            return ""
        mlp = at.step.mlp.cost(at).macs
        dense = dense_attention_cost(at, tokens, called=False).macs + mlp
        products = 2 * at.block.heads * tokens * tokens * at.block.head_width / dense
        image = self.model_copy(update={"granularity": "image", "n_down": min(self.n_down, _SHARED_ROWS)})
        per_image = (image.cost(at).macs + mlp) / dense
        return (
            f"the products of {tokens} tokens with each other are {products:.0%} of a block's multiply-accumulates, "
            f"which is all that skipping keys can save, and a form per {self.granularity} saves it only by a kernel of "
            f"its own; granularity=image gathers {keys} keys once per head for ordinary fused attention, takes "
            f"{per_image:.0%} of a dense block with the choice included, and needs no plugin"
        )

    def cost(self, at: Place) -> Cost:
        prefix, e, heads = at.plan.model.prefix, at.block.head_width, at.block.heads
        narrow, rows, tokens = max(1, e // 2), self.n_down, at.tokens_in_attention
        stored = prefix + self.grid[0] * self.grid[1]
        parameters = 2 * (e * narrow + narrow) + 2 * rows * stored
        keys, queries = self.keys(prefix, at.plan.patches), tokens - prefix
        if keys >= tokens:
            return dense_attention_cost(at, tokens, called=at.class_row or at.needs_operands) + Cost(
                parameters=parameters
            )
        tile = self.queries(queries)
        # P K, (P K) W_kᵀ and K_down W_q, Q (K_down W_q)ᵀ
        guess = rows * tokens * e + 2 * rows * e * narrow + queries * e * rows
        # coef · basis, on the coefficients that count in a tile
        guess += tile_count(queries, tile) * min(rows, self.coefficients * tile) * tokens
        # Q Kᵀ and A V: all keys for the prefix queries, the kept ones for the others; and one row
        core = 2 * (prefix * tokens + queries * keys) * e + (tokens * e if at.class_row else 0)
        linear = linear_cost(at, "attention", tokens, called=True)
        return linear + Cost(heads * (guess + core), parameters, heads * rows * max(queries, e))


class SparseAttention(DenseAttention):
    """The block's own attention on the kept keys.

    A mask or bias of the caller enters the attention, not the choice. With all keys kept it is the dense attention.

    Args:
        choice: what the plan says.
    """

    fitted_apart = True

    def __init__(self, predictor: ConnectivityPredictor, choice: Sparse) -> None:
        super().__init__()
        self.predictor = predictor
        self.choice = choice

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        count, prefix = tokens.shape[1], stream.layout.prefix
        keys = self.choice.keys(prefix, stream.layout.patches)
        if keys >= count:
            return super().forward(bound, tokens, stream)
        attention_input = bound.attention_input(tokens)
        query, key, value = bound.queries_keys_values(attention_input, stream.context)
        bias = bound.attention_bias(stream.context, count)
        tile, scale = self.choice.queries(count - prefix), bound.scale
        kept = self.choose(query, key, stream, keys=keys, tile=tile)
        mixed = sparse_attention(query, key, value, kept, tile=tile, prefix=prefix, scale=scale, bias=bias)
        if stream.wants_class_attention:
            row = bound.adapter.class_row(query, key, bias, bound.scale)
            stream = replace(stream, class_attention=row)
        z = bound.merge_heads(attention_input, mixed)
        return z, replace(stream, z=z)

    def choose(
        self,
        query: Float[Tensor, "b h n e"],
        key: Float[Tensor, "b h n e"],
        stream: Stream,
        *,
        keys: int,
        tile: int,
    ) -> Int[Tensor, "b h t k"]:
        """Token indices of the kept keys of each tile."""
        down, basis = self.predictor.matrices(stream.layout.grid)
        size = basis.abs()
        basis = torch.where(size > self.choice.basis_threshold, size, 0.0)
        indices = None if stream.token_state is None else stream.token_state.active_indices()
        if indices is not None:
            # A representative of inactive tokens has no place on the grid: no summed key, and always kept as a key.
            without = key.shape[2] - indices.shape[1]
            down = F.pad(columns_at(down, indices), (0, without))
            basis = F.pad(columns_at(basis, indices), (0, without), value=_ALWAYS)
        coefficients = self.predictor(query[:, :, stream.layout.prefix :], key, down)
        always = self.choice.always(stream.layout.prefix)
        return kept_keys(coefficients, basis, top=self.choice.coefficients, keys=keys, tile=tile, prefix=always)

    def local_loss(self, block: int, dense: DenseTrace) -> Tensor:
        """How far Ã is from the dense attention rows of the patch queries; the first of the two phases of training.

        The authors' loss is 0.01 times the summed square; ours is relative, which an optimiser such as Adam does not
        notice. As theirs, it takes all coefficients and the basis with its signs.
        """
        prefix = dense.layout.prefix
        query, key, rows = _dense_rows(block, dense)
        down, basis = self.predictor.matrices(dense.layout.grid)
        predicted = self.predictor(query[:, :, prefix:], key, down) @ basis.float()
        # ‖Ã - A‖² / ‖A - mean A‖²
        spread = (rows - rows.mean(dim=(0, 1, 2))).square().sum()
        return (predicted.float() - rows).square().sum() / spread.clamp_min(1e-12)


@torch.no_grad()
def _dense_rows(block: int, dense: DenseTrace) -> tuple[Tensor, Tensor, Tensor]:
    """Q and K of a dense block, and the attention rows of its patch queries, in float32."""
    bound = BoundBlock(dense.adapter, dense.blocks[block])
    context = dense.contexts[block]
    query, key, _ = bound.queries_keys_values(dense.attention_inputs[block], context)
    scores = (query * bound.scale) @ key.transpose(-2, -1)
    bias = bound.attention_bias(context, key.shape[2])
    rows = (scores if bias is None else scores + bias).float().softmax(dim=-1)
    return query, key, rows[:, :, dense.layout.prefix :]


def phase_parameters(model: nn.Module, phase: Literal["predictor", "backbone"]) -> dict[str, nn.Parameter]:
    """The parameters that one of the two phases trains, by their name in the model.

    Raises:
        ConfigError: the model is dense, or has no predictor.
    """
    apart = {f"blocks.{name}" for name in trunk_of(model).parameters_fitted_apart()}
    if not apart:
        raise ConfigError("no step of this model has a predictor; convert it with 'sparsifiner' and keep_rate below 1")
    return {name: value for name, value in model.named_parameters() if (name in apart) == (phase == "predictor")}


def _realise(choice: Sparse, site: Site) -> SparseAttention:
    block = site.place.block
    scale = (block.heads if choice.scale == "heads" else block.head_width) ** -0.5
    with torch.device(site.device):
        predictor = ConnectivityPredictor(block.head_width, scale, site.layout.prefix, choice.grid, choice.n_down)
    if site.is_drawn:
        if choice.init == "regions":
            predictor.start_at_regions_(*_probe(site))
        else:
            predictor.start_at_random_()
    return SparseAttention(predictor.to(site.dtype), choice)


@torch.no_grad()
def _probe(site: Site) -> tuple[Tensor, Tensor]:
    """Q and K that a block makes of random tokens, to see which directions they use."""
    drawn = torch.randn(1, _PROBES, site.width, generator=torch.Generator().manual_seed(0))
    bound = site.bound()
    query, key, _ = bound.queries_keys_values(bound.attention_input(drawn.to(site.device, site.dtype)), {})
    return query, key


@register_method(
    "sparsifiner",
    SparsifinerConfig,
    source="Wei et al., CVPR 2023, arXiv 2303.13755",
    modules={Sparse: _realise},
    neutral={"keep_rate": 1.0},
    example={"keep_rate": 0.4},
    forms={"pruning": {"keep_rate": 0.4, "token_keep_rate": 0.7}},
)
def sparsifiner(plan: ModelPlan, options: SparsifinerConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with sparse attention in ``options.layers``, and perhaps fewer patches after ``options.prune_layers``.

    What keeps everything changes nothing: neither all keys nor all patches leave a trace in the plan.
    """
    changed = _sparse_steps(plan, options)
    if options.token_keep_rate < 1.0:
        changed |= _pruned_steps(plan.with_steps(changed), options)
    return plan.with_steps(changed)


def _sparse_steps(plan: ModelPlan, options: SparsifinerConfig) -> dict[int, StepPlan]:
    if options.layers is None:
        found = [index for index, step in enumerate(plan.steps) if isinstance(step.attention, Dense)]
    else:
        found = steps_of(plan, "sparsifiner.layers", options.layers)
    for step in (plan.steps[index] for index in found):
        if not isinstance(step.attention, Dense):
            raise ConfigError(
                f"sparsifiner.layers: block {step.block} has no dense attention any more ({step.attention.describe()})"
            )
    grid, prefix = options.grid or plan.grid, plan.model.prefix
    tokens = prefix + grid[0] * grid[1]
    # The authors' reduce_n_factor of 6: 32 rows for 197 tokens. On small grids that would leave nothing to choose from.
    rows = max(tokens // 6, min(options.coefficients, tokens))
    sparse = Sparse(
        **{
            name: getattr(options, name)
            for name in Sparse.model_fields.keys() & type(options).model_fields.keys() - _OURS
        },
        n_down=options.n_down or (rows if options.granularity == "query" else min(rows, _SHARED_ROWS)),
        grid=grid,
    )
    keeps_all = options.keep_rate >= 1.0 if options.k is None else options.k == tokens
    if keeps_all:
        return {}
    if options.layers is None and not found:
        raise ConfigError("sparsifiner: no block has dense attention any more; convert with sparsifiner first")
    return {index: plan.steps[index].but(attention=sparse) for index in found}


def _pruned_steps(plan: ModelPlan, options: SparsifinerConfig) -> dict[int, StepPlan]:
    """The steps before which patches are pruned, each time to the same share of what is left."""
    refuse_ruled_tokens("sparsifiner", plan)
    last = plan.depth - 1
    if options.prune_layers is None:
        quarters = {plan.depth * quarter // 4 for quarter in (1, 2, 3)} - {0, last}
        after = tuple(sorted(quarters)) if plan.depth > 2 else (0,)
    else:
        after = steps_of(plan, "sparsifiner.prune_layers", options.prune_layers)
    if last in after:
        raise ConfigError(
            f"sparsifiner.prune_layers: no block comes after {plan.steps[last].block}; choose from "
            f"0..{plan.model.depth - 2}"
        )
    score, keep = plan.model.row_score, options.token_keep_rate
    return {
        index + 1: plan.steps[index + 1].but(tokens=Prune(keep=keep**number, where="before", fuse=False, score=score))
        for number, index in enumerate(after, start=1)
    }
