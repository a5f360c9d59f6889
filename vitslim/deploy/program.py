"""A model as a program of torch.export, in one ``.pt2`` file that needs torch and nothing else."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitslim.deploy.comparison import Comparison, compared
from vitslim.errors import CheckFailedError, UnsupportedModelError
from vitslim.export.metadata import artifact_metadata
from vitslim.export.quiet import captured
from vitslim.files import write_bytes
from vitslim.kernels import torch_forms
from vitslim.models import preprocessing
from vitslim.runtime import Precision, working_copy
from vitslim.runtime.runner import DTYPES
from vitslim.shapes import Result

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
    comparisons: list[Comparison]
    metadata: dict[str, str]


def write_program(
    model: nn.Module, path: str | Path, images: Tensor, *, precision: Precision = "fp32"
) -> ProgramExport:
    """Write ``model`` as a ``.pt2`` file: float32 images of any batch in, float32 logits (or features) out.

    Args:
        model: dense or converted; stays as it is.
        path: of the file.
        images: at least three, normalised as the model expects; what is loaded back is compared on them.
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
        loaded = torch.export.load(io.BytesIO(content)).module()
    try:
        comparisons = compared(model, cast(Any, loaded), images, precision=precision)
    except CheckFailedError as error:
        raise CheckFailedError(f"{Path(path).name} was not written: {error}") from None
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
