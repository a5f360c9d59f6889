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
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels.bit_attention import bit_attention, kept_bits
from vitslim.kernels.connectivity import ConnectivityPredictor
from vitslim.kernels.serving import serves_attention
from vitslim.kernels.sparse_attention import kept_keys, sparse_attention
from vitslim.kernels.token_axis import columns_at
from vitslim.methods.base import Evidence, Method, MethodConfig
from vitslim.methods.layers import parse_layers, parse_numbers
from vitslim.methods.pruning import faults_of_pruning, share_of, with_pruning
from vitslim.models import DenseTrace, TokenLayout
from vitslim.trunk import BoundBlock, DenseMixing, Plan, Step, Stream, trunk_of

Granularity = Literal["query", "tile", "image"]
PrefixKeys = Literal["kept", "chosen"]

_PROBES = 256  # random tokens from which the start learns which directions of q and k carry anything
_IMAGE_ROWS = 32  # rows of the basis where all queries share one key set
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
    """Rows of the basis. By default a sixth of the tokens, 32 of 197, but not fewer than ``coefficients``; for
    granularity ``image`` at most 32, since one choice for all queries needs no finer guess, and the coefficients of
    every query would cost more than long sequences save."""
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


@dataclass(frozen=True)
class KeyRule:
    """How many keys are kept, who shares them, and what of the guess counts; fields as in ``SparsifinerConfig``."""

    keep_rate: float
    k: int | None
    prefix_keys: PrefixKeys
    granularity: Granularity
    tile: int
    coefficients: int
    basis_threshold: float

    def keeps_all(self, layout: TokenLayout) -> bool:
        """Whether nothing is sparse, at this image size."""
        return self.keep_rate >= 1.0 if self.k is None else self.k >= layout.tokens

    def always(self, layout: TokenLayout) -> int:
        """How many tokens at the front are keys of every query, whatever their scores."""
        return layout.prefix if self.prefix_keys == "kept" else 0

    def keys(self, layout: TokenLayout) -> int:
        """How many keys a patch query keeps at this image size; at least those kept always and one more."""
        wanted = share_of(layout.tokens, self.keep_rate) if self.k is None else self.k
        return min(layout.tokens, max(wanted, self.always(layout) + 1))

    def queries(self, patches: int) -> int:
        """How many of so many patch queries share a key set."""
        return {"query": 1, "tile": self.tile, "image": patches}[self.granularity]

    def describe(self) -> str:
        keys = f"{100 * self.keep_rate:g} % of the keys" if self.k is None else f"{self.k} keys"
        shared = {"query": "query", "tile": f"{self.tile} queries", "image": "image"}[self.granularity]
        return f"{keys} per {shared}" + (", prefix keys chosen too" if self.prefix_keys == "chosen" else "")


