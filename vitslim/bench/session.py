"""One session: every model in the same backend, and the same precision but for those with one of their own, timed in
the same rounds.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from vitslim.bench.clock import (
    Clock,
    compared,
    cpu_clock,
    cuda_clock,
    interleaved_latencies_ms,
    percentile,
    processor_clock,
)
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.bench.errors import first_line, is_out_of_memory
from vitslim.bench.nvml import Power
from vitslim.bench.result import MIB, BenchRow, Skipped
from vitslim.bench.training_step import TrainingRunner
from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import TritonMode, triton_mode
from vitslim.models import preprocessing
from vitslim.runtime import Precision, Runner
from vitslim.targets import Backend as BackendFacts
from vitslim.targets import Opening, Timing, find_backend


def _known_backend(name: str) -> str:
    try:
        return name if name == TRAIN else find_backend(name)[1].name
    except ConfigError as error:
        raise ValueError(str(error)) from None


_LEAST_MS = 3.0  # of a sample of CUDA graphs; some 10 µs of it are the start

TRAIN = "train"
"""Not a backend of a target but one training step in torch."""

Backend = Annotated[str, AfterValidator(_known_backend)]
"""What runs a model: a backend of a registered target, or ``train``."""

Meter = Callable[[Callable[[], object]], Power]


def facts_of(backend: str) -> BackendFacts:
    """What is known of a backend before it is opened."""
    return BackendFacts(TRAIN, on_stream=True, in_torch=True) if backend == TRAIN else find_backend(backend)[1]


@dataclass(frozen=True)
class RunConfig:
    """In what the models of a session run."""

    backend: Backend
    precision: Precision

    def skip(self, error: Exception, *, model: str | None = None, batch: int | None = None) -> Skipped:
        """The record of something that did not run here."""
        return Skipped(
            backend=self.backend,
            precision=self.precision,
            model=model,
            batch=batch,
            reason=first_line(error),
            out_of_memory=is_out_of_memory(error),
        )


@dataclass(frozen=True)
class Candidate:
    """A model with what is known of it before the clock starts."""

    model: nn.Module
    image_size: tuple[int, int]
    channels: int
    params: int
    macs: int
    precision: Precision | None = None  # its own, where it is not the session's
    triton: TritonMode | None = None  # in which it is compiled and captured; ``None`` for the environment's

    def images(self, batch: int, device: torch.device) -> Tensor:
        """A batch of noise; latency does not depend on what the images show."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.channels, *self.image_size, generator=generator).to(device)


def candidates(models: Mapping[str, nn.Module]) -> dict[str, Candidate]:
    """Count what can be counted of each model."""
    return {
        name: Candidate(
            model=model,
            image_size=preprocessing(model).image_size,
            channels=preprocessing(model).channels,
            params=count_parameters(model),
            macs=count_macs(model),
        )
        for name, model in models.items()
    }


