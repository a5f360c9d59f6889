"""A model as a program of torch.export, in one ``.pt2`` file that needs torch and nothing else."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, UnsupportedModelError
from vitslim.files import parse_json, write_bytes
from vitslim.kernels import torch_forms
from vitslim.models import preprocessing
from vitslim.runtime import Precision, working_copy
from vitslim.runtime.runner import DTYPES, Images, Runner, TensorSpec, check_images
from vitslim.shapes import Result
from vitslim.targets.base import ALL_PRECISIONS, ExportRequest, Opening, Target, register_target
from vitslim.targets.metadata import artifact_metadata
from vitslim.targets.parity.comparing import AS_WRITTEN, compare
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.parity.result import ParityCheck
from vitslim.targets.quiet import captured

METADATA_FILE = "vitslim.json"
"""In the ``.pt2``: ``torch.export.load(path, extra_files={"vitslim.json": ""})`` fills in the text."""

_TRACED_BATCH = 2  # torch.export takes a batch of 0 or 1 for a constant


class ProgramExport(Result):
    """A ``.pt2`` file that was written, loaded back and compared.

    Args:
        spelled_out: how many sparse attentions and key choices were replaced by torch's own operators, which compute
            all scores; with 0 nothing was lost.
    """

    file: Path
    precision: Precision
    size_bytes: int
    sha256: str
    spelled_out: int
    comparisons: list[ParityCheck]
    metadata: dict[str, str]


def write_program(
    model: nn.Module, path: str | Path, images: Tensor, *, precision: Precision = "fp32"
) -> ProgramExport:
    """Write ``model`` as a ``.pt2`` file: float32 images of any batch in, float32 logits (or features) out.

    Args:
        model: dense or converted; stays as it is.
        path: of the file.
        images: some, normalised as the model expects; what is loaded back is compared on them.
        precision: of weights and arithmetic.

    Raises:
        UnsupportedModelError: torch cannot trace the model.
        CheckFailedError: what was loaded back does not compute the same.
        CheckpointError: the file cannot be written; what lay there is unchanged.
    """
    program, spelled_out = traced_program(model, precision)
    metadata = artifact_metadata(model, precision, {})
    buffer = io.BytesIO()
    with captured():
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
        content = buffer.getvalue()
    runner = open_program(io.BytesIO(content), Path(path).name)
    comparisons = require_same_numbers(model, runner, images)
    write_bytes(path, content)
    return ProgramExport(
        file=Path(path),
        precision=precision,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        spelled_out=spelled_out,
        comparisons=comparisons,
        metadata=metadata,
    )


def traced_program(
    model: nn.Module, precision: Precision, device: str | torch.device = "cpu"
) -> tuple[torch.export.ExportedProgram, int]:
    """The model as a program with a free batch, in torch's own operators only; and how many of ours were replaced.

    Raises:
        UnsupportedModelError: torch cannot trace the model.
    """
    copy = working_copy(model).to(device=device, dtype=DTYPES[precision])
    if precision != "fp32":
        _keep_float32_ends_(copy, DTYPES[precision])
    image = preprocessing(model)
    example = torch.zeros(_TRACED_BATCH, image.channels, *image.image_size, device=device)
    free = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with captured():
            program = torch.export.export(copy, (example,), dynamic_shapes=free, strict=False)
            ours = sum(_is_ours(node) for node in program.graph.nodes)
            # Whoever opens the file need not have vitslim, which is where our operators are defined.
            program = program.run_decompositions(dict(torch_forms())) if ours else program
    except Exception as error:  # torch raises a new class for every stage of the export
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModelError(
            f"torch.export cannot trace this {type(model).__name__}: {type(error).__name__}: {' '.join(lines[:3])}"
        ) from error
    left = sorted({str(node.target) for node in program.graph.nodes if _is_ours(node)})
    if left:
        raise UnsupportedModelError(f"{', '.join(left)} cannot be spelled out in torch's own operators")
    return program, ours


def _is_ours(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("vitslim.")


def _keep_float32_ends_(model: nn.Module, dtype: torch.dtype) -> None:
    # As hooks on our copy rather than a module around it: the weights keep timm's names in the file.
    def narrow(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].to(dtype),)

    def widen(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output.float()

    model.register_forward_pre_hook(narrow)
    model.register_forward_hook(widen)


class ProgramRunner(Runner):
    """What torch loaded back from a file: a function from float32 images to float32 outputs."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], metadata: Mapping[str, str], *, backend: str, device: str, name: str
    ) -> None:
        self._forward = forward
        self.name, self.backend, self.metadata = name, backend, dict(metadata)
        self.device = torch.device(device)
        try:
            height, width = json.loads(metadata["image_size"])
            channels = len(json.loads(metadata["mean"]))
            self.precision = next(one for one in DTYPES if one == metadata["precision"])
        except (KeyError, ValueError, TypeError, StopIteration):
            raise CheckpointError(f"{name} does not say of itself what vitslim writes; export it again") from None
        self.inputs = (TensorSpec("images", (None, channels, height, width), torch.float32),)
        self.outputs = (TensorSpec("logits", (None, None), torch.float32),)

    def run(self, images: Images) -> Float[Tensor, "b ..."]:
        """The file's output for ``images``, on the runner's device.

        Raises:
            ConfigError: the images are not what the file takes.
        """
        self.require_open()
        check_images(images, self.inputs[0])
        with torch.no_grad():
            return self._forward(images.to(self.device, torch.float32)).float()

    def close(self) -> None:
        super().close()
        del self._forward


