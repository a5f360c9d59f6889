"""Whether a teacher is any good on the images that it is to teach with, measured before anything learns from it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vitslim.data import DataConfig, open_data
from vitslim.errors import VitslimWarning
from vitslim.models import Preprocessing, preprocessing
from vitslim.models.image_input import setting
from vitslim.pipeline.images import labels_for
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.shapes import Result

IMAGES = 256  # held-out images, spread over the classes
_FEWEST = 32  # with fewer images anything can be chance
_CROPS = (0.875, 1.0)
_TRIED = ("mean", "std", "crop_pct")
_SURE = 3.0  # standard errors by which one way of preparing must be better than another
_WORTH = 0.02  # and by what share of the images


class TeacherCheck(Result):
    """What was found of a teacher.

    Attributes:
        accuracy: share of the images on which it is right as they are prepared, 0..1; None without labels.
        tried: the preparation that is used, then the others that were tried.
        warning: one paragraph, where the teacher is poor or another preparation is clearly better.
    """

    accuracy: float | None
    tried: tuple[Preprocessing, ...]
    warning: str | None


class _Answers(NamedTuple):
    best: Tensor  # (n,) the teacher's best class
    labels: Tensor | None

    @property
    def right(self) -> Tensor | None:
        return None if self.labels is None else self.best == self.labels


def warn_of_poor_teacher(teacher: nn.Module, student: nn.Module, data: str | Path | DataConfig, **options: Any) -> None:
    """``check_teacher``, with its finding as a warning."""
    found = check_teacher(teacher, student, data, **options)
    if found is not None and found.warning is not None:
        warnings.warn(found.warning, VitslimWarning, stacklevel=2)


def check_teacher(
    teacher: nn.Module,
    student: nn.Module,
    data: str | Path | DataConfig,
    *,
    labels: Literal["auto", "ignore"] = "auto",
    batch_size: int = 64,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> TeacherCheck | None:
    """Measure a teacher on a few held-out images, as the student gets them.

    Where nobody stated how the images are prepared, or where the teacher is poor, other usual ways are tried too: the
    normalisations of ImageNet, of 0.5 and none, and the crops 0.875 and 1.

    Args:
        teacher: on the device where it should run.
        student: whose preparation the images get.
        data: a data set with a held-out split.
        labels: ``ignore`` where they are not those of the teacher's classes.

    Returns:
        ``None`` where nothing can be said: fewer than 32 images, a teacher without classes, or of another input.
    """
    known, own = preprocessing(student), preprocessing(teacher)
    classes = int(getattr(teacher, "num_classes", 0))
    if not classes or (known.image_size, known.channels) != (own.image_size, own.channels):
        return None
    asked = labels_for(teacher) if labels == "auto" else {"labels": "ignore"}
    asked |= {"batch_size": batch_size, "seed": seed}
    # Frozen, and so hashable, which pyright does not see.
    tried: dict[Preprocessing, _Answers] = {}
    tried[known] = _ask(teacher, data, known, asked, progress)
    used = tried[known]
    if len(used.best) < _FEWEST:
        return None
    is_poor = used.right is not None and _is_poor(used.right, classes)
    if is_poor or known.assumed:
        for wanted in _normalisations(known, own):
            tried[wanted] = _ask(teacher, data, wanted, asked, progress)
        best = _clearly_best(tried, known)
        for crop in _CROPS if is_poor or "crop_pct" in known.assumed else ():
            wanted = best.model_copy(update={"crop_pct": crop})
            if wanted not in tried:
                tried[wanted] = _ask(teacher, data, wanted, asked, progress)
    accuracy = None if used.right is None else float(used.right.float().mean())
    return TeacherCheck(accuracy=accuracy, tried=tuple(tried), warning=_warning(known, tried, classes, is_poor))


@torch.no_grad()
def _ask(
    teacher: nn.Module,
    data: str | Path | DataConfig,
    wanted: Preprocessing,
    asked: dict[str, Any],
    progress: ProgressCallback,
) -> _Answers:
    config = data if isinstance(data, DataConfig) else DataConfig(source=str(data))
    # What the user stated is tried otherwise too.
    config = config.model_copy(update={"mean": wanted.mean, "std": wanted.std, "crop_pct": wanted.crop_pct})
    loader = open_data(config, split="val", preprocessing=wanted, limit=IMAGES, **asked)
    device = next(teacher.parameters()).device
    was_training = teacher.training
    teacher.eval()
    best, labels = torch.empty(0, dtype=torch.int64), list[Tensor]()
    for batch in loader:
        best = torch.cat([best, teacher(batch.images.to(device)).argmax(1).cpu()])
        labels += [] if batch.labels is None else [batch.labels]
        progress(Progress("teacher check", len(best), loader.num_images))
    teacher.train(was_training)
    return _Answers(best, torch.cat(labels) if labels else None)


def _normalisations(known: Preprocessing, own: Preprocessing) -> list[Preprocessing]:
    """Other usual ways to normalise, the teacher's own first."""
    usual = [(own.mean, own.std), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ((0.5,), (0.5,)), ((0.0,), (1.0,))]

    def per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
        return values if len(values) == known.channels else (sum(values) / len(values),) * known.channels

    found = [known.model_copy(update={"mean": per_channel(mean), "std": per_channel(std)}) for mean, std in usual]
    return [wanted for index, wanted in enumerate(found) if wanted not in (known, *found[:index])]


