"""Whether an exported file computes what its model computes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.export.result import ParityCheck, ParityReport, Tolerance
from vitslim.runtime import Precision, Runner, TorchRunner, open_artifact

TOLERANCES: dict[Precision, Tolerance] = {
    # Two float32 backends differ in the order of their sums only: 4e-7 of the scale for DeiT-S with random weights
    # (torch 2.15 against onnxruntime 1.31), here fifty times that, for weights with outliers. A tanh for the exact
    # GELU moves the same model by 2.6e-5, a bias lost in one of its twelve blocks by 4e-2.
    "fp32": Tolerance(relative=2e-5, cosine=0.99999, top1_agreement=1.0, tie=2e-6),
    # float16 keeps 11 bits, 5e-4 per rounding; the same DeiT-S differs by 5e-4 of the scale, here twenty times that.
    "fp16": Tolerance(relative=1e-2, cosine=0.999, top1_agreement=0.98, tie=2e-3),
    # bfloat16 keeps 8 bits, eight times coarser; not measured, no exporter writes it yet.
    "bf16": Tolerance(relative=8e-2, cosine=0.99, top1_agreement=0.95, tie=1.6e-2),
}


def verify(
    model: nn.Module,
    artifact_path: str | Path,
    images: Float[Tensor, "n c h w"],
    *,
    batches: Sequence[int] = (1, 3),
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Run ``images`` through the model in float32 torch and through the file, at several batch sizes.

    More than one batch size, because a batch that got frozen, or mixed with another axis, shows at the second only.

    Args:
        model: the one the file was made from; stays as it is.
        artifact_path: the exported file.
        images: normalised as the model expects; real ones say more than noise. Few are repeated to fill a batch.
        batches: images per call; a file with a fixed batch is checked at that one.
        tolerance: ``None`` for the one that ``TOLERANCES`` gives the file's precision, with its reason.

    Raises:
        ConfigError: no image was given.
    """
    if len(images) == 0:
        raise ConfigError("verify needs at least one image; pass some")
    artifact = Path(artifact_path).name
    with TorchRunner(model, device="cpu") as torch_runner, open_artifact(artifact_path) as runner:
        expected = _in_batches(torch_runner, images, 8)
        limits = tolerance or TOLERANCES[runner.precision]
        classes = torch_runner.outputs[0].name == "logits"
        fixed = runner.inputs[0].batch
        checks = [
            _compare(artifact, runner.precision, size, expected, _in_batches(runner, images, size), limits, classes)
            for size in ([fixed] if fixed else dict.fromkeys(batches))
        ]
    notes = [f"the file takes batch {fixed} only; asked for {list(batches)}"] if fixed and [fixed] != [*batches] else []
    return ParityReport(artifact=artifact, passed=all(check.passed for check in checks), checks=checks, notes=notes)


def require_parity(report: ParityReport) -> None:
    """Turn a failed report into an error.

    Raises:
        CheckFailedError: with one line per check that failed and by how much.
    """
    if not report.passed:
        raise CheckFailedError("\n".join(report.failures()))


def _in_batches(runner: Runner, images: Tensor, size: int) -> Tensor:
    """Outputs for all ``images``; the last batch is filled up with the first images, whose copies are dropped."""
    count = len(images)
    rows = torch.arange(-(-count // size) * size) % count
    return torch.cat([runner.run(images[part]).cpu() for part in rows.split(size)])[:count]


def _compare(
    artifact: str, precision: Precision, batch: int, expected: Tensor, given: Tensor, limits: Tolerance, classes: bool
) -> ParityCheck:
    if given.shape != expected.shape:
        raise CheckFailedError(
            f"{artifact} gives {tuple(given.shape)} at batch {batch}, the model {tuple(expected.shape)}; "
            "was the file made from this model?"
        )
    finite = given.isfinite()
    difference = (given - expected)[finite].abs()
    scale = float(expected.abs().max())
    changed, ties = _changed_classes(expected, given, limits.tie * scale) if classes else (0, 0)
    check = ParityCheck(
        artifact=artifact,
        precision=precision,
        batch=batch,
        images=len(expected),
        max_abs=float(difference.max()) if len(difference) else 0.0,
        mean_abs=float(difference.mean()) if len(difference) else 0.0,
        cosine=_cosine(expected, given),
        top1_agreement=1 - changed / len(expected) if classes else None,
        ties=ties,
        not_finite=int((~finite).sum()),
        scale=scale,
        tolerance=limits.relative * scale,
        limits=limits,
        passed=False,
        failures=[],
    )
    failures = _failures(check)
    return check.model_copy(update={"passed": not failures, "failures": failures})


def _cosine(expected: Tensor, given: Tensor) -> float:
    # Two rows of zeros are alike; torch calls their cosine 0.
    both_zero = (expected == 0).all(dim=1) & (given == 0).all(dim=1)
    cosine = torch.cosine_similarity(expected.double(), given.double().nan_to_num(), dim=1)
    return float(torch.where(both_zero, 1.0, cosine).min())


def _changed_classes(expected: Tensor, given: Tensor, tie: float) -> tuple[int, int]:
    """How many images changed their best class, and how many of these were closer than ``tie`` before."""
    changed = expected.argmax(dim=1) != given.argmax(dim=1)
    if expected.shape[1] < 2:
        return 0, 0
    best, second = expected.topk(2, dim=1).values.unbind(dim=1)
    return int(changed.sum()), int((changed & (best - second < tie)).sum())


def _failures(check: ParityCheck) -> list[str]:
    limits = check.limits
    failures: list[str] = []
    if check.not_finite:
        failures.append(f"{check.not_finite} outputs are NaN or infinite")
    if check.max_abs > check.tolerance:
        failures.append(
            f"largest difference {check.max_abs:.3g} exceeds {check.tolerance:.3g} "
            f"({limits.relative:g} of the outputs' scale {check.scale:.3g})"
        )
    if check.cosine < limits.cosine:
        failures.append(f"cosine {check.cosine:.6f} is below {limits.cosine}")
    changed = 0 if check.top1_agreement is None else round((1 - check.top1_agreement) * check.images)
    if changed - check.ties > (1 - limits.top1_agreement) * check.images:
        failures.append(
            f"top-1 agreement {check.top1_agreement:.4f} is below {limits.top1_agreement}: "
            f"{changed} of {check.images} images changed class, {check.ties} of them ties"
        )
    return failures
