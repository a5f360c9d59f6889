"""Reading an output folder into the parts of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.report.documents import Analysis, Bench, Choice, Cost, Metrics, Parity, PlanStep, RunConfig
from vitslim.report.names import conversion_title
from vitslim.report.training_log import TrainingLog, read_training_log
from vitslim.train import TrainResult

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
ARTEFACT_PATTERNS = ("model.safetensors", "export/*.onnx", "export/*.engine")

T = TypeVar("T")


@dataclass(frozen=True)
class ReportParts:
    """What an output folder holds; None is a stage that has not run."""

    name: str
    config: RunConfig | None = None
    analysis: Analysis | None = None
    plan: list[PlanStep] | None = None
    cost: Cost | None = None
    choices: Sequence[Choice] = ()
    metrics: Metrics | None = None
    log: TrainingLog | None = None
    stages: Mapping[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    parity: Parity | None = None
    bench: Bench | None = None
    environment: dict[str, Any] | None = None
    recipe: str | None = None
    file_bytes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def title(self) -> str:
        """What was made of which model, where that is known, else the folder's name."""
        return (self.config and conversion_title(self.config)) or self.name


def read_parts(folder: str | Path) -> ReportParts:
    """Read whatever stages have left in ``folder``.

    Raises:
        CheckpointError: none of the files is there, or one of them cannot be read.
    """
    root = Path(folder)
    if not has_parts(root):
        raise CheckpointError(
            f"{root} holds none of {', '.join(PART_FILES)}; give the output folder of a vitslim command"
        )
    return ReportParts(
        name=root.resolve().name,
        config=_read(root / "config.json", RunConfig.model_validate),
        analysis=_read(root / "analysis.json", Analysis.model_validate),
        plan=_read(root / "plan.json", TypeAdapter(list[PlanStep]).validate_python),
        cost=_read(root / "cost.json", Cost.model_validate),
        choices=_read(root / "choices.json", TypeAdapter(list[Choice]).validate_python) or (),
        metrics=_read(root / "metrics.json", Metrics.model_validate),
        log=read_training_log(root / "train"),
        stages={
            stage: found
            for stage, path in STAGE_FILES.items()
            if (found := _read(root / path, _stage_figures)) is not None
        },
        parity=_read(root / "export" / "parity.json", Parity.model_validate),
        bench=_read(root / "bench.json", Bench.model_validate),
        environment=_read(root / "env.json", TypeAdapter(dict[str, Any]).validate_python),
        recipe=_read_text(root / "recipe.yaml"),
        file_bytes=_artefact_bytes(root),
    )


def _stage_figures(document: Any) -> dict[str, Any]:
    return TrainResult.model_validate(document).model_dump(mode="json")


def has_parts(folder: Path) -> bool:
    """Whether any file that a report is made of lies in ``folder``."""
    return any((folder / name).is_file() for name in PART_FILES)


def read_bench(path: str | Path) -> Bench | None:
    """Read a bench.json; None where there is none."""
    return _read(Path(path), Bench.model_validate)


def _read(path: Path, validate: Callable[[Any], T]) -> T | None:
    return _validate(read_json(path), validate, str(path)) if path.exists() else None


def _validate(document: Any, validate: Callable[[Any], T], origin: str) -> T:
    try:
        return validate(document)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'top level'}: {fault['msg']}" for fault in error.errors()
        )
        raise CheckpointError(f"{origin} does not have the expected form ({faults}); run its stage again") from None


def _read_text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable text ({error})") from None


def _artefact_bytes(root: Path) -> dict[str, int]:
    paths = [path for pattern in ARTEFACT_PATTERNS for path in sorted(root.glob(pattern))]
    return {str(path.relative_to(root)): path.stat().st_size for path in paths}
