"""State dicts with the names and shapes of the authors' releases, and slow plain forms of their forward passes.

Names and shapes are facts read in the authors' repositories; the values are random.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitslim.models import SretPyramid

SIZE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 12,
    "num_heads": 3,
    "num_classes": 10,
}
"""The authors' depth, for theirs is fixed; all else tiny."""
WIDTH, GRID, TOKENS, HEADS, HEAD_WIDTH = 48, 4, 17, 3, 16

PYRAMID: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 10,
    "base_dims": (8, 8, 8),
    "heads": (1, 2, 4),
    "depths": (4, 2, 2),
    "unique": (2, 1, 1),
    "groups_first": (4, 2, 1),
    "groups_second": (2, 1, 1),
}

State = dict[str, Tensor]


def vit(**options: Any) -> nn.Module:
    return VisionTransformer(**{**SIZE, **options}).eval()


def dense_state() -> State:
    """timm's own names, with weights large enough that attention is far from even."""
    drawn = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in vit().state_dict().items()}
    state = {name: 0.3 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    return {name: value + float("norm" in name and name.endswith("weight")) for name, value in state.items()}


def _linear(state: State, name: str, rows: int, columns: int) -> None:
    drawn = torch.Generator().manual_seed(len(state))
    state[f"{name}.weight"] = 0.2 * torch.randn(rows, columns, generator=drawn)
    state[f"{name}.bias"] = 0.2 * torch.randn(rows, generator=drawn)


def skipat_state(expansion: int = 2, kernel_size: int = 5) -> State:
    """timm's names, and six Φ beside the blocks."""
    state = dense_state()
    hidden = expansion * WIDTH
    for number in range(1, 7):
        _linear(state, f"param_{number}.linear1.0", hidden, WIDTH)
        state[f"param_{number}.dwconv.0.weight"] = 0.2 * torch.randn(hidden, 1, kernel_size, kernel_size)
        state[f"param_{number}.dwconv.0.bias"] = 0.2 * torch.randn(hidden)
        _linear(state, f"param_{number}.linear2.0", WIDTH, hidden)
        state[f"param_{number}.eca.conv.weight"] = 0.2 * torch.randn(1, 1, 3)
    return state


def evo_vit_state() -> State:
    """A block's attention lies in four lists of its own; there is a second head."""
    dense = dense_state()
    state = {name: value for name, value in dense.items() if ".attn." not in name and ".norm1." not in name}
    for block in range(12):
        for leaf in ("weight", "bias"):
            joined = dense[f"blocks.{block}.attn.qkv.{leaf}"]
            state[f"qks.{block}.qk.{leaf}"], state[f"vs.{block}.v.{leaf}"] = joined[: 2 * WIDTH], joined[2 * WIDTH :]
            state[f"norms.{block}.{leaf}"] = dense[f"blocks.{block}.norm1.{leaf}"]
            state[f"projs.{block}.{leaf}"] = dense[f"blocks.{block}.attn.proj.{leaf}"]
    for leaf in ("weight", "bias"):
        state[f"head_cls.{leaf}"], state[f"norm_cls.{leaf}"] = dense[f"head.{leaf}"] + 1, dense[f"norm.{leaf}"] + 1
    return state


def sparsifiner_state(rows: int = 9) -> State:
    """timm's names, and a predictor inside of every attention."""
    state = dense_state()
    for block in range(12):
        name = f"blocks.{block}.attn.mask_predictor"
        for matrix in ("proj_n", "proj_back_n"):
            state[f"{name}.{matrix}"] = 0.2 * torch.randn(TOKENS, rows)
        for linear in ("proj_c_q", "proj_c_k"):
            _linear(state, f"{name}.{linear}", HEAD_WIDTH // 2, HEAD_WIDTH)
    return state


def pyramid(**options: Any) -> nn.Module:
    return SretPyramid(**{**PYRAMID, **options}).eval()


def sret_state() -> State:
    """Our pyramid's names, with the shared blocks under every application's number."""
    model = pyramid()
    state = {name: value + 0.1 * torch.rand(value.shape) for name, value in model.state_dict().items() if value.ndim}
    state |= {name: value for name, value in model.state_dict().items() if not value.ndim}
    again = {
        "0.blocks.0": "0.blocks.2",
        "0.blocks.4": "0.blocks.6",
        "1.blocks.0": "1.blocks.2",
        "2.blocks.0": "2.blocks.2",
    }
    for first, later in again.items():
        for name in [name for name in state if name.startswith(f"transformers.{first}.")]:
            state[name.replace(first, later, 1)] = state[name]
    return state


def _layer_norm(state: State, name: str, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _apply(state: State, name: str, tokens: Tensor) -> Tensor:
    return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])


def _embedded(state: State, images: Tensor) -> Tensor:
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    tokens = patches.flatten(2).transpose(1, 2)
    return torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], dim=1) + state["pos_embed"]


