"""The programs in examples/ that run an exported file need its runtime, and neither vitslim nor torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from tests.targets.serving import small
from vitslim.models import preprocessing
from vitslim.runtime import Precision
from vitslim.targets.base import TARGETS, ExportRequest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ALONE = """
import runpy, sys
sys.modules["torch"] = sys.modules["vitslim"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("target", "runtime", "precision"),
    [("onnx", "onnxruntime", "fp32"), ("openvino", "openvino", "fp32"), ("openvino", "openvino", "fp16")],
)
def test_a_picture_is_classified_by_the_runtime_alone(
    target: str, runtime: str, precision: Precision, tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    kind, model = TARGETS.get(target), small()
    file, picture = tmp_path / f"model{kind.suffix}", tmp_path / "picture.png"
    labels = [f"kind {index}" for index in range(10)]
    kind.write(ExportRequest(file, precision, lambda: model, metadata={"labels": labels}))
    # smooth, so that how it is cropped and scaled matters little
    waves = np.add.outer(np.sin(np.arange(40) / 6), np.cos(np.arange(60) / 9))[..., None] * [40, 25, 10] + 128
    Image.fromarray(waves.astype(np.uint8)).save(picture)
    program = [sys.executable, "-c", ALONE, str(EXAMPLES / f"run_{target}.py"), str(file), str(picture)]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = preprocessing(model)
    prepare = create_transform(
        (3, *wanted.image_size),
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        std=wanted.std,
        crop_pct=wanted.crop_pct,
    )
    with torch.no_grad():
        expected = model(prepare(Image.open(picture))[None])[0]
    assert [line.split(maxsplit=1)[1] for line in printed] == [labels[index] for index in expected.topk(5).indices]
    scores = torch.tensor([float(line.split()[0]) for line in printed])
    torch.testing.assert_close(scores, expected.topk(5).values, rtol=0.0, atol=0.05)
