"""What the benchmark suite measures and finds, as it is written to its JSON files."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, PositiveInt

from vitslim.bench.contest import Backend
from vitslim.bench.kernels import KernelRow, KernelSkip
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import Ceilings
from vitslim.runtime import Precision
from vitslim.shapes import Config, Result

Kind = Literal["dense", "method", "pair", "baseline"]
Setting = tuple[str, int, str, str, int]  # model, image size, backend, precision, batch
Status = Literal["measured", "unavailable", "out of memory", "failed", "crashed", "too long"]

DENSE = "dense"
SMALLER = "smaller-sibling"
SUITE_FILE = "suite.json"
TRIES = 2  # of a piece that is not done in time; what the first one compiled is there for the second


class Piece(Config):
    """What is measured in one go: one model at one image size, precision and backend; or kernels alone.

    All competitors of a piece are timed in the same rounds, so that their ratios are of one run.
    """

    kind: Literal["models", "kernels"] = "models"
    model: str = "-"  # name in the preset; kernels have none
    image_size: int = 0  # pixels; 0: the model's own
    precision: Precision = "fp32"
    backend: Backend = "torch"
    batches: tuple[PositiveInt, ...] = (1,)
    competitors: tuple[str, ...] = ()  # beside dense
    tokens: tuple[PositiveInt, ...] = ()  # kernels alone

    @property
    def name(self) -> str:
        """Of its file and its row in a list."""
        batches = "b" + "+".join(map(str, self.batches))
        if self.kind == "kernels":
            return f"kernels-{self.precision}-{batches}"
        size = [str(self.image_size)] if self.image_size else []
        return "-".join([re.sub(r"[^\w.]+", "_", self.model), *size, self.precision, self.backend, batches])


class Aim(Config):
    """A gain against dense that shall be reached: by the best of some competitors in one setting, or by a kernel."""

    what: str  # in words
    at_least: float = Field(gt=0)  # dense over the model
    of: Literal["speed", "weights", "memory"] = "speed"  # a kernel's is speed
    precision: Precision
    model: str = "-"
    image_size: int = 0
    backend: Backend = "compiled-graph"
    batch: PositiveInt = 1
    competitors: tuple[str, ...] = ()
    kernel: str = ""  # its name, instead of competitors
    tokens: int = 0  # of the kernel
    max_loss: float | None = None  # points of top-1 below the dense control; where accuracy is measured too

    @property
    def setting(self) -> Setting:
        """Where the competitors' rows stand."""
        return self.model, self.image_size, self.backend, self.precision, self.batch


class SuiteRow(BenchRow):
    """A row of a piece: ``model`` is the competitor, ``base`` the model it competes with at ``size`` pixels.

    The roofline figures are ``None`` for training steps, whose traffic is not counted.
    """

    base: str
    size: int
    kind: Kind
    tflops: float | None
    gbytes_s: float | None
    intensity: float | None
    roofline_share: float | None


class PieceResult(Result):
    """What one piece gave, as it lies in ``pieces/``."""

    piece: Piece
    digest: str  # of the piece, its settings, the versions, the code and the hardware
    status: Status
    reason: str | None = None
    seconds: float
    tries: int = 1  # in a row that were too long, this one counted
    environment: dict[str, Any] = Field(default_factory=dict)
    ceilings: Ceilings | None = None
    rows: list[SuiteRow] = Field(default_factory=list[SuiteRow])
    kernel_rows: list[KernelRow] = Field(default_factory=list[KernelRow])
    skipped: list[Skipped] = Field(default_factory=list[Skipped])
    kernel_skips: list[KernelSkip] = Field(default_factory=list[KernelSkip])
    notes: list[str] = Field(default_factory=list[str])


class SuiteReport(Result):
    """suite.json: all pieces that were measured with the present settings, and what is left."""

    preset: str
    quick: bool
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]  # of the last piece; versions and hardware are the same in all
    pieces: list[PieceResult]
    left: list[str]  # names of the pieces that are not measured yet
    aims: list[Aim] = Field(default_factory=list[Aim])

    @property
    def total(self) -> int:
        """How many pieces the preset has."""
        return len({*self.left, *(one.piece.name for one in self.pieces)})

    @property
    def too_long(self) -> list[str]:
        """Names of the pieces that are left and that another call with no more time would not measure either."""
        return [one.piece.name for one in self.pieces if one.status == "too long" and one.tries >= TRIES]

    @property
    def not_begun(self) -> list[str]:
        """Names of the pieces that are left and that were not tried."""
        tried = {one.piece.name for one in self.pieces}
        return [name for name in self.left if name not in tried]

    @property
    def rows(self) -> list[SuiteRow]:
        """The rows of all pieces, in the preset's order."""
        return [row for piece in self.pieces for row in piece.rows]

    @property
    def kernel_rows(self) -> list[KernelRow]:
        """The kernels' rows, in the preset's order."""
        return [row for piece in self.pieces for row in piece.kernel_rows]
