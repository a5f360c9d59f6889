"""Whether an exported file computes what its model computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.models import preprocessing
from vitslim.runtime import Precision, Runner, TorchRunner
from vitslim.targets.input_format import as_given_to, format_of
from vitslim.targets.onnx.free_sizes import any_size, probe_sizes
from vitslim.targets.parity.choices import Choices, OtherChoicesError
from vitslim.targets.parity.distance import Distance, distance
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.parity.result import ParityCheck, ParityReport
from vitslim.targets.parity.tolerances import TOLERANCES, Tolerance
from vitslim.trunk import is_converted, trunk_of

AS_WRITTEN = "as written"
ROUNDED = "rounded"

ChoicesOf = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""Runs images: the first output, and the indices of each choice on the way, in their order."""

Form = tuple[str, AbstractContextManager[Runner], AbstractContextManager[ChoicesOf] | None]
"""One way in which a file can be run, what opens it, and what opens it so that it tells its choices."""


def compare(
    model: nn.Module,
    artifact: str,
    forms: Iterator[Form],
    guarantee: Guarantee,
    images: Float[Tensor, "n c h w"],
    batches: Sequence[int],
    tolerance: Tolerance | None,
    leaves_sizes_free: bool,
) -> ParityReport:
    """Run ``images`` through the model in float32 torch and through every form of a file; see ``Target.verify``.

    More than one batch size, because a batch that got frozen, or mixed with another axis, shows at the second only. A
    file with free height and width is also run at a second size.
    """
    if len(images) == 0:
        raise ConfigError("verify needs at least one image; pass some")
    checks: list[ParityCheck] = []
    notes: dict[str, None] = dict.fromkeys(guarantee.notes)
    for form, opened, telling in forms:
        with opened as runner, ExitStack() as stack:
            tell = None if telling is None else lru_cache(1)(partial(stack.enter_context, telling))
            notes |= dict.fromkeys(_notes(form, runner, batches))
            taking, sizes = _sizes(model, runner, images, leaves_sizes_free)
            with TorchRunner(taking, device="cpu") as reference:
                for sized in sizes:
                    checks += _checks(
                        reference, runner, tell, (artifact, form), sized, batches, guarantee, tolerance, model
                    )
    notes |= dict.fromkeys(_flip_note(check) for check in checks if check.is_flipped_choice)
    notes |= dict.fromkeys(_choice_note(check) for check in checks if check.chosen_otherwise and check.passed)
    return ParityReport(passed=all(check.passed for check in checks), checks=checks, notes=list(notes))


def _checks(
    reference: Runner,
    runner: Runner,
    tell: Callable[[], ChoicesOf] | None,
    what: tuple[str, str],
    images: Tensor,
    batches: Sequence[int],
    guarantee: Guarantee,
    tolerance: Tolerance | None,
    model: nn.Module,
) -> list[ParityCheck]:
    given, images = as_given_to(format_of(runner.metadata), images, preprocessing(model))
    expected = _in_batches(reference.run, images, 8)
    kept = guarantee.precision or runner.precision
    about = _About(
        artifact=what[0],
        form=what[1],
        backend=runner.backend,
        precision=kept,
        image_size=(images.shape[2], images.shape[3]),
        limits=tolerance or TOLERANCES[kept],
        classes=reference.outputs[0].name == "logits",
        chooses=is_converted(model) and trunk_of(model).chooses,
        broken=guarantee.broken,
    )
    fixed = runner.inputs[0].batch
    checks: list[ParityCheck] = []
    for size in [fixed] if fixed else dict.fromkeys(batches):
        outputs = _in_batches(runner.run, given, size)
        check = _compare(about, size, expected, outputs)
        if (check.exceeding or not check.passed) and about.chooses and tell is not None:
            try:
                found = _on_its_choices(reference, tell(), images, given, size)
                if (found.told - outputs).abs().max() <= check.tolerance:
                    check = _compare(replace(about, chooses=False), size, found.expected, outputs, found)
            except OtherChoicesError:
                pass  # nothing is known but the outputs
            except CheckFailedError as error:
                check = _compare(
                    replace(about, chooses=False, broken=(*about.broken, str(error))), size, expected, outputs
                )
        checks.append(check)
    return checks


@dataclass(frozen=True)
class _OnItsChoices:
    """What a model gives with the choices of a file.

    Args:
        told: outputs of the file that tells its choices; ``expected`` those of the model with the same ones.
        differs, excess: see ``Choices``.
    """

    told: Tensor
    expected: Tensor
    differs: Tensor
    excess: Tensor


def _on_its_choices(reference: Runner, tell: ChoicesOf, images: Tensor, given: Tensor, size: int) -> _OnItsChoices:
    """Run images through the file and, with its choices, through the model."""
    found: list[tuple[Tensor, ...]] = []
    for part in _rows(len(images), size):
        told, imposed = tell(given[part])
        with Choices(imposed) as choices:
            expected = reference.run(images[part])
        choices.require_all_taken()
        if choices.differs is None or choices.excess is None:
            raise OtherChoicesError("neither the file nor the model makes a choice")
        found.append((told, expected, choices.differs, choices.excess))
    return _OnItsChoices(*(torch.cat(one)[: len(images)] for one in zip(*found, strict=True)))


def _sizes(model: nn.Module, runner: Runner, images: Tensor, leaves_sizes_free: bool) -> tuple[nn.Module, list[Tensor]]:
    """The images at every size to compare at, their own and another where the file leaves it free; what takes them."""
    if not leaves_sizes_free or runner.inputs[0].shape[1:].count(None) < 2:
        return model, [images]
    other = torch.nn.functional.interpolate(images, probe_sizes(model)[0], mode="bilinear", antialias=True)
    return any_size(model), [images, other]