def _is_poor(right: Tensor, classes: int) -> bool:
    """Whether a teacher surely does less than half of what lies between chance and perfect.

    Source: Wilson 1927, interval of a share; its upper end at two standard errors.
    """
    n, share, z2 = len(right), float(right.float().mean()), 4.0
    upper = (share + z2 / (2 * n) + math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))) / (1 + z2 / n)
    return upper < (1 + 1 / classes) / 2


def _is_clearly_better(one: Tensor, other: Tensor) -> bool:
    """Whether one is right more often than the other on the same images, beyond chance.

    Source: McNemar 1947; only the images on which the two differ count.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost > max(_SURE * math.sqrt(gained + lost), _WORTH * len(one))


def _clearly_best(tried: dict[Preprocessing, _Answers], known: Preprocessing) -> Preprocessing:
    best = known
    for wanted, answers in tried.items():
        held, right = tried[best].right, answers.right
        if held is not None and right is not None and len(held) == len(right) and _is_clearly_better(right, held):
            best = wanted
    return best


def _warning(known: Preprocessing, tried: dict[Preprocessing, _Answers], classes: int, is_poor: bool) -> str | None:
    used = tried[known]
    if used.right is None or used.labels is None:
        return _warning_without_labels(known, tried)
    share, n = float(used.right.float().mean()), len(used.right)
    said = [f"the teacher is right on {share:.1%} of {n} held-out images ({classes} classes, chance {1 / classes:.1%})"]
    best = _clearly_best(tried, known)
    right = used.labels == tried[best].best
    if best != known:
        given = {name: getattr(best, name) for name in _TRIED}
        changed = {name: value for name, value in given.items() if value != getattr(known, name)}
        said.append(f"on {float(right.float().mean()):.1%} of them with other preparation: {_how_to_state(changed)}")
    if is_poor and _is_poor(right, classes):
        said.append(_likely_causes(known, tried[best], classes))
    return "; ".join(said) if len(said) > 1 else None


def _likely_causes(known: Preprocessing, answers: _Answers, classes: int) -> str:
    assert answers.labels is not None
    named = _share_up_to_names(answers.best, answers.labels, classes)
    order = f" (if each class is renamed, {named:.1%} are right, which speaks for this)"
    is_order = len(answers.best) >= 4 * classes and named > 0.5
    now = ", ".join(f"{name} {setting(getattr(known, name))}" for name in _TRIED)
    return (
        "a student learns its teacher's mistakes. Likely causes: classes in another order than the teacher's outputs "
        f"(data.class_map){order if is_order else ''}; weights of another model or another number of heads; images "
        f"prepared otherwise than in its training (now {now}; of the usual ways none mends it; --set data.mean=... "
        "states another). Where the task is that hard, nothing is wrong"
    )


def _warning_without_labels(known: Preprocessing, tried: dict[Preprocessing, _Answers]) -> str | None:
    """Without labels nobody knows which way is right, only whether it matters."""
    if not {"mean", "std"} & {*known.assumed}:
        return None
    used = tried[known]
    agreement, other = min(
        ((float((answers.best == used.best).float().mean()), wanted) for wanted, answers in tried.items()),
        key=lambda row: row[0],
    )
    if agreement >= 0.9:
        return None
    return (
        f"nobody stated how the teacher's images were prepared, and it matters: its best class is the same on only "
        f"{agreement:.1%} of {len(used.best)} images with mean {setting(known.mean)}, std {setting(known.std)} "
        f"(assumed) and with mean {setting(other.mean)}, std {setting(other.std)}. State those of its training: "
        f"{_how_to_state({'mean': other.mean, 'std': other.std})}"
    )


def _how_to_state(values: dict[str, Any]) -> str:
    typed = {name: setting(value) for name, value in values.items()}
    return (
        f"{' '.join(f'--set data.{name}={value}' for name, value in typed.items())} "
        f"(DataConfig({', '.join(f'{name}={value}' for name, value in typed.items())}))"
    )


def _share_up_to_names(best: Tensor, labels: Tensor, classes: int) -> float:
    """The share of images that would be right if every class that is answered had its most frequent label's name."""
    counts = torch.bincount(best * classes + labels, minlength=classes * classes).view(classes, classes)
    return float(counts.max(dim=1).values.sum() / len(best))
