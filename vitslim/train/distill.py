"""Training a student end to end: to a teacher's outputs, to labels, or to both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, field_validator
from timm.data.mixup import Mixup
from torch import Tensor, nn

from vitslim.data.batch import Batch, Loader, warn_of_shared_images
from vitslim.errors import ConfigError
from vitslim.models import token_layout
from vitslim.progress import ProgressCallback, silent
from vitslim.train.early_tokens import early_token_errors, early_tokens
from vitslim.train.evaluate import evaluate
from vitslim.train.finite import weights_error
from vitslim.train.freezing import only_trained
from vitslim.train.loop import Stage, train
from vitslim.train.losses import TokenDistance, ce_loss, kd_loss, matching_depths, step_loss, token_loss
from vitslim.train.optim import optimizer_errors
from vitslim.train.processes import Processes
from vitslim.train.settings import LoopConfig, TrainResult, resolve_precision
from vitslim.trunk import at_plan_size, is_converted, tokens_at_grid, trunk_of

MAX_WEIGHT = 1e6  # of a part of the loss


class DistillConfig(LoopConfig):
    """The weights of the parts of the loss, with how to train."""

    ce_weight: float = Field(default=0.0, ge=0, le=MAX_WEIGHT)  # weight of the cross-entropy to labels
    kd_weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)  # weight of the divergence from the teacher's classes
    token_weight: float = Field(
        default=0.0, ge=0, le=MAX_WEIGHT
    )  # weight of the distance to the teacher's final tokens
    step_output_weight: float = Field(
        default=0.0, ge=0, le=MAX_WEIGHT
    )  # weight of the distance to the teacher's block outputs
    # Softens both class distributions. Its square is a factor of the loss; below, float32 knows no loss but 0 and NaN.
    temperature: float = Field(default=1.0, ge=0.05, le=1000)
    token_distance: TokenDistance = "mse"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # share of a label spread over all classes
    mixup: float = Field(default=0.0, ge=0, le=100)  # alpha of the blending of image pairs; 0: none
    cutmix: float = Field(default=0.0, ge=0, le=100)  # alpha of the pasting of rectangles; 0: none
    mix_prob: float = Field(default=1.0, ge=0, le=1)  # share of the batches that are mixed
    early_tokens: float = Field(
        default=0.0, ge=0, lt=1
    )  # share of the steps, from the first, with tokens chosen as early in training (Evo-ViT: anew at every block)

    @field_validator("mixup", "cutmix")
    @classmethod
    def _can_be_drawn(cls, alpha: float) -> float:
        if 0 < alpha < 1e-3:  # towards 0 the beta distribution's numbers run out, and NaN comes out
            raise ValueError("wanted 0 for none, or at least 0.001")
        return alpha

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part of the loss."""
        return {
            "ce": self.ce_weight,
            "kd": self.kd_weight,
            "token": self.token_weight,
            "step_output": self.step_output_weight,
        }

    @property
    def imitates(self) -> bool:
        """Whether any part of the loss reads the teacher."""
        return any(weight for name, weight in self.weights.items() if name != "ce")


