"""What the analysis found, as the plain data of ``analysis.json``."""

from typing import Literal

from pydantic import Field, model_validator

from vitslim.shapes import Result

Kind = Literal["identity", "linear"]
Measure = Literal["kl", "feature_change"]
Table = list[list[float | None]]


class Change(Result):
    """How far the model's output moves when something inside is replaced, means over images.

    A model with a classifier fills the first two fields, one without (``num_classes=0``) the third. None: not
    measured, or not finite.

    Attributes:
        kl: KL(dense ‖ replaced) of the class distributions, in nats.
        top1_agreement: share of images (0..1) that keep their top class.
        feature_change: ‖replaced - dense‖ / ‖dense‖ of the pooled features.
    """

    kl: float | None = None
    top1_agreement: float | None = None
    feature_change: float | None = None

    @property
    def size(self) -> float | None:
        """The change in the model's own measure: ``kl``, or ``feature_change`` without a classifier."""
        return self.feature_change if self.kl is None else self.kl


class Replacement(Change):
    """The change when one layer's attention output is Z_{l-1} itself, or a linear map of it."""

    layer: int
    kind: Kind


class JointReplacement(Change):
    """The change when all recommended layers are replaced together, each from the replaced one before it; untrained."""

    kind: Kind


class Similarity(Result):
    """CKA between all layer pairs, row and column l being layer l; None where a layer says the same of every image.

    Attributes:
        z: attention outputs Z^MSA, after the output projection and before the residual.
        cls_attention: A^[CLS], the class token's attention rows, all heads (without class token: the mean row).
        block: the tokens that leave each block.
    """

    z: Table
    cls_attention: Table
    block: Table


class Recommendation(Result):
    """Layers whose attention can be reused from the nearest lower layer that is still computed.

    Attributes:
        estimated_change: the summed price of the layers (see ``recommend``), in the report's measure.
        measured: the change with all of them replaced at once, before any training; empty if not measured.
    """

    layers: list[int]
    reason: str
    max_layers: int
    max_kl: float | None
    estimated_change: float
    measured: list[JointReplacement] = Field(default_factory=list[JointReplacement])


class AnalysisReport(Result):
    """Everything ``analyze`` found in one model; None stands where a figure is undefined.

    Attributes:
        images: how many were streamed for CKA and the linear maps.
        linear_r2: entry l is R² of the best linear map Z_{l-1} → Z_l over ``linear_tokens`` tokens; entry 0 is None.
        output_measure: what ``Change.size`` means for this model.
        replacement_images: how many were used for ``replacement`` and ``recommended.measured``.
        block_influence: for each block 1 minus the mean cosine between a token before and after it.
        drop_order: half of the blocks, in the order in which they can be dropped together.
        mlp_importance: for each block that of equal parts of its neurons, the highest first.
        heads_importance: for each block that of its heads (of groups that share keys and values), likewise.
        notes: what a reader must know to judge the figures.
    """

    model: str
    images: int
    layers: list[str]
    cka: Similarity
    linear_r2: list[float | None]
    linear_tokens: int
    output_measure: Measure
    replacement_images: int
    replacement: list[Replacement]
    recommended: Recommendation
    block_influence: list[float]
    drop_order: list[int]
    mlp_importance: list[list[float]]
    heads_importance: list[list[float]]
    notes: list[str]

    @model_validator(mode="after")
    def _sizes_agree(self) -> "AnalysisReport":
        size = len(self.layers)
        for name in Similarity.model_fields:
            if [len(row) for row in getattr(self.cka, name)] != [size] * size:
                raise ValueError(f"cka.{name} is not {size}×{size}, one row and column per layer")
        for name in ("linear_r2", "block_influence", "mlp_importance", "heads_importance"):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {size} layers")
        return self