def _mlp(state: State, block: int, tokens: Tensor) -> Tensor:
    hidden = F.gelu(_apply(state, f"blocks.{block}.mlp.fc1", _layer_norm(state, f"blocks.{block}.norm2", tokens)))
    return _apply(state, f"blocks.{block}.mlp.fc2", hidden)


def _heads(tokens: Tensor) -> Tensor:
    return tokens.unflatten(2, (HEADS, HEAD_WIDTH)).transpose(1, 2)


def _rows(query: Tensor, key: Tensor) -> Tensor:
    return (_heads(query) @ _heads(key).transpose(2, 3) * HEAD_WIDTH**-0.5).softmax(dim=-1)


def skipat_forward(state: State, images: Tensor, skipped: range = range(3, 9)) -> Tensor:
    """SkipAt as the paper and METHODS.md have it, from the authors' names."""
    tokens, z = _embedded(state, images), torch.empty(0)
    for block in range(12):
        if block in skipped:
            z = torch.cat([z[:, :1], _phi(state, f"param_{block - skipped.start + 1}", z[:, 1:])], dim=1)
        else:
            query, key, value = _apply(
                state, f"blocks.{block}.attn.qkv", _layer_norm(state, f"blocks.{block}.norm1", tokens)
            ).chunk(3, dim=2)
            z = _apply(
                state, f"blocks.{block}.attn.proj", (_rows(query, key) @ _heads(value)).transpose(1, 2).flatten(2)
            )
        tokens = tokens + z
        tokens = tokens + _mlp(state, block, tokens)
    return _apply(state, "head", _layer_norm(state, "norm", tokens)[:, 0])


