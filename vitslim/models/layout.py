"""Where the tokens of a vision transformer come from: prefix, grid."""

from dataclasses import dataclass

from torch import nn

from vitslim.errors import UnsupportedModelError
from vitslim.shapes import Count


@dataclass(frozen=True)
class TokenLayout:
    """How the n tokens of one image are laid out: ``prefix`` first, then the patches row by row.

    ``prefix`` counts class, distillation and register tokens; ``grid`` is (rows, columns) of patches.
    """

    prefix: int
    grid: tuple[Count, Count]

    @property
    def patches(self) -> Count:
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> Count:
        return self.prefix + self.patches


def token_layout(model: nn.Module) -> TokenLayout:
    """The layout at the model's own image size.

    Raises:
        UnsupportedModelError: the model has no patch grid.
    """
    embed = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no patch grid; vitslim takes isotropic ViTs only")
    return TokenLayout(prefix=int(getattr(model, "num_prefix_tokens", 0)), grid=(int(grid[0]), int(grid[1])))
