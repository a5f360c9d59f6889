"""Linear centred kernel alignment (CKA) between layers, streamed over minibatches.

Letters of the paper and ours: K, L are Gram matrices (``gram``), n is the number of samples of one minibatch
(``samples``), HSIC₁ is the unbiased estimator of Song et al. 2012 that Nguyen et al. accumulate.

Source: Kornblith et al. 2019, arXiv 1905.00414, section 3; Nguyen et al. 2021, arXiv 2010.15327, equations 2 to 4.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import ConfigError

MIN_SAMPLES = 4  # HSIC₁ divides by n - 3

# Features that vary by less than this share of their own length are constant up to float32 rounding.
_ROUNDING = 1e-6


class CkaAccumulator:
    """CKA of all layer pairs from a stream of minibatches, in memory that does not grow with the stream.

    What is kept is one float64 ``layers x layers`` table of HSIC₁, the mean over the minibatches weighted by their
    samples. With equal minibatches that is Nguyen's plain mean; a short last one counts for less, as its variance
    (about 1 / samples) demands. Each minibatch's HSIC₁ is unbiased, so the table does not depend on the batch size
    except through noise.
    """

    def __init__(self, layers: int) -> None:
        self.hsic = torch.zeros(layers, layers, dtype=torch.float64)
        self.samples = 0

    def update(self, features: Sequence[Float[Tensor, "b ..."]]) -> None:
        """Add one minibatch: a tensor per layer for the same images; axes after the first are flattened.

        Raises:
            ConfigError: another number of layers than announced, or fewer than four images.
        """
        if len(features) != len(self.hsic):
            raise ConfigError(f"{len(features)} layers given, {len(self.hsic)} announced: pass every layer every time")
        batch = features[0].shape[0]
        grams = torch.stack([gram(layer.reshape(batch, -1)) for layer in features])
        self.samples += batch
        self.hsic += (hsic_of_all_pairs(grams) - self.hsic) * (batch / self.samples)

    def cka(self) -> Float[Tensor, "layers layers"]:
        """The table so far; NaN where a layer says the same of every image, which leaves CKA undefined."""
        return _normalised(self.hsic)


def linear_cka(first: Float[Tensor, "s p"], second: Float[Tensor, "s q"]) -> float:
    """How alike two layers see the same samples: 1 up to rotation and scale, about 0 unrelated.

    The estimator is unbiased, so unrelated features scatter around 0, a little below it too; nothing is clipped.
    NaN if one of the two is constant.

    Args:
        first: features of one layer, one row per sample.
        second: features of another layer for the same samples, same order.

    Raises:
        ConfigError: fewer than four samples, or not the same samples.

    Source: Kornblith et al. 2019, arXiv 1905.00414, section 3; estimator of Nguyen et al. 2021.
    """
    if len(first) != len(second):
        raise ConfigError(f"{len(first)} and {len(second)} samples: CKA compares two views of the same samples")
    return float(_normalised(hsic_of_all_pairs(torch.stack([gram(first), gram(second)])))[0, 1])


def gram(features: Float[Tensor, "s p"]) -> Float[Tensor, "s s"]:
    """Inner products between samples in float64 on the CPU, of features centred over the samples.

    HSIC₁ ignores any shift that all samples share. Taking the mean away before the product keeps the digits that
    float32 would otherwise spend on it.
    """
    values = features.detach()
    values = values if values.dtype == torch.float64 else values.float()
    centred = values - values.mean(dim=0, keepdim=True)
    if centred.norm() <= _ROUNDING * values.norm():
        centred = torch.zeros_like(centred)
    return (centred @ centred.T).cpu().double()


def hsic_of_all_pairs(grams: Float[Tensor, "layers s s"]) -> Float[Tensor, "layers layers"]:
    """HSIC₁ between every two of a stack of Gram matrices of the same samples.

    Raises:
        ConfigError: fewer than four samples.

    Source: Nguyen et al. 2021, arXiv 2010.15327, equation 3.
    """
    samples = grams.shape[-1]
    if samples < MIN_SAMPLES:
        raise ConfigError(
            f"{samples} images in a batch: the unbiased estimator of CKA needs at least {MIN_SAMPLES}; "
            "raise the batch size (32 or more gives steady figures)"
        )
    off_diagonal = grams * (1 - torch.eye(samples, dtype=grams.dtype))
    flat = off_diagonal.flatten(1)
    row_sums = off_diagonal.sum(dim=2)
    totals = row_sums.sum(dim=1)
    # HSIC₁ = 1/(n(n-3)) [ tr(K̃L̃) + (1ᵀK̃1)(1ᵀL̃1) / ((n-1)(n-2)) - 2/(n-2) 1ᵀK̃L̃1 ],  K̃ = K with a zero diagonal
    products = flat @ flat.T
    products = products + torch.outer(totals, totals) / ((samples - 1) * (samples - 2))
    products = products - (row_sums @ row_sums.T) * (2 / (samples - 2))
    return products / (samples * (samples - 3))


def _normalised(hsic: Float[Tensor, "layers layers"]) -> Float[Tensor, "layers layers"]:
    # CKA = HSIC(K,L) / sqrt(HSIC(K,K) HSIC(L,L)). HSIC₁(K,K) is a squared length: zero for constant features only.
    lengths = hsic.diagonal().sqrt()
    lengths = torch.where(lengths > 0, lengths, torch.nan)
    return hsic / torch.outer(lengths, lengths)
