"""What the report needs of each JSON file of an output folder; fields it does not know are left alone."""

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from vitslim.bench.ratios import Verdict, against_dense_torch, is_crowded, verdict
from vitslim.trunk.axes import Attention

Matrix = list[list[float | None]]
Share = Annotated[float, Field(ge=0, le=1)]


class Document(BaseModel):
    """A JSON file as the report reads it. The stages write finite numbers only, so others mean a broken file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Conversion(Document):
    """One method with the options it was applied with."""

    method: str
    options: dict[str, Any] = {}


class ImageInput(Document):
    """How images become the model's input; ``assumed`` names the fields that nobody stated."""

    image_size: list[int] = []
    mean: list[float] = []
    std: list[float] = []
    interpolation: str | None = None
    crop_pct: float | None = None
    assumed: list[str] = []


class RunConfig(Document):
    """config.json: what was converted, and how."""

    base: dict[str, Any] = {}
    conversions: list[Conversion] = []
    input: ImageInput = ImageInput()
    parameters: int | None = None
    versions: dict[str, Any] = {}

    @property
    def base_name(self) -> str | None:
        """The dense model's name in timm."""
        name = self.base.get("architecture")
        return None if name is None else str(name)


class PlanStep(Document):
    """One entry of plan.json: one application of a block, in typed fields and in words for people."""

    step: int
    block: int
    mixing: str
    tokens: str
    weights: str
    parameters: int | None = None
    attention: Attention
    kept: int
    of: int
    shares_with: int | None
    converted: bool

    @property
    def reuses(self) -> bool:
        """Whether the attention output comes from an earlier step."""
        return self.attention == "reuse"

    @property
    def drops_tokens(self) -> bool:
        """Whether a part of the patches takes no part."""
        return self.kept < self.of


class Cost(Document):
    """cost.json: what the model costs on paper, beside the dense one it came from."""

    params: int
    macs: int
    dense_params: int
    dense_macs: int


class Choice(Document):
    """One entry of choices.json: what an analysis recommended for an option, and what was used."""

    method: str
    option: str
    recommended: Any = None
    used: Any = None
    reason: str = ""


class JointReplacement(Document):
    """How far the output moves when attention outputs are replaced; a model without classifier has features only."""

    kind: str
    kl: float | None = None
    top1_agreement: float | None = None
    feature_change: float | None = None


class Replacement(JointReplacement):
    """The change when one block's attention output is replaced."""

    layer: int


class Recommendation(Document):
    """Which blocks the analysis would convert, why, and what replacing all of them at once does untrained."""

    layers: list[int] = []
    reason: str = ""
    measured: list[JointReplacement] = []


class Analysis(Document):
    """analysis.json: what was redundant in the dense model."""

    model: str = ""
    images: int | None = None
    layers: list[str]
    cka: dict[str, Matrix | None] = {}
    linear_r2: list[float | None] = []
    replacement: list[Replacement] = []
    replacement_images: int | None = None
    recommended: Recommendation | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Analysis":
        size = len(self.layers)
        for name, matrix in self.cka.items():
            if matrix is not None and [len(row) for row in matrix] != [size] * size:
                raise ValueError(f"cka.{name} is not {size}×{size}, one row and column per layer")
        if self.linear_r2 and len(self.linear_r2) != size:
            raise ValueError(f"linear_r2 has {len(self.linear_r2)} entries for {size} layers")
        return self

    @property
    def recommended_layers(self) -> list[int]:
        """The recommended blocks; none when the analysis recommends nothing."""
        return self.recommended.layers if self.recommended else []


class Evaluation(Document):
    """Quality of one model: shares of 0..1, and None for what needs labels or a teacher that were not there."""

    images: int = Field(ge=0)
    top1: Share | None = None
    top5: Share | None = None
    agreement: Share | None = None
    kl: float | None = None
    corrupt: int = 0  # images that could not be read and were left out
    examples: list[str] = []


class Metrics(Document):
    """metrics.json: quality of the models."""

    teacher: Evaluation | None = None
    student: Evaluation | None = None
    dense_control: Evaluation | None = None


