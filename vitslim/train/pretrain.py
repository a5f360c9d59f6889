"""Training a small ViT from scratch: how the built-in teacher is made."""

from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from vitslim import files
from vitslim.data.augment import AugmentConfig
from vitslim.data.open import open_data
from vitslim.data.randomness import seeded
from vitslim.data.spec import DataConfig
from vitslim.errors import ConfigError
from vitslim.models import create_model, init_from_scratch_, preprocessing, set_preprocessing_
from vitslim.progress import ProgressCallback, silent
from vitslim.shapes import Config, Result
from vitslim.train.distill import DistillConfig, distill
from vitslim.train.evaluate import EvalResult, evaluate
from vitslim.train.processes import refuse_several_processes
from vitslim.train.settings import TrainResult

WEIGHTS_FILE = "model.safetensors"
RESULT_FILE = "pretrain.json"


class Phase(Config):
    """One part of a pretraining: an image size with how to train at it."""

    image_size: int = Field(default=64, ge=8, le=4096)  # pixels; small images come first, they are cheap
    batch_size: int = Field(default=128, ge=1)
    augment: AugmentConfig | None = None
    train: DistillConfig = DistillConfig(ce_weight=1.0, kd_weight=0.0)


class PretrainConfig(Config):
    """The whole recipe; the defaults are a small ViT on the built-in images."""

    model: str = "builtin"  # name of a timm model, or the built-in one
    data: DataConfig = DataConfig(source="fractals")
    phases: tuple[Phase, ...] = Field(default=(Phase(),), min_length=1)
    scaled_start: bool = True  # start values for small models (see `init_from_scratch_`) instead of timm's
    seed: int = Field(default=0, ge=0, lt=2**63)  # of the first weights


class PretrainResult(Result):
    """What came out: the recipe, what each phase did, the quality of the weights as they were written."""

    config: dict[str, Any]
    phases: list[TrainResult]
    held_out: EvalResult
    seconds: float
    weights: str


def pretrain(
    config: PretrainConfig, out_dir: str | Path, *, resume: bool = False, progress: ProgressCallback = silent
) -> PretrainResult:
    """Train from scratch on labels, phase after phase; write the weights in float16.

    Args:
        out_dir: takes model.safetensors, pretrain.json and a folder of logs and state per phase.
        resume: continue where an earlier call was cut off.

    Raises:
        ConfigError: the images have no classes, the model does not take an image size, or several processes were
            started: the phases are made by one.
        CheckFailedError: the loss became NaN or infinite.
    """
    refuse_several_processes("pretraining in phases")
    folder = Path(out_dir)
    files.write_json(folder / "pretrain_config.json", config.model_dump(mode="json"))
    classes = _classes(config)
    with seeded(config.seed):
        model = create_model(config.model, pretrained=False, img_size=config.phases[0].image_size, num_classes=classes)
    if config.scaled_start:
        init_from_scratch_(model, config.seed)
    results = [
        _train_phase(model, phase, config.data, folder / f"phase_{number}", resume, progress)
        for number, phase in enumerate(config.phases, start=1)
    ]
    _round_to_half_(model)
    held_out = evaluate(model, _open(model, config.data, config.phases[-1], "val"), progress=progress)
    halves = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    files.write_tensors(folder / WEIGHTS_FILE, halves, {"format": "pt"})
    result = PretrainResult(
        config=config.model_dump(mode="json"),
        phases=results,
        held_out=held_out,
        seconds=sum(phase.seconds for phase in results),
        weights=WEIGHTS_FILE,
    )
    files.write_json(folder / RESULT_FILE, result.model_dump(mode="json"))
    return result


def _train_phase(
    model: nn.Module, phase: Phase, data: DataConfig, folder: Path, resume: bool, progress: ProgressCallback
) -> TrainResult:
    cast(Any, model).set_input_size(img_size=phase.image_size)
    return distill(
        model,
        None,
        _open(model, data, phase, "train"),
        phase.train,
        val_loader=_open(model, data, phase, "val"),
        out_dir=folder,
        resume=resume,
        progress=progress,
    )


def _open(model: nn.Module, data: DataConfig, phase: Phase, split: Any) -> Any:
    training = split == "train"
    return open_data(
        data,
        split=split,
        preprocessing=preprocessing(set_preprocessing_(model, **data.stated)),
        batch_size=phase.batch_size,
        training=training,
        augment=phase.augment if training else None,
        seed=phase.train.seed,
    )


def _classes(config: PretrainConfig) -> int:
    model = create_model(config.model, pretrained=False, img_size=config.phases[0].image_size)
    classes = _open(model, config.data, config.phases[0], "train").num_classes
    if classes is None:
        raise ConfigError(f"{config.data.source} has no classes, so there is nothing to train on; give labelled images")
    return classes


def _round_to_half_(model: nn.Module) -> None:
    """Give the weights the values that the file will hold, so that what is measured is what is shipped."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
