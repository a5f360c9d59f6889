"""What a benchmark found, as it is written to bench.json."""

from typing import Any

from vitslim.bench.ratios import Verdict
from vitslim.runtime import Precision
from vitslim.runtime.runner import DTYPES
from vitslim.shapes import Result

MIB = 2**20


class BenchRow(Result):
    """One model in one backend, precision and batch size.

    Latencies are of one call with the whole batch. ``speedup_vs_dense`` is the ratio of medians, baseline over model,
    of the same interleaved run; ``speedup_p10`` and ``speedup_p90`` are percentiles of that ratio over the rounds, and
    ``verdict`` what they say (``None`` for the baseline itself). ``speedup_vs_dense_torch`` is the ratio to the
    baseline in torch fp32 at the same batch: of the same session, but not of the same rounds; ``None`` where the
    session has no such row. With ``other_image_size`` the baseline's input was larger or smaller than this one's.
    ``peak_memory_mib`` is weights plus the peak of one call; ``None`` where no backend can tell it per model.
    ``latency_ms_p10`` is what other work on the machine hardly moves; ``None`` in reports of older versions.
    ``file_mib`` is the ONNX file or the engine that was run; ``None`` where torch runs the model itself.
    Energy (millijoule per image), mean power and the clock of the multiprocessors are NVML's, in a loop of their own
    after the timing; ``None`` where they were not asked for or cannot be read.
    """

    model: str
    backend: str
    precision: Precision
    batch: int
    image_size: tuple[int, int]
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    throughput_img_s: float
    speedup_vs_dense: float
    speedup_p10: float
    speedup_p90: float
    params: int
    macs: int
    peak_memory_mib: float | None
    rounds: int
    energy_mj_per_image: float | None = None
    power_w: float | None = None
    sm_clock_mhz: int | None = None
    latency_ms_p10: float | None = None
    file_mib: float | None = None
    verdict: Verdict | None = None
    speedup_vs_dense_torch: float | None = None
    other_image_size: bool = False

    @property
    def weights_mib(self) -> float:
        """The parameters as they are kept: what of a file, or of a GPU's memory, is the model itself.

        Training keeps them in float32, whatever it computes in.
        """
        kept: Precision = "fp32" if self.backend == "train" else self.precision
        return self.params * DTYPES[kept].itemsize / MIB


class Skipped(Result):
    """What was asked for and not measured; ``None`` in a field means all of them."""

    backend: str
    precision: Precision
    reason: str
    model: str | None = None
    batch: int | None = None
    out_of_memory: bool = False


class BenchReport(Result):
    """All rows of one run, with what they were measured on."""

    baseline: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    load_average_end: list[float] | None
    rows: list[BenchRow]
    skipped: list[Skipped]
    notes: list[str]