FROM_SCRATCH = DistillConfig(ce_weight=1.0, kd_weight=0.0)


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    train_loader: Loader,
    config: DistillConfig,
    *,
    val_loader: Loader | None = None,
    out_dir: str | Path | None = None,
    resume: bool = False,
    facts: Mapping[str, str] | None = None,
    progress: ProgressCallback = silent,
    pause: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a student in place, where it lies; it ends in evaluation mode.

    Several processes, as torchrun starts them, train it together, each on batches of its own.

    Args:
        student: a timm classifier, converted or dense.
        teacher: a timm classifier on the same device, left as it is; None trains on labels alone.
        val_loader: held-out images, measured after every pass and at the end.
        out_dir: takes log.jsonl, tensorboard/ and state.safetensors.
        resume: continue the run whose state lies in `out_dir`, with as many processes; without a state the run starts
            from the beginning.
        facts: what a resumed run must have the same beside settings and images, by name; kept in the state.
        pause: asked after every step; when it says so, the run writes its state and ends as "paused".

    Raises:
        ConfigError: the parts of the loss do not fit the models or the data, or a model holds NaN; nothing has been
            changed then.
        CheckFailedError: the loss or the weights became NaN or infinite, or another process of the run ended.
        CheckpointError: the state to resume is of another run, or of another number of processes.
    """
    check_distillation(student, teacher, train_loader, config)
    if val_loader is not None:
        warn_of_shared_images(train_loader, val_loader)
    objective = _Distillation(student, teacher, config, _mixup(student, config))
    with only_trained(student, _trained_end_to_end(student)), early_tokens(student, config.early_tokens) as adapt:
        stage = Stage(
            "distill" if teacher is not None else "train",
            evaluate=_evaluation(val_loader, teacher, config),
            new_parameters=_new_parameters(student),
            adapt=adapt,
            out_dir=None if out_dir is None else Path(out_dir),
            resume=resume,
            facts=facts or {},
            progress=progress,
            pause=pause,
        )
        return train(objective, train_loader, config, stage)


class _Distillation(nn.Module):
    """Student and losses as one module, so that one wrapper serves distributed and compiled training."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, config: DistillConfig, mixup: Mixup | None):
        super().__init__()
        self.student = student
        # In a tuple the teacher is no submodule: it is neither trained, saved nor switched to training mode.
        self._teacher = () if teacher is None else (teacher.eval(),)
        self._config = config
        self._mixup = mixup

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if self._mixup is None:
            return batch.images, batch.labels
        even = len(batch) // 2 * 2  # mixup pairs the images; unreadable ones can leave an odd number
        labels = torch.zeros_like(batch.images[:, 0, 0, 0]).long() if batch.labels is None else batch.labels
        return self._mixup(batch.images[:even].clone(), labels[:even])

    def forward(self, images: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        config = self._config
        wants_steps = config.step_output_weight > 0
        tokens, steps = _features(self.student, images, wants_steps)
        logits = self.student.forward_head(tokens)  # pyright: ignore[reportCallIssue]
        parts: dict[str, Tensor] = {}
        if config.ce_weight and targets is not None:
            smoothing = 0.0 if self._mixup is not None else config.label_smoothing
            parts["ce"] = config.ce_weight * ce_loss(logits, targets, smoothing)
        for teacher in self._teacher:
            with torch.no_grad():
                teacher_tokens, teacher_steps = _features(teacher, images, wants_steps)
                teacher_logits = teacher.forward_head(teacher_tokens)  # pyright: ignore[reportCallIssue]
            if config.kd_weight:
                parts["kd"] = config.kd_weight * kd_loss(logits, teacher_logits, config.temperature)
            if config.token_weight:
                wanted = _at_grid_of(self.student, teacher, teacher_tokens)
                parts["token"] = config.token_weight * token_loss(tokens, wanted, config.token_distance)
            if wants_steps:
                depths = matching_depths(len(steps), len(teacher_steps))
                matched = [_at_grid_of(self.student, teacher, teacher_steps[depth]) for depth in depths]
                parts["step_output"] = config.step_output_weight * step_loss(steps, matched)
        return parts


def _at_grid_of(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """A teacher's tokens at the student's patches, where the student's plan has another image size."""
    if not is_converted(student) or (plan := trunk_of(student).model_plan).image_size == plan.model.image_size:
        return tokens
    grid = token_layout(teacher).grid
    return tokens_at_grid(tokens, plan.model.prefix, (int(grid[0]), int(grid[1])), plan.grid)


def _features(model: nn.Module, images: Tensor, wants_steps: bool) -> tuple[Tensor, list[Tensor]]:
    """Final tokens, and the tokens after every step where they are wanted."""
    images = at_plan_size(model, images)
    if not wants_steps:
        return model.forward_features(images), []  # pyright: ignore[reportCallIssue]
    tokens, outputs = model.forward_intermediates(  # pyright: ignore[reportCallIssue]
        images, output_fmt="NLC", return_prefix_tokens=True
    )
    # timm returns (patch tokens, prefix tokens), or patch tokens alone for a model without prefix
    return tokens, [torch.cat((output[1], output[0]), 1) if isinstance(output, tuple) else output for output in outputs]


def _mixup(student: nn.Module, config: DistillConfig) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        label_smoothing=config.label_smoothing,
        num_classes=student.num_classes,  # pyright: ignore[reportArgumentType]
    )


def _trained_end_to_end(student: nn.Module) -> list[nn.Parameter]:
    """All parameters but those that only a layer-local loss can fit, such as the choice of keys in Sparsifiner."""
    apart = trunk_of(student).parameters_fitted_apart() if is_converted(student) else {}
    frozen = {id(parameter) for parameter in apart.values()}
    return [parameter for parameter in student.parameters() if id(parameter) not in frozen]


def _new_parameters(student: nn.Module) -> list[nn.Parameter]:
    return list(trunk_of(student).new_parameters().values()) if is_converted(student) else []


def _evaluation(
    loader: Loader | None, teacher: nn.Module | None, config: DistillConfig
) -> Callable[[nn.Module, Processes], Mapping[str, float]] | None:
    if loader is None:
        return None

    def measure(model: nn.Module, processes: Processes) -> dict[str, float]:
        precision = resolve_precision(config.precision, next(model.parameters()).device)
        found = evaluate(model, loader, teacher=teacher, precision=precision, processes=processes)
        figures = found.model_dump(exclude={"examples"}, exclude_none=True)
        return {name: float(value) for name, value in figures.items()}

    return measure


def check_distillation(student: nn.Module, teacher: nn.Module | None, loader: Loader, config: DistillConfig) -> None:
    """Refuse what cannot work before anything is changed; the models may lie on the meta device.

    Raises:
        ConfigError: all errors of names, losses, models and data in one message.
    """
    errors = training_errors(config) + _teacher_errors(teacher, config)
    errors += [
        error
        for role, model in (("student", student), ("teacher", teacher))
        if model is not None and (error := weights_error(model, role)) is not None
    ]
    errors += _data_errors(student, loader, config)
    errors += early_token_errors(student, config.early_tokens)
    if errors:
        raise ConfigError("; ".join(errors))
    models = [model for model in (student, teacher) if model is not None]
    outputs = [_probe(model, student, loader, config.step_output_weight > 0) for model in models]
    if len(outputs) == 2:
        _check_outputs(outputs[0], outputs[1], config)


def training_errors(config: LoopConfig) -> list[str]:
    """What is wrong with the settings of a training whatever its models and images are; empty where nothing is."""
    errors = optimizer_errors(config)
    if isinstance(config, DistillConfig) and not any(config.weights.values()):
        errors.append(
            "every part of the loss has weight 0; raise one of ce_weight, kd_weight, token_weight, step_output_weight"
        )
    return errors


def _teacher_errors(teacher: nn.Module | None, config: DistillConfig) -> list[str]:
    from_teacher = [f"{name}_weight={weight:g}" for name, weight in config.weights.items() if weight and name != "ce"]
    if teacher is None and from_teacher:
        return [f"{', '.join(from_teacher)} needs a teacher; pass one, or set these to 0 with ce_weight=1"]
    return []


def _data_errors(student: nn.Module, loader: Loader, config: DistillConfig) -> list[str]:
    outputs = getattr(student, "num_classes", 0)
    errors: list[str] = []
    if config.ce_weight and not loader.labelled:
        errors.append(
            f"ce_weight={config.ce_weight:g} needs labels and {loader.origin} has none; set ce_weight=0 or give labels"
        )
    if config.ce_weight and loader.num_classes is not None and loader.num_classes != outputs:
        errors.append(
            f"{loader.origin} has {loader.num_classes} classes, the model {outputs} outputs; give data of its classes, "
            f"a model with as many outputs (--num-classes {loader.num_classes}, num_classes=), or set ce_weight=0"
        )
    if (config.ce_weight or config.kd_weight) and not outputs:
        errors.append(
            "the model has no classifier; give it one (num_classes) or train with token_weight and step_output_weight"
        )
    if (config.mixup or config.cutmix) and loader.batch_size % 2:
        errors.append(f"mixup and cutmix pair the images of a batch; batch_size={loader.batch_size} must be even")
    return errors


@dataclass(frozen=True)
class _Outputs:
    """Shapes of what a model gives for one image."""

    logits: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


def _probe(model: nn.Module, student: nn.Module, loader: Loader, wants_steps: bool) -> _Outputs:
    """Run one blank image of the loader's size through a model; its tokens as they are compared with the student's."""
    parameter = next(model.parameters())
    blank = parameter.new_zeros(1, *loader.image_shape)
    training = model.training
    try:
        with torch.no_grad():
            tokens, steps = _features(model.eval(), blank, wants_steps)
            logits: Tensor = model.forward_head(tokens)  # pyright: ignore[reportCallIssue]
            tokens, *steps = (_at_grid_of(student, model, one) for one in (tokens, *steps))
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"{type(model).__name__} does not take images of {'x'.join(map(str, loader.image_shape))} ({error}); "
            "open the data with this model's preprocessing, or the model with this img_size"
        ) from error
    finally:
        model.train(training)
    return _Outputs(tuple(logits.shape), tuple(tokens.shape), tuple(tuple(step.shape) for step in steps))


def _check_outputs(student: _Outputs, teacher: _Outputs, config: DistillConfig) -> None:
    if student.logits != teacher.logits:
        raise ConfigError(
            f"the student has {student.logits[-1]} outputs, the teacher {teacher.logits[-1]}; "
            "a teacher must have the student's classes"
        )
    if config.token_weight and student.tokens != teacher.tokens:
        raise ConfigError(
            f"token_weight={config.token_weight:g} compares tokens one by one, but the student ends with (tokens, "
            f"width) {student.tokens[1:]} and the teacher with {teacher.tokens[1:]}; set token_weight=0"
        )
    if config.step_output_weight and {*student.steps} != {*teacher.steps}:
        raise ConfigError(
            f"step_output_weight={config.step_output_weight:g} compares tokens one by one, but the student gives "
            f"(tokens, width) {student.steps[0][1:]} per step and the teacher {teacher.steps[0][1:]}; "
            "set step_output_weight=0"
        )
