"""What a plan has to know of the model under it: sizes and counts, no tensors."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from vitslim.shapes import Result

Part = Literal["attention", "attention_add", "mlp"]
"""What a step uses of a block: the attention itself, what scales or norms its output (LayerScale), the MLP branch."""


class LinearShape(Result):
    """One linear map of a block.

    Attributes:
        follows: what its outputs (or, for an output projection, its inputs) are proportional to.
        reads_weight: the block's module reads the matrix instead of calling the map.
    """

    part: Part
    outputs: int
    inputs: int
    bias: bool
    follows: Literal["heads", "groups", "hidden"] | None
    is_projection: bool = False
    reads_weight: bool = False

    @property
    def products(self) -> int:
        """Multiply-accumulates for one token."""
        return self.outputs * self.inputs


class BlockShape(Result):
    """One dense block.

    Attributes:
        heads: attention heads; ``groups`` of them share keys and values (as many as heads without sharing).
        head_width: e.
        hidden: neurons of the MLP.
        linears: by their path within the block.
        others: parameters that belong to no linear map, by the part that uses them.
        others_per_group: of the attention's ``others``, those that go with each group of heads.
        others_per_neuron: the same for the MLP and its neurons.
        others_per_channel: parameters that each channel of the stream has among the others, by part; empty where no
            adapter can make the stream narrower.
        attention_dropout: rate at which attention weights are dropped in training, 0..1.
        relative_positions: each head has a table of biases for the relative places of patches.
    """

    heads: int
    groups: int
    head_width: int
    hidden: int
    linears: dict[str, LinearShape]
    others: dict[Part, int]
    others_per_group: int
    others_per_neuron: int
    attention_dropout: float
    relative_positions: bool
    others_per_channel: dict[Part, int] = Field(default_factory=dict[Part, int])

    def narrowed(self, heads: int, hidden: int) -> BlockShape:
        """The block with fewer heads and neurons."""
        if (heads, hidden) == (self.heads, self.hidden):
            return self
        groups = self.groups * heads // self.heads
        counts = {"heads": (heads, self.heads), "groups": (groups, self.groups), "hidden": (hidden, self.hidden)}

        def narrow(linear: LinearShape) -> LinearShape:
            if linear.follows is None:
                return linear
            new, old = counts[linear.follows]
            side = "inputs" if linear.is_projection else "outputs"
            return linear.model_copy(update={side: getattr(linear, side) * new // old})

        others = dict(self.others)
        others["attention"] -= (self.groups - groups) * self.others_per_group
        others["mlp"] -= (self.hidden - hidden) * self.others_per_neuron
        return self.model_copy(
            update={
                "heads": heads,
                "groups": groups,
                "hidden": hidden,
                "linears": {path: narrow(linear) for path, linear in self.linears.items()},
                "others": others,
            }
        )

    def with_stream(self, width: int, dense: int) -> BlockShape:
        """The block on a stream of so many channels in place of ``dense``."""

        def narrow(linear: LinearShape) -> LinearShape:
            return linear.model_copy(update={"outputs": width} if linear.is_projection else {"inputs": width})

        gone = {part: (dense - width) * count for part, count in self.others_per_channel.items()}
        return self.model_copy(
            update={
                "linears": {path: narrow(linear) for path, linear in self.linears.items()},
                "others": {part: count - gone.get(part, 0) for part, count in self.others.items()},
            }
        )

    def parameters(self, part: Part) -> int:
        """Parameters of one part, relative position tables not counted."""
        own = (linear for linear in self.linears.values() if linear.part == part)
        return self.others[part] + sum(linear.products + linear.bias * linear.outputs for linear in own)


class ModelShape(Result):
    """A dense model: what its steps start from and what surrounds them.

    Attributes:
        family: as ``vitslim list`` shows it.
        width: embedding dimension d.
        prefix: class, distillation and register tokens.
        image_size: (height, width) in pixels of the model as it was opened.
        patch: pixels of a patch, (height, width).
        pools: how the classifier reads the tokens, as timm's ``global_pool`` names it.
        two_heads: one for the class token and one for the distillation token.
        positions_per_block: parameters of mixed rotary positions for each block, 0 where there are none; a block that
            runs again has no further table.
        own_bias: the attention adds a bias that the block itself holds, so that sorted tokens need its operands.
        embed_products: multiply-accumulates of the patch embedding per patch.
        head_products: of everything behind the blocks; ``head_products_per_token`` for each token it reads.
        outside_parameters: outside the blocks, tables of positions not counted.
        positions_per_patch: parameters of absolute positions per patch.
        shared_relative_heads: heads of a table of relative positions that all blocks share.
    """

    family: str
    width: int
    prefix: int
    has_class_token: bool
    reads_class_token_alone: bool
    pools: str
    two_heads: bool
    image_size: tuple[int, int]
    patch: tuple[int, int]
    channels: int
    positions_per_block: int
    own_bias: bool
    embed_products: int
    head_products: int
    head_products_per_token: int
    outside_parameters: int
    positions_per_patch: int
    shared_relative_heads: int
    blocks: tuple[BlockShape, ...]

    @cached_property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def row_score(self) -> Literal["class", "mean_query"]:
        """Whose attention row ranks the patches: the class token's, or without one that of the mean patch query."""
        return "class" if self.has_class_token else "mean_query"

    def with_stream(self, width: int) -> ModelShape:
        """The model with so many channels between the blocks; what surrounds them stays as wide as it is."""
        blocks = tuple(block.with_stream(width, self.width) for block in self.blocks)
        return self.model_copy(update={"width": width, "blocks": blocks})

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches at an image size in pixels."""
        return image_size[0] // self.patch[0], image_size[1] // self.patch[1]


def vit_shape(*, width: int, depth: int, heads: int, image_size: tuple[int, int], patch: int) -> ModelShape:
    """The shape of timm's plain VisionTransformer with a class token, ten classes and MLPs four times the width."""
    hidden, e = 4 * width, width // heads
    linears = {
        "attn.qkv": LinearShape(part="attention", outputs=3 * width, inputs=width, bias=True, follows="groups"),
        "attn.proj": LinearShape(
            part="attention", outputs=width, inputs=width, bias=True, follows="heads", is_projection=True
        ),
        "mlp.fc1": LinearShape(part="mlp", outputs=hidden, inputs=width, bias=True, follows="hidden"),
        "mlp.fc2": LinearShape(
            part="mlp", outputs=width, inputs=hidden, bias=True, follows="hidden", is_projection=True
        ),
    }
    block = BlockShape(
        heads=heads,
        groups=heads,
        head_width=e,
        hidden=hidden,
        linears=linears,
        others={"attention": 2 * width, "attention_add": 0, "mlp": 2 * width},
        others_per_group=0,
        others_per_neuron=0,
        attention_dropout=0.0,
        relative_positions=False,
        others_per_channel={"attention": 2, "attention_add": 0, "mlp": 2},
    )
    embed = 3 * patch * patch * width
    return ModelShape(
        family="VisionTransformer",
        width=width,
        prefix=1,
        has_class_token=True,
        reads_class_token_alone=True,
        pools="token",
        two_heads=False,
        image_size=image_size,
        patch=(patch, patch),
        channels=3,
        positions_per_block=0,
        own_bias=False,
        embed_products=embed,
        head_products=10 * width,
        head_products_per_token=0,
        # patch embedding, class token and its position, final norm, classifier
        outside_parameters=embed + width + 2 * width + 2 * width + 10 * width + 10,
        positions_per_patch=width,
        shared_relative_heads=0,
        blocks=(block,) * depth,
    )
