"""The lines at the start of a run: what will be done, and which blocks its methods take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vitslim.cli.screen import duration, say

if TYPE_CHECKING:
    from vitslim.pipeline.choices import Choice
    from vitslim.pipeline.outline import Announce, Budget, ImageOutline, Outline

_OFF = {"crop_scale": "[1,1]", "auto_augment": "null"}  # others are off at 0


def announcer(section: str) -> Announce:
    """What tells the news of a run as they come.

    Args:
        section: where ``--set`` finds the augmentation: ``data.augment`` or ``augment``.
    """
    from vitslim.pipeline.outline import Outline

    def announce(news: Outline | list[Choice]) -> None:
        if isinstance(news, Outline):
            say_outline(news, section)
        else:
            say_choices(news)

    return announce


def say_outline(outline: Outline, section: str) -> None:
    """Model, images, augmentation, methods and budget; nothing where no images are read."""
    if outline.images is None:
        return
    teacher = f", teacher {outline.teacher}" if outline.teacher else ""
    say(f"model     {outline.model}{teacher}")
    say(f"images    {_images(outline.images)}")
    say(f"input     {_preparation(outline.images.preprocessing)}")
    if outline.budget:
        say(f"augment   {_augmentation(outline.images.augment, section)}")
    if outline.planning:
        say(f"planner   the plan is found first: {'; '.join(outline.planning)} ({duration(outline.planning_seconds)})")
    if outline.methods:
        say(f"methods   {', '.join(outline.methods)}")
    if outline.budget:
        say(f"budget    {'; '.join(map(_length, outline.budget))}")


def say_choices(choices: Iterable[Choice]) -> None:
    """For every method that leaves a choice to an analysis: what that recommends, what is used, why."""
    from vitslim.report import choice_words

    for one in choices:
        say(f"{one.method}.{one.option}: {choice_words(one)}")


def _images(images: ImageOutline) -> str:
    counts = [f"{images.held_out} held out"]
    if images.train is not None:
        counts.insert(0, f"{images.train} to train on")
    if images.classes is not None:
        counts.append(f"{images.classes} classes")
    return f"{images.source}: {', '.join(counts)}"


def _preparation(wants: Any) -> str:
    height, width = wants.image_size
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (wants.mean, wants.std))
    return f"{height} × {width} px, {wants.interpolation}, crop {wants.crop_pct:g}, mean {mean}, std {std}"


def _augmentation(changes: dict[str, Any], section: str) -> str:
    if not changes:
        return "none"
    on = ", ".join(f"{name} {_value(value)}" for name, value in changes.items())
    off = " ".join(f"--set {section}.{name}={_OFF.get(name, '0')}" for name in changes)
    mirrored = "; a mirror image must be of the same class" if "hflip" in changes or "vflip" in changes else ""
    return f"{on} (off: {off}{mirrored})"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g}..{value[1]:g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _length(budget: Budget) -> str:
    if budget.steps is not None:
        return f"{budget.stage} {budget.steps} {'step' if budget.steps == 1 else 'steps'} of {budget.batch_size} images"
    passes = "pass" if budget.epochs == 1 else "passes"
    return f"{budget.stage} {budget.epochs:g} {passes} over the images, {budget.batch_size} at a time"
