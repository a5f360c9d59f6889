"""Triton Inference Server as a target: a model repository out of what other targets wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from vitslim.errors import ConfigError
from vitslim.runtime import Precision, Runner
from vitslim.targets.base import ExportRequest, Opening, Target, register_target, target_of
from vitslim.targets.parity.comparing import Form
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.triton.repository import CONFIG, VERSION, check_name, write_model_repository
from vitslim.targets.triton.result import TritonRepository
from vitslim.targets.triton.servable import SUFFIXES, choose_artifact, read_servable


@register_target("triton-server")
class TritonServerTarget(Target):
    """A model in a model repository; what is served is an ONNX file or an engine that was exported before."""

    title = "Triton Inference Server repository"
    marker = CONFIG
    serves = ("onnx", "tensorrt")

    def check_path(self, path: Path, *, overwrite: bool) -> None:
        pass  # other models in the repository stay; write_model_repository looks at what lies there

    def write(
        self,
        request: ExportRequest,
        *,
        backend: str = "auto",
        artifact: str | Path | None = None,
        name: str | None = None,
        max_batch: int | None = None,
        instances: int = 1,
        any_gpu: bool = False,
    ) -> TritonRepository:
        if request.source is None or not request.source.is_dir():
            raise ConfigError("triton-server serves what was exported from a saved folder; give that folder")
        name = request.source.resolve().name if name is None else name
        check_name(name)
        path = Path(artifact) if artifact else choose_artifact(request.source, backend)
        if SUFFIXES.get(backend, path.suffix) != path.suffix:
            raise ConfigError(f"{path.name} is no file for backend {backend}; wanted one ending in {SUFFIXES[backend]}")
        return write_model_repository(
            read_servable(path, any_gpu=any_gpu),
            request.path,
            name=name,
            max_batch=max_batch,
            instances=instances,
            labels=request.metadata.get("labels"),
            overwrite=request.overwrite,
        )

    def load(self, path: Path, how: Opening) -> Runner:
        served = _served(path)
        return target_of(served).load(served, replace(how, backend=None, name=how.name or path.name))

    def forms(self, path: Path, backend: str | None) -> Iterator[Form]:
        served = _served(path)
        yield from target_of(served).forms(served, backend)

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        served = _served(path)
        return target_of(served).guarantee(served, asked, model)

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        return [
            f"wrote {written.repository}/{written.name} ({', '.join(written.files)})",
            f"serve it, with the repository at /models: {written.command}",
            *(f"note: {note}" for note in written.notes),
        ]


def _served(path: Path) -> Path:
    """The file inside a model's folder that the server runs, where it runs outside of the server too."""
    file = path / VERSION / "model.onnx"
    if not file.is_file():
        raise ConfigError(f"{path} serves an engine, whose record stayed beside the original; verify that one")
    return file
