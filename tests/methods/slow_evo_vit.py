"""Evo-ViT written out plainly: nothing is sorted or gathered, inactive patches are masked and put back."""

import torch
from torch import Tensor, nn

from vitslim.methods.evo_vit import Evolve
from vitslim.methods.skipat import ReuseAttention
from vitslim.models import trace
from vitslim.trunk import BoundBlock, trunk_of


@torch.no_grad()
def slow_evo_vit(dense: nn.Module, images: Tensor, converted: nn.Module) -> list[Tensor]:
    """The tokens after every block, in natural order, for the rules and skip functions of a converted model."""
    seen = trace(dense, images)
    adapter, layout, depth = seen.adapter, seen.layout, len(seen.blocks)
    prefix, n = layout.prefix, layout.tokens
    steps = list(trunk_of(converted).steps)
    x = seen.block_inputs[0]
    batch = x.shape[0]
    active = torch.ones(batch, layout.patches, dtype=torch.bool)
    g = z = r = r_start = shares = None
    outputs: list[Tensor] = []

    def gained() -> Tensor:
        """What the inactive patches take over from their representative."""
        return x if r is None else torch.cat([x[:, :prefix], x[:, prefix:] + ~active.unsqueeze(2) * (r - r_start)], 1)

    for index in range(depth):
        rule, attention = steps[index].tokens.choice, steps[index].attention
        assert isinstance(rule, Evolve)
        bound = BoundBlock(adapter, seen.blocks[index])
        kept = rule.kept(layout.patches, prefix)
        if rule.selects or kept == layout.patches:
            x = gained()
            r = shares = None
            active = torch.ones_like(active)
        if rule.selects and kept < layout.patches:
            best = g.argsort(dim=1, descending=True, stable=True)[:, :kept]
            active = torch.zeros_like(active).scatter(1, best, True)
            if rule.extra:
                shares = (g * ~active) / (g * ~active).sum(dim=1, keepdim=True)
                r = r_start = (shares.unsqueeze(2) * x[:, prefix:]).sum(dim=1, keepdim=True)
        tokens = x if r is None else torch.cat([x, r], dim=1)
        everyone = torch.cat([torch.ones(batch, prefix, dtype=torch.bool), active], dim=1)
        if isinstance(attention, ReuseAttention):
            z = attention.predict(z[:, :n], prefix, layout.grid)
            row = None
            z_tokens = z if r is None else torch.cat([z, (shares.unsqueeze(2) * z[:, prefix:]).sum(1, True)], dim=1)
        else:
            z_tokens, row = attend(bound, tokens, dict(seen.contexts[index]), everyone, n)
            z = z_tokens
        fresh = bound.add_mlp(bound.add_attention(tokens, z_tokens))
        x = torch.where(everyone.unsqueeze(2), fresh[:, :n], x)
        r = None if r is None else fresh[:, n:]
        if row is not None:
            patches = row[:, :, prefix:n].sum(dim=1)
            g = patches if g is None else torch.where(active, (1 - rule.alpha) * g + rule.alpha * patches, g)
        outputs.append(gained())
    return outputs


def attend(bound: BoundBlock, tokens: Tensor, context: dict, everyone: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Z and the class row, with the keys of inactive patches masked; a representative stands behind all tokens."""
    extra = tokens.shape[1] - n
    if extra and context.get("rope") is not None:
        rope = context["rope"]
        unturned = torch.cat([torch.zeros(rope.shape[-1] // 2), torch.ones(rope.shape[-1] // 2)])
        context["rope"] = torch.cat([rope, unturned.expand(*rope.shape[:-2], 1, -1)], dim=-2)
    read = bound.attention_input(tokens)
    query, key, value = bound.queries_keys_values(read, context)
    batch, heads, count = query.shape[:3]
    bias = torch.zeros(batch, heads, count, count)
    given = bound.attention_bias(context, n)
    if given is not None:
        bias[:, :, :n, :n] = given
    keys = torch.cat([everyone, torch.ones(batch, extra, dtype=torch.bool)], dim=1)
    hidden = torch.zeros(batch, 1, 1, count).masked_fill(~keys[:, None, None], float("-inf"))
    scores = (query @ key.transpose(2, 3)) * bound.scale + bias + hidden
    z = bound.merge_heads(read, scores.softmax(dim=-1) @ value)
    if bound.adapter.has_class_token:
        return z, scores[:, :, 0].softmax(dim=-1)
    # The mean query of the patches that take part, their representative included.
    asking = keys.clone()
    asking[:, : bound.adapter.prefix] = False
    weights = asking / asking.sum(dim=1, keepdim=True)
    mean = (weights[:, None, :, None] * query).sum(dim=2, keepdim=True)
    return z, ((mean @ key.transpose(2, 3)) * bound.scale + hidden).squeeze(2).softmax(dim=-1)
