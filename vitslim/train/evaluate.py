"""How good a model is on held-out images, and how close to its teacher."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vitslim.data.batch import MAX_EXAMPLES, Batch, Loader
from vitslim.errors import CheckFailedError, ConfigError, DataError
from vitslim.models import preprocessing
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.shapes import NoneOrMore, Result
from vitslim.train.finite import weights_error
from vitslim.train.processes import ALONE, Processes
from vitslim.train.settings import TrainPrecision
from vitslim.trunk import at_plan_size

Share = Annotated[float, Field(ge=0, le=1)]

_SUMS: tuple[str, ...] = ("images", "labelled", "top1", "top5", "loss", "agreement", "kl", "broken")


class EvalResult(Result):
    """Shares and means over held-out images; None where labels or a teacher are missing."""

    images: NoneOrMore
    top1: Share | None  # share of images, 0..1, whose best class is the label
    top5: Share | None  # share whose label is among the best five classes, or among all if there are fewer
    loss: float | None  # mean cross-entropy to the labels
    agreement: Share | None  # share whose best class is the teacher's
    kl: float | None  # mean divergence of the class distribution from the teacher's, nats
    corrupt: int = 0  # images that could not be read and were skipped; they are not among ``images``
    examples: tuple[str, ...] = ()  # names of the first few of them


def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    teacher: nn.Module | None = None,
    precision: TrainPrecision = "fp32",
    processes: Processes = ALONE,
    progress: ProgressCallback = silent,
) -> EvalResult:
    """Measure a classifier on every image of a loader.

    Args:
        model: on the device where it is to run; its mode and gradients are left as they were.
        teacher: the model to be compared with, on the same device.
        precision: "bf16" runs both models under autocast.
        processes: those that measure together; each takes its share of the images and gets the whole result.

    Raises:
        CheckFailedError: scores that are NaN or infinite, of which no share or mean can be given.
        ConfigError: the two models do not have the same classes, or one does not take the loader's images.
        DataError: no image could be read, or the data has other classes than the model.
    """
    found = evaluate_all(
        {"model": model}, loader, teacher=teacher, precision=precision, processes=processes, progress=progress
    )
    return found["model"]


def evaluate_all(
    models: Mapping[str, nn.Module],
    loader: Loader,
    *,
    teacher: nn.Module | None = None,
    precision: TrainPrecision = "fp32",
    processes: Processes = ALONE,
    progress: ProgressCallback = silent,
) -> dict[str, EvalResult]:
    """Measure several classifiers in one pass; see ``evaluate``.

    Returns:
        A result for every name, and one called ``teacher`` where there is one, which runs once for all of them.
    """
    device = next(next(iter(models.values())).parameters()).device
    measured = {**models} if teacher is None else {**models, "teacher": teacher}
    sums = torch.zeros(len(measured), len(_SUMS), dtype=torch.float64, device=device)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    share = loader.share(processes.rank, processes.count)
    with _evaluating(*measured.values()), torch.no_grad(), autocast:
        for batch in share:
            batch = batch.to(device)
            reference = None if teacher is None else _scores("teacher", teacher, batch, loader)
            for row, (name, model) in zip(sums, models.items(), strict=False):
                logits = _scores(name, model, batch, loader)
                _check_classes(logits, loader)
                row += _count(logits, reference, batch).to(sums)
            if reference is not None:
                sums[-1] += _count(reference, None, batch).to(sums)
            done = int(sums[0, 0]) * processes.count  # the others are about as far
            progress(Progress("evaluate", min(done, loader.num_images), loader.num_images))
    totals = processes.add_up(sums)
    unreadable = tuple(dict.fromkeys(name for names in processes.gather(share.unreadable) for name in names))
    for row, (name, model) in zip(totals, measured.items(), strict=True):
        _check_finite(name, model, row)
    return {
        name: _result(row, loader, teacher is not None and name != "teacher", unreadable)
        for name, row in zip(measured, totals, strict=True)
    }


def _scores(name: str, model: nn.Module, batch: Batch, loader: Loader) -> Float[Tensor, "b c"]:
    try:
        return model(at_plan_size(model, batch.images)).float()
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        given, stated = loader.image_shape, preprocessing(model)
        wanted = (stated.channels, *stated.image_size)
        if given == wanted:
            raise
        raise ConfigError(
            f"the {name} takes images of {'x'.join(map(str, wanted))} (channels, height, width), the data is prepared "
            f"as {'x'.join(map(str, given))}; name a {name} of that size, or open it so: open_model(..., "
            f"img_size={given[1] if given[1] == given[2] else given[1:]})"
        ) from error


def _check_finite(name: str, model: nn.Module, sums: Tensor) -> None:
    broken, images = int(sums[_SUMS.index("broken")]), int(sums[0])
    if not broken:
        return
    reason = weights_error(model, name) or (
        "all of its weights are finite, so the numbers grow too large on the way; measure in full precision, and look "
        "at the mean and std of the images"
    )
    raise CheckFailedError(f"{name}: the class scores of {broken} of {images} images are NaN or infinite; {reason}")


def _check_classes(logits: Float[Tensor, "b c"], loader: Loader) -> None:
    if loader.num_classes not in (None, logits.shape[1]):
        raise DataError(
            f"{loader.origin}: given {loader.num_classes} classes, model has {logits.shape[1]} outputs; give data of "
            "the model's classes, or leave the labels out (data.labels: ignore, labels='ignore')"
        )


def _count(logits: Float[Tensor, "b c"], teacher_logits: Float[Tensor, "b k"] | None, batch: Batch) -> Tensor:
    """The sums over one batch, in the order of `_SUMS`."""
    sums = logits.new_zeros(len(_SUMS))
    sums[0] = len(logits)
    sums[7] = (~logits.isfinite().all(dim=1)).sum()
    if batch.labels is not None:
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        sums[1], sums[2], sums[3] = len(logits), best[:, 0].sum(), best.sum()
        sums[4] = F.cross_entropy(logits, batch.labels, reduction="sum")
    if teacher_logits is not None:
        if teacher_logits.shape != logits.shape:
            raise ConfigError(
                f"the model has {logits.shape[1]} outputs and the teacher {teacher_logits.shape[1]}; "
                "they can be compared only on the same classes"
            )
        sums[5] = (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).sum()
        sums[6] = F.kl_div(logits.log_softmax(1), teacher_logits.log_softmax(1), reduction="sum", log_target=True)
    return sums


def _result(sums: Tensor, loader: Loader, has_teacher: bool, unreadable: tuple[str, ...]) -> EvalResult:
    found: dict[str, float] = dict(zip(_SUMS, sums.tolist(), strict=True))
    if not found["images"]:
        raise DataError(f"{loader.origin}: no image could be read, so there is nothing to measure")

    def mean(name: str, over: str, *, known: bool = True) -> float | None:
        return found[name] / found[over] if known and found[over] else None

    return EvalResult(
        images=int(found["images"]),
        top1=mean("top1", "labelled"),
        top5=mean("top5", "labelled"),
        loss=mean("loss", "labelled"),
        agreement=mean("agreement", "images", known=has_teacher),
        kl=mean("kl", "images", known=has_teacher),
        corrupt=len(unreadable),
        examples=unreadable[:MAX_EXAMPLES],
    )


@contextmanager
def _evaluating(*models: nn.Module | None) -> Generator[None]:
    """Put models into evaluation mode, afterwards back into the mode of each of their modules."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    for model in models:
        if model is not None:
            model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