def open_program(file: Path | io.BytesIO, name: str) -> ProgramRunner:
    """A program that was written, ready to run; of a file that holds more than tensors nothing is unpickled.

    Raises:
        CheckpointError: torch does not load it, or vitslim did not write it.
    """
    extra = {METADATA_FILE: ""}
    try:
        with captured(), _without_pickles():
            loaded: Any = torch.export.load(file, extra_files=extra).module()
            metadata = parse_json(extra[METADATA_FILE] or "{}")
    except Exception as error:  # zipfile's, json's and torch's own, by what is wrong with the file
        raise CheckpointError(f"torch cannot load {name} ({error}); export it again") from error
    return ProgramRunner(loaded, metadata, backend="torch-export", device="cpu", name=name)


def require_same_numbers(model: nn.Module, runner: ProgramRunner, images: Tensor) -> list[ParityCheck]:
    """Compare what was loaded back with its model, at two batch sizes: a frozen batch shows at the second only.

    Raises:
        CheckFailedError: it computes something else.
    """
    form = iter([(AS_WRITTEN, runner, None)])
    report = compare(model, runner.name, form, Guarantee(None), images[:4], (1, 3), None, leaves_sizes_free=False)
    if not report.passed:
        raise CheckFailedError(f"{runner.name} was not written: {'; '.join(report.failures())}")
    return report.checks


@register_target("torch-export")
class TorchExportTarget(Target):
    """A ``.pt2`` program, checked against its model before it is kept."""

    title = "torch.export program"
    suffix = ".pt2"
    precisions = ALL_PRECISIONS

    def reads(self, path: Path) -> bool:
        return super().reads(path) and not holds_machine_code(path)

    def write(self, request: ExportRequest) -> ProgramExport:
        model = request.model()
        return write_program(model, request.path, request.sample(model), precision=request.precision)

    def load(self, path: Path, how: Opening) -> ProgramRunner:
        if how.device not in (None, "cpu"):
            raise ConfigError(f"{path.name} was traced on the CPU and runs there; device {how.device} was asked for")
        return open_program(path, how.name or path.stem)

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        return describe_program(written, request)


def holds_machine_code(path: Path) -> bool:
    """Whether a ``.pt2`` file is a package that was compiled, rather than a program."""
    try:
        with zipfile.ZipFile(path) as file:
            return any("/aotinductor/" in name for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def describe_program(written: ProgramExport, request: ExportRequest) -> list[str]:
    """What is reported of a program."""
    worst = max(one.max_abs / (one.tolerance or 1.0) for one in written.comparisons)
    lines = [
        f"wrote {written.file} ({written.size_bytes / 2**20:.1f} MiB); loaded back, it differs from the model by "
        f"{100 * worst:.1f} % of what {written.precision} is allowed"
    ]
    if written.spelled_out:
        lines.append(
            f"note: {written.spelled_out} sparse attentions and key choices are spelled out in torch's operators, "
            "so that the file needs no vitslim; it computes all scores"
        )
    return lines


@contextmanager
def _without_pickles() -> Generator[None]:
    # torch.export.load falls back to unpickling where its own safe reader refuses; this variable forbids it.
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
