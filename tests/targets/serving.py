"""Small exported files, and an engine that looks like one from outside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.variants import SIZE, lively_
from vitslim import checkpoint
from vitslim.files import write_json
from vitslim.methods import convert
from vitslim.runtime.engine import EngineRecord, FusedMha, PluginUse, TensorProfile, file_sha256, record_path
from vitslim.targets.onnx.export import export_onnx

LABELS = [f"class {index}" for index in range(10)]


def small(method: str | None = None, **options: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = lively_(VisionTransformer(**SIZE | {"depth": 2})).eval()
    return dense if method is None else lively_(convert(dense, method, **options)).eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with class names and its ONNX file. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("deploy") / "little-vit"
    model = small("skipat", layers=(1,))
    checkpoint.save(model, folder, class_names=LABELS)
    export_onnx(model, folder / "export" / "model.onnx")
    return folder


def engine_record(engine: Path, onnx: Path | None, **changes: Any) -> EngineRecord:
    """A record as the TensorRT builder writes it, for the file ``engine``."""
    known: dict[str, Any] = {
        "flavor": "tensorrt",
        "tensorrt": "11.4.0",
        "gpu": "NVIDIA H100",
        "compute_capability": "9.0",
        "driver": "600.1",
        "cuda": "13.0",
        "onnx_sha256": file_sha256(onnx) if onnx else "0" * 64,
        "graph_sha256": "0" * 64,
        "weights_sha256": "0" * 64,
        "engine_sha256": file_sha256(engine),
        "precision": "fp16",
        "profiles": [TensorProfile(name="images", min=[1, 3, 32, 32], opt=[8, 3, 32, 32], max=[64, 3, 32, 32])],
        "inputs": [{"name": "images", "dtype": "float32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 10]}],
        "plugins": PluginUse(),
        "layers": None,
        "layers_source": None,
        "matrix_types": {"HALF": 8},
        "fused_mha": FusedMha(found=2, expected=2),
        "unknown": {},
        "options": {"batch": [1, 8, 64]},
        "is_refittable": False,
        "has_weights": True,
        "changes": [],
        "metadata": {},
        "build_log_sha256": "0" * 64,
        "seconds": 1.0,
        "versions": {},
    }
    return EngineRecord(**{**known, **changes})


def write_engine(folder: Path, onnx: Path | None = None, **changes: Any) -> Path:
    """An engine file, whose content nobody looks at before a GPU does, with its record."""
    engine = folder / "model-fp16.engine"
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(b"a plan")
    record = engine_record(engine, onnx, **changes)
    write_json(record_path(engine), record.model_dump(mode="json"))
    return engine