@dataclass(frozen=True)
class Session:
    """Which models are compared, on what, how often; see ``BenchConfig`` for the numbers.

    With a ``meter`` the energy of every model is measured after its latency.
    """

    candidates: Mapping[str, Candidate]
    baseline: str
    threads: int
    rounds: int
    warmup: int
    seconds: float | None
    device: Literal["cpu", "cuda"]
    least_seconds: float = 0.0
    clock: Literal["wall", "processor"] = "wall"
    meter: Meter | None = None
    notes: list[str] = field(default_factory=list[str])  # what could not be read beside the latencies
    _file_mib: dict[str, float] = field(default_factory=dict[str, float])  # of what was exported last, by model

    def measure(self, config: RunConfig, batches: Sequence[int], skipped: list[Skipped]) -> Iterator[BenchRow]:
        """Rows of all models at every batch size; what could not run is added to ``skipped``."""
        # An engine is tuned for one batch size: each size has engines of its own.
        for sizes in [(batch,) for batch in batches] if facts_of(config.backend).per_batch else [batches]:
            with ExitStack() as stack:
                try:
                    runners = self._open_all(stack, config, sizes, skipped)
                except Exception as error:  # whatever a backend raises, the others go on
                    skipped.append(config.skip(error, batch=_only(sizes)))
                    continue
                for batch in sizes:
                    yield from self._measure_batch(runners, config, batch, skipped)

    def _open_all(
        self, stack: ExitStack, config: RunConfig, sizes: Sequence[int], skipped: list[Skipped]
    ) -> dict[str, Runner]:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitslim-bench-")))
        # The baseline comes first: without it no other row means anything.
        runners = {self.baseline: stack.enter_context(self._open(self.baseline, config, sizes, folder))}
        for name in self.candidates:
            if name == self.baseline:
                continue
            try:
                runners[name] = stack.enter_context(self._open(name, config, sizes, folder))
            except Exception as error:
                skipped.append(self._own(name, config).skip(error, model=name, batch=_only(sizes)))
        return runners

    def _own(self, name: str, config: RunConfig) -> RunConfig:
        return replace(config, precision=self.candidates[name].precision or config.precision)

    def _switched(self, name: str) -> AbstractContextManager[None]:
        return _in_mode(self.candidates[name].triton)

    def _open(self, name: str, config: RunConfig, sizes: Sequence[int], folder: Path) -> Runner:
        model, config = self.candidates[name].model, self._own(name, config)
        if facts_of(config.backend).needs_gpu and self.device != "cuda":
            raise ConfigError(f"backend {config.backend} runs on a GPU; measure with device cuda (--device cuda)")
        if config.backend == TRAIN:
            return TrainingRunner(model, precision=config.precision, device=self.device, name=name)
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        target, backend = find_backend(config.backend)
        if config.precision == "int8" and "int8" not in target.precisions:
            raise ConfigError(
                f"backend {config.backend} has no int8; wanted one of fp32, fp16, bf16, or another backend"
            )
        opening = Opening(backend.name, None if backend.needs_gpu else self.device, self.threads, name)
        with self._switched(name):
            runner, file = target.open_to_time(model, place, Timing(config.precision, sizes, self.device, opening))
        if file is not None:
            self._file_mib[name] = file.stat().st_size / MIB
        return runner

    def _measure_batch(
        self, runners: Mapping[str, Runner], config: RunConfig, batch: int, skipped: list[Skipped]
    ) -> list[BenchRow]:
        calls: dict[str, _Call] = {}
        for name, runner in runners.items():
            try:
                with self._switched(name):
                    calls[name] = self._ready(name, runner, config, batch)
            except Exception as error:
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                if name == self.baseline:
                    skipped.append(config.skip(error, batch=batch))
                    return []
                skipped.append(self._own(name, config).skip(error, model=name, batch=batch))
        try:
            samples = interleaved_latencies_ms(
                calls,
                rounds=self.rounds,
                warmup=0,
                seconds=self.seconds,
                least_seconds=self.least_seconds,
                clock=self._clock(config),
            )
        except Exception as error:
            skipped.append(config.skip(error, batch=batch))
            return []
        samples = {name: [one / calls[name].repeats for one in own] for name, own in samples.items()}
        memory = {name: self._peak_memory_mib(name, config, call) for name, call in calls.items()}
        power = {name: self._power(name, config, call) for name, call in calls.items()}
        return [self._row(name, config, batch, samples, memory[name], power[name]) for name in calls]

    def _ready(self, name: str, runner: Runner, config: RunConfig, batch: int) -> "_Call":
        """The call to be timed, warmed up."""
        images = self.candidates[name].images(batch, runner.device)
        call = _Call(runner, images, self.candidates[name].triton)
        call()
        if facts_of(config.backend).recorded:
            call = self._recorded(name, call, config)
        for _ in range(self.warmup):
            call()
        if self.device == "cuda":
            torch.cuda.synchronize()  # what fails, fails here
        return call

    def _recorded(self, name: str, call: "_Call", config: RunConfig) -> "_Call":
        try:
            recorded = call.runner.capture(tuple(call.images.shape))
        except Exception as error:
            # An engine whose shapes TensorRT reads back cannot be recorded; a graph of torch is what was asked for.
            if facts_of(config.backend).in_torch:
                raise
            self._note("CUDA graph", name, config, call, error)
            return call
        # Zeros, which it was recorded on, would draw less power than images do.
        recorded.images.copy_(call.images)
        call = replace(call, replay=recorded.replay)
        recorded.replay()
        return replace(call, repeats=_repeats(self._clock(config)(call)))

    def _row(
        self,
        name: str,
        config: RunConfig,
        batch: int,
        samples: Mapping[str, list[float]],
        peak_memory_mib: float | None,
        power: Power | None,
    ) -> BenchRow:
        candidate, own = self.candidates[name], samples[name]
        return BenchRow(
            model=name,
            backend=config.backend,
            precision=self._own(name, config).precision,
            batch=batch,
            image_size=candidate.image_size,
            **compared(own, samples[self.baseline]),
            latency_ms_p10=percentile(own, 10),
            latency_ms_p99=percentile(own, 99),
            throughput_img_s=batch / percentile(own, 50) * 1e3,
            params=candidate.params,
            macs=candidate.macs,
            peak_memory_mib=peak_memory_mib,
            energy_mj_per_image=None if power is None else power.energy_mj / batch,
            power_w=None if power is None else power.power_w,
            sm_clock_mhz=None if power is None else power.sm_clock_mhz,
            file_mib=None if facts_of(config.backend).in_torch else self._file_mib[name],
            rounds=len(own),
        )

    def _on_torch_stream(self, config: RunConfig) -> bool:
        # ONNX Runtime has a stream of its own, of which torch sees nothing.
        return self.device == "cuda" and facts_of(config.backend).on_stream

    def _clock(self, config: RunConfig) -> Clock:
        if self._on_torch_stream(config):
            return cuda_clock
        return processor_clock if self.clock == "processor" else cpu_clock

    def _peak_memory_mib(self, name: str, config: RunConfig, call: "_Call") -> float | None:
        # TensorRT, as ONNX Runtime, allocates without torch.
        if self.device != "cuda" or not facts_of(config.backend).in_torch:
            return None
        # The other models' weights lie on the same GPU, so only what this forward adds is read from the allocator.
        runner = call.runner
        kept = TrainingRunner.COPIES if config.backend == "train" else 1
        weights = kept * self.candidates[name].params * runner.inputs[0].dtype.itemsize
        try:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            replace(call, replay=None, repeats=1)()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before + weights) / MIB
        except Exception as error:  # the latencies are good without it
            self._note("peak memory", name, config, call, error)
            return None

    def _power(self, name: str, config: RunConfig, call: "_Call") -> Power | None:
        try:
            return None if self.meter is None else self.meter(replace(call, repeats=1))
        except Exception as error:
            self._note("energy and clocks", name, config, call, error)
            return None

    def _note(self, what: str, name: str, config: RunConfig, call: "_Call", error: Exception) -> None:
        where = f"{name}, {config.backend} {self._own(name, config).precision}, batch {len(call.images)}"
        self.notes.append(f"no {what} of {where}: {first_line(error)}")


@dataclass(frozen=True)
class _Call:
    runner: Runner
    images: Tensor
    triton: TritonMode | None = None  # kernels on or off; what torch.compile made for one answer holds for no other
    replay: Callable[[], None] | None = None  # of the recorded CUDA graph
    repeats: int = 1

    def __call__(self) -> object:
        found: object = None
        with _in_mode(self.triton):
            for _ in range(self.repeats):
                found = self.runner.run(self.images) if self.replay is None else self.replay()
        return found


def _in_mode(mode: TritonMode | None) -> AbstractContextManager[None]:
    return nullcontext() if mode is None else triton_mode(mode)


def _repeats(ms: float) -> int:
    """How often a graph of so many milliseconds is replayed for one sample: starting it shows at batch 1."""
    return max(1, math.ceil(_LEAST_MS / max(ms, 1e-3)))


def _only(sizes: Sequence[int]) -> int | None:
    return sizes[0] if len(sizes) == 1 else None