def _notes(form: str, runner: Runner, batches: Sequence[int]) -> list[str]:
    fixed = runner.inputs[0].batch
    notes = [f"the file takes batch {fixed} only; asked for {list(batches)}"] if fixed and [fixed] != [*batches] else []
    if form == ROUNDED and runner.precision == "bf16":
        notes.append(
            "ONNX Runtime computes no bfloat16 on a CPU: the file was run operator by operator in float32, each result "
            "rounded to bfloat16; on a GPU it has not been run"
        )
    elif form == ROUNDED:
        notes.append(
            "ONNX Runtime computes float16 in float32 on a CPU: the file was also run with each result rounded to "
            "float16, as a GPU has it, where values beyond 65,504 are infinite; on a GPU it has not been run"
        )
    return notes


def _flip_note(check: ParityCheck) -> str:
    exceed = "image exceeds" if check.images == 1 else "images exceeds" if check.exceeding == 1 else "images exceed"
    same = "" if check.top1_agreement is None else f"top-1 {100 * check.top1_agreement:.0f} %, "
    return (
        f"{check.artifact}: {check.exceeding} of {check.images} {exceed}; probably a flipped choice; "
        f"{same}cosine {check.cosine:.6f}"
    )


def _choice_note(check: ParityCheck) -> str:
    return (
        f"{check.artifact}: {check.chosen_otherwise} of {check.images} images chose other tokens or keys than torch, "
        "of candidates that rounding does not tell apart; they were compared on the file's choices"
    )


def _in_batches(run: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Outputs for all ``images``."""
    return torch.cat([run(images[part]).cpu() for part in _rows(len(images), size)])[: len(images)]


def _rows(count: int, size: int) -> Sequence[Tensor]:
    """The images of each batch; the last is filled up with the first images, whose copies are to be dropped."""
    return (torch.arange(-(-count // size) * size) % count).split(size)


@dataclass(frozen=True)
class _About:
    """What one comparison is about, and what it is compared with."""

    artifact: str
    form: str
    backend: str
    precision: Precision
    image_size: tuple[int, int]
    limits: Tolerance
    classes: bool
    chooses: bool
    broken: tuple[str, ...] = ()


def _compare(
    about: _About, batch: int, expected: Tensor, given: Tensor, on_choices: _OnItsChoices | None = None
) -> ParityCheck:
    if given.shape != expected.shape:
        raise CheckFailedError(
            f"the file gives {tuple(given.shape)} at batch {batch}, the model {tuple(expected.shape)}; "
            "was the file made from this model?"
        )
    found = distance(expected, given, about.limits, classes=about.classes, chooses=about.chooses)
    check = ParityCheck(
        artifact=about.artifact,
        form=about.form,
        backend=about.backend,
        precision=about.precision,
        batch=batch,
        image_size=about.image_size,
        images=len(expected),
        max_abs=found.max_abs,
        mean_abs=found.mean_abs,
        cosine=found.cosine,
        top1_agreement=1 - found.changed / len(expected) if about.classes else None,
        ties=found.ties,
        not_finite=found.not_finite,
        exceeding=found.exceeding,
        is_flipped_choice=found.is_flipped_choice,
        chosen_otherwise=0 if on_choices is None else int(on_choices.differs.sum()),
        scale=found.scale,
        tolerance=about.limits.relative * found.scale,
        limits=about.limits,
        passed=False,
        failures=[],
    )
    # Beside NaN nothing else is a distance.
    failures = [*about.broken, *(_reference_failures(found, len(expected)) or _failures(check))]
    # Two scores that rounding moves by up to its limit, one up and one down, change places from twice that apart.
    explained = 2 * about.limits.relative
    if on_choices is not None and (worst := float(on_choices.excess.max())) > explained:
        failures.append(
            f"for {check.chosen_otherwise} of {check.images} images tokens or keys were chosen otherwise; the model's "
            f"scores speak against some by {worst:.3g} of the largest, of which rounding explains {explained:g}"
        )
    return check.model_copy(update={"passed": not failures, "failures": failures})


def _reference_failures(found: Distance, images: int) -> list[str]:
    if not found.reference_not_finite:
        return []
    return [f"the model itself gives NaN or infinity for {found.reference_not_finite} of {images} images"]


def _failures(check: ParityCheck) -> list[str]:
    limits = check.limits
    failures: list[str] = []
    if check.not_finite:
        failures.append(f"{check.not_finite} outputs are NaN or infinite")
    if check.max_abs > check.tolerance and not check.is_flipped_choice:
        failures.append(
            f"largest difference {check.max_abs:.3g} exceeds {check.tolerance:.3g} "
            f"({limits.relative:g} of the outputs' scale {check.scale:.3g}); "
            f"{check.exceeding} of {check.images} images are outside"
        )
    if check.cosine < limits.cosine and not check.is_flipped_choice:
        failures.append(f"cosine {check.cosine:.6f} is below {limits.cosine}")
    changed = 0 if check.top1_agreement is None else round((1 - check.top1_agreement) * check.images)
    if changed - check.ties > (1 - limits.top1_agreement) * check.images:
        failures.append(
            f"top-1 agreement {check.top1_agreement:.4f} is below {limits.top1_agreement}: "
            f"{changed} of {check.images} images changed class, {check.ties} of them ties"
        )
    return failures