class SparseMixing(DenseMixing):
    """The block's own attention with, for every patch query, only the keys that the predictor keeps.

    A mask or bias of the caller enters the attention, not the choice. With all keys kept it is the dense attention.
    """

    attention = "sparse"
    fitted_apart = True
    chooses = True
    needs_one_size = "how many keys are kept has to be a constant"

    def __init__(self, predictor: ConnectivityPredictor, rule: KeyRule) -> None:
        super().__init__()
        self.predictor = predictor
        self.rule = rule

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        layout, count = stream.layout, tokens.shape[1]
        keys = self.rule.keys(layout)
        if keys >= count:
            return super().forward(bound, tokens, stream)
        attention_input = bound.attention_input(tokens)
        query, key, value = bound.queries_keys_values(attention_input, stream.context)
        bias = bound.attention_bias(stream.context, count)
        tile, prefix, scale = self.rule.queries(count - layout.prefix), layout.prefix, bound.scale
        if tile == 1 and bias is None and serves_attention(query, value):
            # A key set for each query takes a sixteenth of the memory as bits.
            bits = self.choose_bits(query, key, stream, keys=keys)
            mixed = bit_attention(query, key, value, bits, tile=tile, prefix=prefix, scale=scale)
        else:
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
        coefficients, basis = self._guess(query, key, stream)
        always = self.rule.always(stream.layout)
        return kept_keys(coefficients, basis, top=self.rule.coefficients, keys=keys, tile=tile, prefix=always)

    def choose_bits(
        self, query: Float[Tensor, "b h n e"], key: Float[Tensor, "b h n e"], stream: Stream, *, keys: int
    ) -> Int[Tensor, "b h p w"]:
        """The kept keys of each patch query as bits, see ``vitslim.kernels.bit_attention``."""
        coefficients, basis = self._guess(query, key, stream)
        always = self.rule.always(stream.layout)
        return kept_bits(coefficients, basis, top=self.rule.coefficients, keys=keys, tile=1, prefix=always)

    def _guess(
        self, query: Float[Tensor, "b h n e"], key: Float[Tensor, "b h n e"], stream: Stream
    ) -> tuple[Float[Tensor, "b h p m"], Float[Tensor, "*b m n"]]:
        """Coefficients and basis, whose product ranks the keys."""
        down, basis = self.predictor.matrices(stream.layout.grid)
        size = basis.abs()
        basis = torch.where(size > self.rule.basis_threshold, size, 0.0)
        places = None if stream.token_state is None else stream.token_state.active_places()
        if places is not None:
            # A representative of waiting tokens has no place on the grid: no summed key, and always kept as a key.
            without = key.shape[2] - places.shape[1]
            down = F.pad(columns_at(down, places), (0, without))
            basis = F.pad(columns_at(basis, places), (0, without), value=_ALWAYS)
        return self.predictor(query[:, :, stream.layout.prefix :], key, down), basis

    def local_loss(self, step: int, dense: DenseTrace) -> Tensor:
        """How far Ã is from the dense attention rows of the patch queries; the first of the two phases of training.

        The authors' loss is 0.01 times the summed square; ours is relative, which an optimiser such as Adam does not
        notice. As theirs, it takes all coefficients and the basis with its signs.
        """
        prefix = dense.layout.prefix
        query, key, rows = _dense_rows(step, dense)
        down, basis = self.predictor.matrices(dense.layout.grid)
        predicted = self.predictor(query[:, :, prefix:], key, down) @ basis.float()
        # ‖Ã - A‖² / ‖A - mean A‖²
        spread = (rows - rows.mean(dim=(0, 1, 2))).square().sum()
        return (predicted.float() - rows).square().sum() / spread.clamp_min(1e-12)

    def describe(self) -> str:
        return f"sparse ({self.rule.describe()})"


@torch.no_grad()
def _dense_rows(step: int, dense: DenseTrace) -> tuple[Tensor, Tensor, Tensor]:
    """Q and K of a dense block, and the attention rows of its patch queries, in float32."""
    bound = BoundBlock(dense.adapter, dense.blocks[step])
    context = dense.contexts[step]
    query, key, _ = bound.queries_keys_values(dense.attention_inputs[step], context)
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


def resolve(config: SparsifinerConfig, plan: Plan, analysis: Evidence | None) -> SparsifinerConfig:
    """Fill in layers, basis rows and grid, and check them against the plan.

    Raises:
        ConfigError: a layer out of range or without dense attention, or too few or too many keys.
    """
    layers = config.layers
    if layers is None:
        layers = tuple(index for index, step in enumerate(plan.steps) if type(step.mixing) is DenseMixing)
    pruned = _quarters(plan.depth) if config.prune_layers is None else config.prune_layers
    layout = _stored_layout(config, plan)
    faults = [fault for layer in layers for fault in _faults_of(layer, plan)] + _faults_of_keys(config, layout)
    if not _rule(config).keeps_all(layout):
        faults += _faults_of_dropout(layers, plan)
    if config.token_keep_rate < 1.0:
        faults += [f"sparsifiner.prune_layers: {fault}" for fault in faults_of_pruning(pruned, plan)]
    if faults:
        raise ConfigError("; ".join(faults))
    # The authors' reduce_n_factor of 6: 32 rows for 197 tokens. On small grids that would leave nothing to choose from.
    rows = max(layout.tokens // 6, min(config.coefficients, layout.tokens))
    n_down = config.n_down or (min(rows, _IMAGE_ROWS) if config.granularity == "image" else rows)
    return config.model_copy(update={"layers": layers, "n_down": n_down, "grid": layout.grid, "prune_layers": pruned})


def _stored_layout(config: SparsifinerConfig, plan: Plan) -> TokenLayout:
    """The tokens for which the matrices are stored; what is sparse there stays sparse whatever the image size."""
    return plan.layout if config.grid is None else replace(plan.layout, grid=config.grid)


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0, depth - 1})) if depth > 2 else (0,)