def _phi(state: State, name: str, patches: Tensor) -> Tensor:
    hidden = F.gelu(_apply(state, f"{name}.linear1.0", patches)).transpose(1, 2).unflatten(2, (GRID, GRID))
    kernel = state[f"{name}.dwconv.0.weight"]
    image = F.conv2d(hidden, kernel, state[f"{name}.dwconv.0.bias"], padding=kernel.shape[-1] // 2, groups=len(kernel))
    patches = _apply(state, f"{name}.linear2.0", F.gelu(image).flatten(2).transpose(1, 2))
    means = patches.mean(dim=1, keepdim=True)
    return patches * F.conv1d(means, state[f"{name}.eca.conv.weight"], padding=1).sigmoid()


def evo_vit_forward(state: State, image: Tensor) -> Tensor:
    """Evo-ViT stage by stage for one image, as METHODS.md has it, with indices in place of sorting."""
    tokens, g = _embedded(state, image)[0], torch.empty(0)
    active = torch.arange(1, TOKENS)
    for block in range(12):
        if block in (4, 8):
            active = 1 + g.argsort(descending=True)[: (TOKENS - 1) // 2]
        rows = torch.cat([torch.zeros(1, dtype=torch.long), active])
        part = tokens[None, rows]
        normed = _layer_norm(state, f"norms.{block}", part)
        query, key = _apply(state, f"qks.{block}.qk", normed).chunk(2, dim=2)
        attention = _rows(query, key)
        row = attention[0, :, 0, 1:].sum(dim=0)
        g = row if block < 4 else g.index_copy(0, active - 1, 0.5 * g[active - 1] + 0.5 * row)
        mixed = (attention @ _heads(_apply(state, f"vs.{block}.v", normed))).transpose(1, 2).flatten(2)
        part = part + _apply(state, f"projs.{block}", mixed)
        part = part + _mlp(state, block, part)
        tokens = tokens.index_copy(0, rows, part[0])
    return _apply(state, "head", _layer_norm(state, "norm", tokens[1:].mean(dim=0, keepdim=True)))


def sparsifiner_forward(state: State, images: Tensor, keys: int = 5, always: int = 0) -> Tensor:
    """Sparsifiner as dense attention under a mask, in the order of products that METHODS.md has.

    Args:
        always: tokens at the front that are kept whatever their guess; 0 for the authors, 1 for ours.
    """
    tokens = _embedded(state, images)
    for block in range(12):
        normed = _layer_norm(state, f"blocks.{block}.norm1", tokens)
        query, key, value = map(_heads, _apply(state, f"blocks.{block}.attn.qkv", normed).chunk(3, dim=2))
        guess = _guess(state, f"blocks.{block}.attn.mask_predictor", query[:, :, 1:], key)
        guess[..., :always] = torch.inf
        kept = torch.zeros_like(guess).scatter(-1, guess.topk(keys).indices, 1.0).bool()
        mask = torch.cat([torch.ones_like(kept[:, :, :1]), kept], dim=2)
        scores = (query @ key.transpose(2, 3) * HEAD_WIDTH**-0.5).masked_fill(~mask, -torch.inf)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        tokens = tokens + _apply(state, f"blocks.{block}.attn.proj", mixed)
        tokens = tokens + _mlp(state, block, tokens)
    return _apply(state, "head", _layer_norm(state, "norm", tokens)[:, 0])


def _guess(state: State, name: str, query: Tensor, key: Tensor) -> Tensor:
    narrow_query, narrow_key = _apply(state, f"{name}.proj_c_q", query), _apply(state, f"{name}.proj_c_k", key)
    down = narrow_key.transpose(2, 3) @ state[f"{name}.proj_n"]
    coefficients = (narrow_query @ down * HEADS**-0.5).softmax(dim=-1)
    largest = coefficients.topk(8)
    coefficients = torch.zeros_like(coefficients).scatter(-1, largest.indices, largest.values)
    size = state[f"{name}.proj_back_n"].T.abs()
    return coefficients @ torch.where(size > 0.02, size, 0.0)


def sret_forward(state: State, images: Tensor) -> Tensor:
    """The pyramid without slices, application by application, from the authors' names."""
    image = images
    for layer in (1, 2, 3):
        conv, norm = f"patch_embed.conv{layer}", f"patch_embed.bn{layer}"
        image = F.conv2d(image, state[f"{conv}.weight"], state[f"{conv}.bias"], stride=2, padding=1)
        moments = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        image = F.relu(F.batch_norm(image, *moments, state[f"{norm}.weight"], state[f"{norm}.bias"]))
    image = image + state["pos_embed"]
    for stage, (depth, heads) in enumerate(zip(PYRAMID["depths"], PYRAMID["heads"], strict=True)):
        tokens = image.flatten(2).transpose(1, 2)
        for application in range(depth):
            tokens = _recursive_block(state, f"transformers.{stage}.blocks.{2 * application}", tokens, heads)
            tokens = _branch(state, f"transformers.{stage}.blocks.{2 * application + 1}", tokens, "norm1", (1, 2))
        image = tokens.transpose(1, 2).unflatten(2, image.shape[2:])
        if stage < 2:
            pool, bias = state[f"pools.{stage}.conv.weight"], state[f"pools.{stage}.conv.bias"]
            image = F.conv2d(image, pool, bias, stride=2, padding=1, groups=image.shape[1])
    return _apply(state, "head", _layer_norm(state, "norm", image.mean(dim=(2, 3))))


def _recursive_block(state: State, name: str, tokens: Tensor, heads: int) -> Tensor:
    normed = _layer_norm(state, f"{name}.norm1", tokens)
    joined = _apply(state, f"{name}.attn.qkv", normed).unflatten(2, (3, heads, 8)).permute(2, 0, 3, 1, 4)
    attention = (joined[0] @ joined[1].transpose(2, 3) * 8**-0.5).softmax(dim=-1)
    z = _apply(state, f"{name}.attn.proj", (attention @ joined[2]).transpose(1, 2).flatten(2))
    tokens = state[f"{name}.coefficient1.bias"] * tokens + state[f"{name}.coefficient2.bias"] * z
    return _branch(state, name, tokens, "norm2", (3, 4))


def _branch(state: State, name: str, tokens: Tensor, norm: str, coefficients: tuple[int, int]) -> Tensor:
    hidden = F.gelu(_apply(state, f"{name}.mlp.fc1", _layer_norm(state, f"{name}.{norm}", tokens)))
    stay, change = (state[f"{name}.coefficient{number}.bias"] for number in coefficients)
    return stay * tokens + change * _apply(state, f"{name}.mlp.fc2", hidden)