class LogLine(Document):
    """One line of train/log.jsonl. A diverged loss is logged as it is, so infinity and NaN are taken here.

    Lines of event ``start`` or ``resume`` name the stage of the lines that follow.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)

    event: str = "train"
    stage: str | None = None
    step: int
    loss: float | None = None
    lr: float | None = None
    img_s: float | None = Field(default=None, validation_alias=AliasChoices("img_s", "img_per_s"))
    top1: float | None = None


class ParityCheck(Document):
    """One comparison of an exported artefact with the live model."""

    artifact: str
    precision: str = ""
    batch: int | None = None
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None
    passed: bool
    failures: list[str] = []


class Parity(Document):
    """export/parity.json: whether the artefacts compute what the model computes."""

    checks: list[ParityCheck]
    notes: list[str] = []


class BenchRow(Document):
    """One model in one setting of backend, precision and batch."""

    model: str
    backend: str
    precision: str = ""
    batch: int
    latency_ms_p50: PositiveFloat
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    throughput_img_s: float | None = None
    speedup_vs_dense: float | None = None
    speedup_p10: float | None = None
    speedup_p90: float | None = None
    speedup_vs_dense_torch: float | None = None
    verdict: Verdict | None = None
    other_image_size: bool = False
    params: int | None = None
    macs: int | None = None
    peak_memory_mib: float | None = None

    @property
    def setting(self) -> tuple[str, str, int]:
        """Where it was measured; only rows of one setting may be compared."""
        return (self.backend, self.precision, self.batch)

    @property
    def spread(self) -> tuple[float, float] | None:
        """The 10th and 90th percentile of the speed ratio over the rounds."""
        if self.speedup_p10 is None or self.speedup_p90 is None:
            return None
        return (self.speedup_p10, self.speedup_p90)


class SkippedBackend(Document):
    """What was asked for and not measured; None means all of them."""

    backend: str
    precision: str = ""
    model: str | None = None
    batch: int | None = None
    reason: str = ""

    @property
    def sentence(self) -> str:
        """What was not measured, and why."""
        what = [f"{self.backend} {self.precision}".strip()]
        what += [self.model] if self.model else []
        what += [f"batch {self.batch}"] if self.batch is not None else []
        return f"Not measured on {', '.join(what)}: {(self.reason or 'no reason given').rstrip('.')}."


class Bench(Document):
    """bench.json: speed and size of several models, measured in one run."""

    environment: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rows: list[BenchRow] = []
    skipped: list[SkippedBackend] = []
    notes: list[str] = []
    baseline: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Bench":
        """Say of the rows of an older file what newer ones say themselves."""
        crowded = is_crowded(self.environment, int(self.settings.get("threads") or 1))
        for index, row in enumerate(self.rows):
            missing: dict[str, Any] = {}
            if row.speedup_vs_dense_torch is None:
                missing["speedup_vs_dense_torch"] = against_dense_torch(row, self.rows, self.dense_name)
            if row.verdict is None and row.speedup_vs_dense is not None and row.model != self.dense_name:
                missing["verdict"] = verdict(row.speedup_vs_dense, row.spread, crowded=crowded)
            self.rows[index] = row.model_copy(update=missing)
        return self

    @property
    def dense_name(self) -> str | None:
        """The model that the others are held against: the named baseline, else the one that is 1 times itself."""
        if self.baseline is not None:
            return self.baseline
        names = list(dict.fromkeys(row.model for row in self.rows))
        alike = [name for name in names if all(row.speedup_vs_dense == 1 for row in self.rows_of(name))]
        return alike[0] if len(alike) == 1 else next((name for name in ("dense", "teacher") if name in names), None)

    @property
    def student_name(self) -> str | None:
        """The converted model: the one named so, else the first that is not the baseline."""
        names = [row.model for row in self.rows if row.model != self.dense_name]
        return "student" if "student" in names else next(iter(names), None)

    def rows_of(self, model: str | None) -> list[BenchRow]:
        """The rows of one model."""
        return [row for row in self.rows if row.model == model]
