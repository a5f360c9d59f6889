"""Linear maps that stand for branches or whole blocks: x ← x + W x + b, one W for prefix rows and one for patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.plans import Cost, Place
from vitslim.trunk import Regression, Site


class LinearStandIn(nn.Module):
    """The two maps; zero at first, so that what they stand for is left out until they are fitted.

    Args:
        width: embedding dimension d.
        prefix: class, distillation and register tokens; without any there is one map.
    """

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.prefix_map = nn.Linear(width, width) if prefix else None
        self.patch_map = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        patches = self.patch_map(tokens[:, self.prefix :])
        if self.prefix_map is None:
            return patches
        return torch.cat([self.prefix_map(tokens[:, : self.prefix]), patches], dim=1)

    def regressions(self, tokens: Float[Tensor, "b n d"], targets: Float[Tensor, "b n d"]) -> list[Regression]:
        """The maps to be solved for, to give ``targets`` for ``tokens``."""
        rows = [(self.prefix_map, slice(None, self.prefix)), (self.patch_map, slice(self.prefix, None))]
        return [
            Regression(layer, tokens[:, part].flatten(0, 1), targets[:, part].flatten(0, 1))
            for layer, part in rows
            if layer is not None
        ]


def stand_in_at(site: Site) -> LinearStandIn:
    """The maps of a step, zero."""
    with torch.device(site.device):
        maps = LinearStandIn(site.width, site.adapter.prefix).to(site.dtype)
    if site.device.type != "meta":
        for parameter in maps.parameters():
            nn.init.zeros_(parameter)
    return maps


def stand_in_cost(at: Place, tokens: int) -> Cost:
    """Of the maps of a step, for so many tokens."""
    width, prefix = at.plan.channels, at.plan.model.prefix
    return Cost(
        macs=tokens * width * width,
        parameters=(2 if prefix else 1) * (width * width + width),
        activations=max(prefix, tokens - prefix) * width,
    )
