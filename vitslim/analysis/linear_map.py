"""The best linear map from each layer's attention output to the next one's, streamed.

Per layer only the mean, the scatter matrix and the cross scatter with its successor are kept, in float64; the map and
its R² follow in closed form. Both describe the tokens that were streamed: with many more tokens than channels that is
also how the map does on others; with few it flatters (``enough_tokens``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import ConfigError

# Below this share of the largest eigenvalue a direction holds nothing but the rounding of float32 features,
# whose variance is (6e-8)² = 4e-15 of the signal's at best and some hundred times that after a few layers.
_SINGULAR = 1e-12
_RIDGE = 1e-9  # of the mean eigenvalue: far below what R² is quoted to, far above the rounding of float64

TOKENS_PER_CHANNEL = 4  # chance alone gives R² of about channels / tokens: at four tokens per channel a quarter


@dataclass(frozen=True)
class LinearMap:
    """``target ≈ source @ weight + bias``, the least-squares fit over the streamed tokens.

    Attributes:
        r2: 1 - residual / total variance, both summed over channels; None if the target never varies.
        ridge: what was added to the diagonal of the scatter matrix, 0 unless that was singular.
    """

    weight: Float[Tensor, "d d"]
    bias: Float[Tensor, " d"]
    r2: float | None
    ridge: float

    def __call__(self, source: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Predict the next layer's attention output from this one's, in the source's precision."""
        return source @ self.weight.to(source) + self.bias.to(source)


class AdjacentMaps:
    """Least-squares maps Z_{l-1} → Z_l of all layers from a stream of minibatches."""

    def __init__(self, layers: int, width: int) -> None:
        self.tokens = 0
        self.means = torch.zeros(layers, width, dtype=torch.float64)
        self.scatter = torch.zeros(layers, width, width, dtype=torch.float64)
        self.cross = torch.zeros(max(layers - 1, 0), width, width, dtype=torch.float64)

    @property
    def enough_tokens(self) -> bool:
        """Whether R² can be believed: at least four tokens per channel were seen."""
        return self.tokens >= TOKENS_PER_CHANNEL * self.means.shape[1]

    def update(self, z: Sequence[Float[Tensor, "b n d"]]) -> None:
        """Add one minibatch: the attention outputs of all layers, for the same tokens.

        Means and scatters of old and new are merged (Chan et al. 1979), which loses no digits to large means.

        Raises:
            ConfigError: another number of layers, or of channels, than announced.
        """
        layers, width = self.means.shape
        if len(z) != layers or any(layer.shape[-1] != width for layer in z):
            got = [layer.shape[-1] for layer in z]
            raise ConfigError(f"attention outputs of {got} channels given, {layers} layers of {width} announced")
        self._settle_on(z[0].device)
        count = z[0].shape[0] * z[0].shape[1]
        weight = self.tokens * count / (self.tokens + count)
        former: tuple[Tensor, Tensor] | None = None
        for layer, values in enumerate(z):
            tokens = values.detach().reshape(-1, width).to(self.means)
            mean = tokens.mean(dim=0)
            tokens = tokens - mean
            shift = mean - self.means[layer]
            self.scatter[layer].addmm_(tokens.T, tokens).addr_(shift, shift, alpha=weight)
            if former is not None:
                former_tokens, former_shift = former
                self.cross[layer - 1].addmm_(former_tokens.T, tokens).addr_(former_shift, shift, alpha=weight)
            former = tokens, shift
            self.means[layer] += shift * (count / (self.tokens + count))
        self.tokens += count

    def fit(self) -> list[LinearMap | None]:
        """Per layer the map from the layer before it; None for the first, which has none.

        Raises:
            ConfigError: nothing was streamed.
        """
        if self.tokens == 0:
            raise ConfigError("no tokens were streamed: call update with at least one minibatch before fit")
        return [None, *(self._fit_one(layer) for layer in range(1, len(self.means)))]

    def _fit_one(self, layer: int) -> LinearMap:
        source, target, cross = self.scatter[layer - 1], self.scatter[layer], self.cross[layer - 1]
        eigenvalues, vectors = torch.linalg.eigh(source)
        ridge = _ridge_for(eigenvalues)
        # W = (XᵀX + λI)⁻¹ XᵀY  with X, Y centred, λ = 0 unless XᵀX is singular
        weight = (vectors / (eigenvalues + ridge)) @ (vectors.T @ cross)
        total = target.trace()
        # ‖Y - XW‖² = ‖Y‖² - 2 tr(Wᵀ XᵀY) + tr(Wᵀ XᵀX W)
        residual = total - 2 * (weight * cross).sum() + (weight * (source @ weight)).sum()
        varies = bool(total > _SINGULAR**2 * self.tokens * self.means[layer].square().sum())
        return LinearMap(
            weight=weight,
            bias=self.means[layer] - self.means[layer - 1] @ weight,
            r2=float(1 - residual / total) if varies else None,
            ridge=ridge,
        )

    def _settle_on(self, device: torch.device) -> None:
        # Sums live where the features are, save on devices without float64 (Apple's).
        device = torch.device("cpu") if device.type == "mps" else device
        if self.means.device != device:
            self.means, self.scatter, self.cross = (sums.to(device) for sums in (self.means, self.scatter, self.cross))


def _ridge_for(eigenvalues: Float[Tensor, " d"]) -> float:
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest > _SINGULAR * largest:
        return 0.0
    # A source that never varies has no scale of its own: any ridge then gives the map 0, and the bias does the rest.
    return _RIDGE * float(eigenvalues.mean()) if largest > 0 else 1.0
