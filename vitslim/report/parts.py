"""Reading an output folder into the parts of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from vitslim.analysis import AnalysisReport
from vitslim.bench import BenchReport
from vitslim.checkpoint import SavedModel
from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json
from vitslim.methods.choice import Choice
from vitslim.report.names import conversion_sentence, title_of
from vitslim.report.plan_rows import PlanRows, plan_rows
from vitslim.report.training_log import TrainingLog, read_training_log
from vitslim.targets.parity.result import ParityReport
from vitslim.train import EvalResult, TrainResult

PART_FILES = (
    "config.json",
    "analysis.json",
    "plan.json",
    "cost.json",
    "choices.json",
    "metrics.json",
    "train/log.jsonl",
    "export/parity.json",
    "bench.json",
    "env.json",
    "recipe.yaml",
)
STAGE_FILES = {"warm_start": "train/warm_start/result.json", "distill": "train/result.json"}
_ARTIFACTS = ("model.safetensors", "export/*.onnx", "export/*.engine")

T = TypeVar("T")


class _Document(BaseModel):
    """What a stage above this package writes: the fields that a report reads."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Cost(_Document):
    """cost.json: what the model costs on paper, beside the dense one it came from."""

    params: int
    macs: int
    dense_params: int
    dense_macs: int


@dataclass(frozen=True)
class ReportParts:
    """What an output folder holds; None is a stage that has not run. ``metrics`` names its models by their role."""

    name: str
    config: SavedModel | None = None
    analysis: AnalysisReport | None = None
    plan: PlanRows | None = None
    cost: Cost | None = None
    choices: Sequence[Choice] = ()
    metrics: Mapping[str, EvalResult] = field(default_factory=dict[str, EvalResult])
    log: TrainingLog | None = None
    stages: Mapping[str, TrainResult] = field(default_factory=dict[str, TrainResult])
    parity: ParityReport | None = None
    bench: BenchReport | None = None
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipe: str | None = None
    file_bytes: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def title(self) -> str:
        """What was made of which model, where that is known, else the folder's name."""
        return self.name if self.config is None else title_of(self.config)

    @property
    def sentence(self) -> str:
        """How it was made."""
        if self.config is None:
            return f"Output folder {self.name}; it has no config.json, so the conversion is not known."
        return conversion_sentence(self.config)

    @property
    def is_dense(self) -> bool:
        """Whether it is known to be a dense model."""
        return self.config is not None and not self.config.conversions


def read_parts(folder: str | Path) -> ReportParts:
    """Read whatever stages have left in ``folder``.

    Raises:
        CheckpointError: none of the files is there, or one of them cannot be read.
    """
    root = Path(folder)
    if not any((root / name).is_file() for name in PART_FILES):
        raise CheckpointError(
            f"{root} holds none of {', '.join(PART_FILES)}; give the output folder of a vitslim command"
        )
    stages = {stage: _read(root / path, TrainResult.model_validate) for stage, path in STAGE_FILES.items()}
    return ReportParts(
        name=root.resolve().name,
        config=_read(root / "config.json", SavedModel.model_validate),
        analysis=_read(root / "analysis.json", AnalysisReport.model_validate),
        plan=_read(root / "plan.json", plan_rows),
        cost=_read(root / "cost.json", Cost.model_validate),
        choices=_read(root / "choices.json", TypeAdapter(list[Choice]).validate_python) or (),
        metrics=_read(root / "metrics.json", TypeAdapter(dict[str, EvalResult]).validate_python) or {},
        log=read_training_log(root / "train"),
        stages={stage: found for stage, found in stages.items() if found is not None},
        parity=_read(root / "export" / "parity.json", ParityReport.model_validate),
        bench=read_bench(root / "bench.json"),
        environment=_read(root / "env.json", TypeAdapter(dict[str, Any]).validate_python) or {},
        recipe=_read_text(root / "recipe.yaml"),
        file_bytes={
            str(path.relative_to(root)): path.stat().st_size
            for pattern in _ARTIFACTS
            for path in sorted(root.glob(pattern))
        },
    )


def read_bench(path: Path) -> BenchReport | None:
    """Read a bench.json; None where there is none."""
    return _read(path, BenchReport.model_validate)


def _read(path: Path, validate: Callable[[Any], T]) -> T | None:
    if not path.exists():
        return None
    try:
        return validate(read_json(path))
    except ValidationError as error:
        errors = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'top level'}: {one['msg']}" for one in error.errors())
        raise CheckpointError(f"{path} does not have the expected form ({errors}); run its stage again") from None
    except ConfigError as error:
        raise CheckpointError(f"{path.parent}: {error}") from None


def _read_text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable text ({error})") from None
