"""The client of a Triton server, and the C++ program around an engine."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.targets.serving import LABELS
from tests.targets.triton_schema import parse
from vitslim.runtime import OrtRunner
from vitslim.targets.triton.repository import write_model_repository
from vitslim.targets.triton.servable import choose_artifact, read_servable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CUDA_INCLUDES = ("/usr/local/cuda/include", "/usr/include")


# --- Python client --------------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Any:
    spec = importlib.util.spec_from_file_location("triton_client", EXAMPLES / "triton_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeInput:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, values: Any) -> None:
        assert list(values.shape) == self.shape
        self.values = values


class FakeServer:
    """What the client asks of a server, answered from the model repository itself."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def get_model_config(self, name: str) -> dict[str, Any]:
        from google.protobuf.json_format import MessageToDict

        config = MessageToDict(
            parse((self.repository / name / "config.pbtxt").read_text()), preserving_proto_field_name=True
        )
        # Triton's JSON shows the map as a map.
        config["parameters"] = {one["key"]: one["value"] for one in config["parameters"]}
        return config

    def async_infer(self, name: str, inputs: list[FakeInput], outputs: list[Any]) -> Any:
        with OrtRunner(self.repository / name / "1" / "model.onnx") as runner:
            scores = runner.run(torch.from_numpy(inputs[0].values))
        labels = (self.repository / name / "labels.txt").read_text().splitlines()
        best = scores.topk(outputs[0].class_count, dim=1)
        rows = [
            [f"{score:f}:{index}:{labels[index]}".encode() for score, index in zip(values, order, strict=True)]
            for values, order in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return SimpleNamespace(get_result=lambda: SimpleNamespace(as_numpy=lambda _: np.array(rows)))


def test_the_client_prepares_images_as_the_config_says(
    client: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    module = ModuleType("tritonclient.http")
    module.InferInput = FakeInput
    module.InferRequestedOutput = lambda name, class_count: SimpleNamespace(name=name, class_count=class_count)
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)
    write_model_repository(read_servable(choose_artifact(saved)), tmp_path, name="vit", labels=LABELS)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    best = client.classify(FakeServer(tmp_path), "vit", [tmp_path / "image.png"] * 2, top=3)
    config = parse((tmp_path / "vit/config.pbtxt").read_text())
    parameters = {one.key: one.value.string_value for one in config.parameters}
    image = client.prepare(tmp_path / "image.png", parameters, np.float32)
    with OrtRunner(choose_artifact(saved)) as runner:
        order = runner.run(torch.from_numpy(image[None])).argsort(dim=1, descending=True)[0, :3]
    assert [line.split(" ", 1)[1] for line in best[0]] == [LABELS[index] for index in order.tolist()]
    assert best[0] == best[1]


def test_an_image_of_the_models_size_is_only_normalised(client: Any, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    parameters = {
        "image_size": "[32, 32]",
        "mean": "[0.5, 0.4, 0.3]",
        "std": "[0.2, 0.2, 0.1]",
        "interpolation": "bicubic",
        "crop_pct": "1.0",
    }
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]
    found = client.prepare(tmp_path / "image.png", parameters, np.float32)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)  # float32 around 0
    raw = client.prepare(tmp_path / "image.png", {**parameters, "input": json.dumps({"form": "uint8-nhwc"})}, np.uint8)
    np.testing.assert_array_equal(raw, pixels)


# --- C++ ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compile_cpp(tmp_path: Path) -> Callable[[], Path]:
    tensorrt = os.environ.get("VITSLIM_TENSORRT_INCLUDE")
    compiler = shutil.which("g++") or shutil.which("clang++")
    cuda = next((one for one in CUDA_INCLUDES if (Path(one) / "cuda_runtime_api.h").is_file()), None)
    if not tensorrt:
        pytest.skip("VITSLIM_TENSORRT_INCLUDE does not name the folder of TensorRT's headers")
    if compiler is None or cuda is None:
        pytest.skip("a C++ compiler is missing" if compiler is None else "CUDA's headers are missing")

    def compile_() -> Path:
        target = tmp_path / "trt_infer.o"
        words = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-deprecated-declarations"]
        words += ["-isystem", tensorrt, "-isystem", cuda, "-c", str(EXAMPLES / "trt_infer.cpp"), "-o", str(target)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    return compile_


def test_the_program_for_an_engine_compiles_without_a_warning(compile_cpp: Callable[[], Path]) -> None:
    assert compile_cpp().stat().st_size > 0
