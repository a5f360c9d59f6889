"""A vision transformer of another package, with the adapter that makes vitslim take it."""

import torch
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models import register_model
from torch import Tensor, nn

import vitslim
from vitslim.models import BlockAdapter


class ToyBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)
        self.gains = nn.Parameter(torch.ones(2))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.gains[0] * self.attn(self.norm1(tokens))
        return tokens + self.gains[1] * self.mlp(self.norm2(tokens))


class ToyVit(nn.Module):
    global_pool = "token"
    num_prefix_tokens = 1

    def __init__(self, img_size: int = 32, num_classes: int = 10, width: int = 48, depth: int = 4) -> None:
        super().__init__()
        self.num_classes, self.embed_dim = num_classes, width
        self.patch_embed = PatchEmbed(img_size, 8, embed_dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(ToyBlock(width, 3) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        return self.norm(self.blocks(torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


@register_model
def toy_vit(pretrained: bool = False, **options: object) -> ToyVit:
    return ToyVit(**{name: value for name, value in options.items() if name in ("img_size", "num_classes", "depth")})


@vitslim.register_adapter(ToyVit, block=ToyBlock, attention=Attention)
class ToyAdapter(BlockAdapter):
    def attention_branch(self, block: nn.Module, z: Tensor) -> Tensor:
        return block.gains[0] * z

    def mlp_branch(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block.gains[1] * block.mlp(block.norm2(tokens))
