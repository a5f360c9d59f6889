"""The passes of an analysis over a stream of unlabelled images."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from vitslim.analysis.cka import MIN_SAMPLES, CkaAccumulator
from vitslim.analysis.linear_map import TOKENS_PER_CHANNEL, AdjacentMaps, LinearMap
from vitslim.analysis.recommend import recommend
from vitslim.analysis.replacement import ChangeMeter, StandIn, output_with_replaced, stand_ins_for
from vitslim.analysis.result import (
    AnalysisReport,
    JointReplacement,
    Kind,
    Measure,
    Replacement,
    Similarity,
    Table,
)
from vitslim.analysis.widths import drop_order, measure_blocks
from vitslim.arguments import checked
from vitslim.errors import ConfigError, DataError, VitslimWarning
from vitslim.models import DenseTrace, describe, trace
from vitslim.models.readout import reads_class_token_alone
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.trunk import is_converted

KINDS: tuple[Kind, ...] = ("identity", "linear")
# Mean error of CKA over 128 images, random 4-block ViT: 0.019 in batches of 4, 0.013 of 8, 0.008 of 32 or all at once.
STEADY_BATCH = 32
REPLACEMENT_IMAGES = 256  # the standard error of a mean KL is then about a sixteenth of its spread over images


@runtime_checkable
class ImageBatch(Protocol):
    """What the analysis reads of a batch; labels are neither needed nor looked at."""

    @property
    def images(self) -> Tensor:
        """Normalised images, shape (b, c, height, width)."""
        ...


@checked
def analyze(
    model: nn.Module,
    loader: InstanceOf[Iterable[ImageBatch]],
    *,
    images: int | None = None,
    replacement_images: int = REPLACEMENT_IMAGES,
    max_layers: int | None = None,
    max_kl: float | None = None,
    progress: ProgressCallback = silent,
) -> AnalysisReport:
    """Find what is redundant between the layers of a dense ViT, and which attention could be reused.

    One pass over the images streams CKA between all layers (of Z^MSA, A^[CLS] and block outputs) together with the best
    linear maps between adjacent attention outputs; its memory does not depend on the number of images. Two short passes
    over the first ``replacement_images`` then measure the change of the output when one layer's attention output is
    replaced, by Z_{l-1} and by that linear map, and when all recommended layers are replaced together. On the same
    images follow the importance of blocks, neurons and heads, and the order in which blocks can be dropped. The model
    is left as it was.

    Args:
        model: a dense timm model in eval mode, on the device to compute on.
        loader: batches with ``.images``, at least four each (a smaller last one is merged into the one before); it
            is read three times.
        images: stop after so many; default all.
        replacement_images: how many the output changes are measured on.
        max_layers: size of the recommended set; default half of the depth.
        max_kl: most that the recommended set's summed price may be, see ``recommend``.
        progress: called after every batch, stages ``analyze``, ``replace``, ``replace together``,
            ``widths`` and ``drop order`` (its stages).

    Raises:
        ConfigError: a converted model, training mode, a loader that can be read once only, batches of
            fewer than four images.
        DataError: no images.
        UnsupportedModelError: no adapter knows the model.

    Source: CKA of A^[CLS] and Z^MSA: SkipAt, arXiv 2301.02240, section 3; the rest is ours.
    """
    _check(model, loader, images, replacement_images)
    notes: list[str] = []
    found = _stream(model, _reporting("analyze", _batches(model, loader, images, notes), loader, images, progress))
    few = min(replacement_images, found.images)
    maps = found.maps.fit()
    measure: Measure = "kl" if getattr(model, "num_classes", 0) else "feature_change"
    batches = _reporting("replace", _batches(model, loader, few, []), loader, few, progress)
    replacement = _replace_each(model, batches, maps, measure)
    linear_r2 = [None if fitted is None else fitted.r2 for fitted in maps]
    z_cka = _table(found.z)
    advice = recommend(
        replacement,
        linear_r2,
        z_cka,
        max_layers=max_layers,
        max_kl=max_kl,
        reads_class_token=reads_class_token_alone(model),
    )
    if advice.layers:
        batches = _reporting("replace together", _batches(model, loader, few, []), loader, few, progress)
        together = _replace_together(model, batches, maps, measure, advice.layers)
        reason = f"{advice.reason} {_all_together(together)}"
        advice = advice.model_copy(update={"measured": together, "reason": reason})
    blocks = measure_blocks(model, _reporting("widths", _batches(model, loader, few, []), loader, few, progress))
    order = drop_order(
        model,
        lambda: _batches(model, loader, few, []),
        blocks.influence,
        measure,
        lambda done, total: progress(Progress("drop order", done, total)),
    )
    return AnalysisReport(
        model=_name(model),
        images=found.images,
        layers=[f"blocks.{layer}" for layer in range(len(maps))],
        cka=Similarity(z=z_cka, cls_attention=_table(found.cls_attention), block=_table(found.block)),
        linear_r2=linear_r2,
        linear_tokens=found.maps.tokens,
        output_measure=measure,
        replacement_images=few,
        replacement=replacement,
        recommended=advice,
        block_influence=blocks.influence,
        drop_order=order,
        mlp_importance=blocks.mlp_importance,
        heads_importance=blocks.heads_importance,
        notes=notes + _notes(found, maps, measure),
    )


@dataclass
class _Found:
    """The sums of the first pass."""

    z: CkaAccumulator
    cls_attention: CkaAccumulator
    block: CkaAccumulator
    maps: AdjacentMaps
    images: int = 0
    largest_batch: int = 0


def _check(model: nn.Module, loader: Iterable[ImageBatch], images: int | None, replacement_images: int) -> None:
    errors: list[str] = []
    if is_converted(model):
        errors.append("the model is converted already: analyze the dense model that it was made from")
    if model.training:
        errors.append("the model is in training mode, where dropout blurs every figure: call model.eval() first")
    if iter(loader) is loader:
        errors.append("the loader is a one-shot iterator, but is read three times: pass a Loader or a list")
    if images is not None and images < MIN_SAMPLES:
        errors.append(f"images={images}: the unbiased estimator of CKA needs at least {MIN_SAMPLES}")
    if replacement_images < 1:
        errors.append(f"replacement_images={replacement_images}: choose 1 or more")
    if errors:
        raise ConfigError("; ".join(errors))


def _stream(model: nn.Module, batches: Iterable[Tensor]) -> _Found:
    found: _Found | None = None
    for images in batches:
        dense = trace(model, images, attention=True)
        if not bool(torch.isfinite(dense.logits).all()):
            raise DataError(
                "the model's output is not finite on these images: look for NaN in the images or the weights, "
                "or overflow in half precision (run in float32 or bfloat16)"
            )
        layers = len(dense.z)
        if found is None:
            z, rows, outputs = (CkaAccumulator(layers) for _ in range(3))
            found = _Found(z, rows, outputs, AdjacentMaps(layers, dense.z[0].shape[-1]))
        found.z.update(dense.z)
        found.cls_attention.update(dense.class_attention)
        found.block.update(dense.block_outputs)
        found.maps.update(dense.z)
        found.images += len(images)
        found.largest_batch = max(found.largest_batch, len(images))
    if found is None:
        raise DataError(f"the loader gave no images; analyze needs at least {MIN_SAMPLES}, some hundred to be steady")
    return found


def _replace_each(
    model: nn.Module, batches: Iterable[Tensor], maps: list[LinearMap | None], measure: Measure
) -> list[Replacement]:
    meters: dict[tuple[int, Kind], ChangeMeter] = {
        (layer, kind): ChangeMeter(measure) for layer in range(1, len(maps)) for kind in KINDS
    }
    for images in batches:
        dense = trace(model, images)
        for (layer, kind), meter in meters.items():
            _measure(model, images, dense, meter, stand_ins_for([layer], kind, maps))
    return [
        Replacement(layer=layer, kind=kind, **meter.change().model_dump()) for (layer, kind), meter in meters.items()
    ]


def _replace_together(
    model: nn.Module, batches: Iterable[Tensor], maps: list[LinearMap | None], measure: Measure, layers: list[int]
) -> list[JointReplacement]:
    meters: dict[Kind, ChangeMeter] = {kind: ChangeMeter(measure) for kind in KINDS}
    for images in batches:
        dense = trace(model, images)
        for kind, meter in meters.items():
            _measure(model, images, dense, meter, stand_ins_for(layers, kind, maps))
    return [JointReplacement(kind=kind, **meter.change().model_dump()) for kind, meter in meters.items()]


def _measure(
    model: nn.Module, images: Tensor, dense: DenseTrace, meter: ChangeMeter, stand_ins: dict[int, StandIn]
) -> None:
    with torch.no_grad():
        meter.update(dense.logits, output_with_replaced(model, images, dense, stand_ins))


def _batches(model: nn.Module, loader: Iterable[ImageBatch], limit: int | None, notes: list[str]) -> Iterator[Tensor]:
    """Images where the model is, ``limit`` at most; a last batch too small for HSIC₁ joins the one before it."""
    like = next(model.parameters())
    held: Tensor | None = None
    rest: Tensor | None = None
    seen = 0
    for batch in loader:
        images = batch.images if limit is None else batch.images[: limit - seen]
        seen += len(images)
        if rest is not None:
            raise ConfigError(
                f"a batch of {len(rest)} images in the middle of the stream: the unbiased estimator of CKA needs at "
                f"least {MIN_SAMPLES} in each; raise the batch size (32 or more gives steady figures)"
            )
        images = images.to(device=like.device, dtype=like.dtype)
        if len(images) < MIN_SAMPLES:
            rest = images
        else:
            if held is not None:
                yield held
            held = images
        if seen == limit:
            break
    if rest is not None and held is not None:
        notes.append(f"The last {len(rest)} images joined the batch before them, being too few for one of their own.")
    last = [part for part in (held, rest) if part is not None]
    if last:
        yield torch.cat(last)


def _reporting(
    stage: str,
    batches: Iterable[Tensor],
    loader: Iterable[ImageBatch],
    limit: int | None,
    progress: ProgressCallback,
) -> Iterator[Tensor]:
    """The same batches; each is reported when the next one is asked for, that is when it is done."""
    counts = [count for count in (limit, getattr(loader, "num_images", None)) if count is not None]
    done = 0
    for images in batches:
        yield images
        done += len(images)
        progress(Progress(stage, done, min(counts, default=None)))


def _notes(found: _Found, maps: list[LinearMap | None], measure: Measure) -> list[str]:
    notes: list[str] = []
    width = found.maps.means.shape[1]
    if len(maps) > 1 and not found.maps.enough_tokens:
        few = (
            f"R² and the linear maps come from {found.maps.tokens} tokens for {width} channels and flatter: "
            f"pass images for at least {TOKENS_PER_CHANNEL * width} tokens."
        )
        warnings.warn(few, VitslimWarning, stacklevel=3)
        notes.append(few)
    if found.largest_batch < STEADY_BATCH:
        notes.append(
            f"CKA was accumulated over batches of at most {found.largest_batch} images; it is unbiased but noisy, "
            f"batches of {STEADY_BATCH} or more are steadier."
        )
    if ridged := [str(layer) for layer, fitted in enumerate(maps) if fitted is not None and fitted.ridge > 0]:
        notes.append(
            f"The attention output before block {', '.join(ridged)} does not fill its {width} channels: the normal "
            "equations are singular there and were solved with a ridge."
        )
    if measure == "feature_change":
        notes.append("The model has no classifier: changes are relative changes of its pooled features, not KL.")
    return notes


def _all_together(effects: list[JointReplacement]) -> str:
    parts: list[str] = []
    for effect in effects:
        stand_in = "identity reuse" if effect.kind == "identity" else "the linear maps"
        if effect.kl is not None and effect.top1_agreement is not None:
            parts.append(f"{effect.kl:.3g} nats and {effect.top1_agreement:.0%} of the top classes kept by {stand_in}")
        elif effect.size is not None:
            parts.append(f"{effect.size:.3g} of the features' length by {stand_in}")
    return f"Replaced together, before any training: {', '.join(parts) or 'no finite change'}."


def _name(model: nn.Module) -> str:
    base = describe(model)
    return type(model).__name__ if base is None else base.architecture.removeprefix(":")


def _table(accumulator: CkaAccumulator) -> Table:
    """The CKA table for JSON, which has no NaN: undefined entries are None."""
    rows = cast("list[list[float]]", accumulator.cka().tolist())
    return [[value if math.isfinite(value) else None for value in row] for row in rows]