def _faults_of(layer: int, plan: Plan) -> list[str]:
    if not 0 <= layer < plan.depth:
        return [f"sparsifiner.layers: block {layer} does not exist; choose from 0..{plan.depth - 1}"]
    step = plan.steps[layer]
    if type(step.mixing) is not DenseMixing:
        return [f"sparsifiner.layers: block {layer} has no dense attention any more ({step.mixing.describe()})"]
    return []


def _faults_of_dropout(layers: tuple[int, ...], plan: Plan) -> list[str]:
    for layer in set(layers) & set(range(plan.depth)):
        step = plan.steps[layer]
        rate = plan.adapter.attention_dropout(_bound(step, plan).block) if step.mixing.uses_attention else 0.0
        if rate > 0:
            return [
                f"sparsifiner.layers: block {layer} drops attention weights in training (rate {rate:g}), which sparse "
                "attention does not; open the model with attn_drop_rate=0"
            ]
    return []


def _faults_of_keys(config: SparsifinerConfig, layout: TokenLayout) -> list[str]:
    always = _rule(config).always(layout)
    if config.k is None or always < config.k <= layout.tokens:
        return []
    return [
        f"sparsifiner.k={config.k}: of {layout.tokens} tokens the first {always} are always kept; "
        f"choose from {always + 1}..{layout.tokens}"
    ]


def apply(plan: Plan, config: SparsifinerConfig) -> Plan:
    """The plan with sparse attention in ``config.layers``, and perhaps fewer patches after ``config.prune_layers``.

    What keeps everything changes nothing: neither all keys nor all patches leave a trace in the plan.
    """
    if not _rule(config).keeps_all(_stored_layout(config, plan)):
        layers = cast("tuple[int, ...]", config.layers)
        mixings = {layer: _sparse(plan.steps[layer], plan, config) for layer in layers}
        plan = plan.with_steps({layer: plan.steps[layer].but(mixing=mixing) for layer, mixing in mixings.items()})
    if config.token_keep_rate < 1.0:
        plan = with_pruning(plan, cast("tuple[int, ...]", config.prune_layers), config.token_keep_rate)
    return plan


def _sparse(step: Step, plan: Plan, config: SparsifinerConfig) -> SparseMixing:
    query, key = _probe(step, plan)
    heads, width = query.shape[1], query.shape[3]
    scale = heads**-0.5 if config.scale == "heads" else width**-0.5
    grid, rows = cast("tuple[int, int]", config.grid), cast(int, config.n_down)
    with torch.device(plan.device):
        predictor = ConnectivityPredictor(width, scale, plan.layout.prefix, grid, rows)
    if plan.device.type != "meta" and not plan.weights_follow:
        if config.init == "regions":
            predictor.start_at_regions_(query, key)
        else:
            predictor.start_at_random_()
    return SparseMixing(predictor.to(plan.dtype), _rule(config))


def _rule(config: SparsifinerConfig) -> KeyRule:
    return KeyRule(
        keep_rate=config.keep_rate,
        k=config.k,
        prefix_keys=config.prefix_keys,
        granularity=config.granularity,
        tile=config.tile,
        coefficients=config.coefficients,
        basis_threshold=config.basis_threshold,
    )


@torch.no_grad()
def _probe(step: Step, plan: Plan) -> tuple[Tensor, Tensor]:
    """Q and K that a block makes of random tokens; for their shapes, and to see which directions they use."""
    if plan.device.type == "meta":
        noise = torch.empty(1, _PROBES, plan.width, device="meta", dtype=plan.dtype)
    else:
        drawn = torch.randn(1, _PROBES, plan.width, generator=torch.Generator().manual_seed(0))
        noise = drawn.to(plan.device, plan.dtype)
    bound = _bound(step, plan)
    query, key, _ = bound.queries_keys_values(bound.attention_input(noise), {})
    return query, key


def _bound(step: Step, plan: Plan) -> BoundBlock:
    return step.weights.bind(BoundBlock(plan.adapter, plan.blocks[step.block]))


METHOD = Method(
    name="sparsifiner",
    config=SparsifinerConfig,
    resolve=resolve,
    apply=apply,
    source="Wei et al., CVPR 2023, arXiv 2303.13755",
)
