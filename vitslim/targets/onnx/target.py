"""ONNX files as a target, run by ONNX Runtime."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim.runtime import OrtRunner, Precision
from vitslim.runtime.ort_session import Provider
from vitslim.targets.base import ALL_PRECISIONS, Backend, ExportRequest, Opening, Target, register_target
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.forms import forms_of, showing_inside
from vitslim.targets.onnx.guarantee import guarantee_of
from vitslim.targets.onnx.int8 import export_int8
from vitslim.targets.onnx.result import OnnxExport
from vitslim.targets.parity.bisect import Opened
from vitslim.targets.parity.comparing import Form
from vitslim.targets.parity.guarantee import Guarantee

_RUNTIME = ("onnxruntime",)
_PROVIDERS: dict[str, Provider] = {"ort": "cpu", "ort-cuda": "cuda", "ort-tensorrt": "tensorrt"}


@register_target("onnx")
class OnnxTarget(Target):
    """One ``.onnx`` file for every runtime; its options are those of ``export_onnx``."""

    title = "ONNX file"
    suffix = ".onnx"
    needs = ("onnx", "onnxscript")
    extra = "onnx"
    precisions = (*ALL_PRECISIONS, "int8")
    leaves_sizes_free = True
    backends = (
        Backend("ort", preference=1, needs=_RUNTIME),
        Backend("ort-cuda", preference=2, needs_gpu=True, needs=_RUNTIME),
        # Its engines, built at the first images, are worth their minutes only to who asks for them.
        Backend("ort-tensorrt", needs_gpu=True, needs=_RUNTIME),
    )

    def option_names(self) -> list[str]:
        parameters = inspect.signature(export_onnx).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "precision"]

    def name_parts(self, options: Mapping[str, Any]) -> list[str]:
        input_format = str(options.get("input_format", "normalized"))
        given = {
            "inlined": options.get("inline"),
            "any-size": options.get("dynamic_image_size"),
            input_format: input_format != "normalized",
        }
        return [part for part, is_given in given.items() if is_given]

    def write(self, request: ExportRequest, **options: Any) -> OnnxExport:
        metadata = {**request.metadata, **(options.pop("metadata", None) or {})}
        model = request.model()
        if request.precision == "int8":
            return export_int8(model, request.path, metadata=metadata, judge=request.judge, **options)
        return export_onnx(model, request.path, precision=request.precision, metadata=metadata, **options)

    def load(self, path: Path, how: Opening) -> OrtRunner:
        provider = _PROVIDERS[how.backend or "ort"]
        if provider == "cpu" and how.device is not None and torch.device(how.device).type == "cuda":
            provider = "cuda"
        return OrtRunner(path, threads=how.threads, provider=provider, name=how.name)

    def forms(self, path: Path, backend: str | None) -> Iterator[Form]:
        yield from forms_of(path) if backend is None else super().forms(path, backend)

    def inside(self, path: Path) -> Opened:
        return showing_inside(path)

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        return guarantee_of(path, asked, model)

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        size_mib = request.path.stat().st_size / 2**20
        lines = [f"wrote {request.path} ({size_mib:.1f} MiB, opset {written.opset})"]
        if written.data_file is not None:
            data_mib = written.data_bytes / 2**20
            lines.append(f"its weights lie in {written.data_file} ({data_mib:.1f} MiB); move both together")
        if written.functions:
            nodes = ", ".join(written.functions)
            lines.append(f"{nodes}: a node that a plugin may take, and a function for all others (--inline)")
        lines += [] if written.sensitivity is None else written.sensitivity.lines()
        return [*lines, *(f"note: {note}" for note in written.notes)]
