"""Every method, two pairs and the pyramid as ONNX files in every precision: types read back, numbers compared."""

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.variants import SIZE, images_for, lively_
from vitslim.methods import convert
from vitslim.models.sret_pyramid import SretPyramid
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.result import OnnxExport
from vitslim.targets.onnx.types import precision_errors

# Two blocks, for the time of an export grows with the number of nodes: a dense one and one that the method changes.
SPARSE: dict[str, Any] = {"layers": (1,), "keep_rate": 0.4, "n_down": 4}
SHARED: dict[str, Any] = {"keep_first": 0, "keep_last": 0}
EVOLVED: dict[str, Any] = {"stages": (1,)}
STEPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "skipat": [("skipat", {"layers": (1,)})],
    "skipat_narrow": [("skipat", {"layers": (1,), "expansion": 0.5, "kernel_size": 3})],
    "skipat_identity": [("skipat", {"layers": (1,), "identity": True})],
    "skipat_prefix": [("skipat", {"layers": (1,), "prefix": "linear"})],
    "evo_vit": [("evo_vit", EVOLVED)],
    "evo_vit_slow_fast": [("evo_vit", {**EVOLVED, "placeholders": "slow_fast"})],
    "sret": [("sret", {**SHARED, "recursions": 2, "nll": True})],
    "sret_sliced": [("sret", {**SHARED, "slices": (2, 4)})],
    "sparsifiner": [("sparsifiner", SPARSE)],
    "sparsifiner_tile": [("sparsifiner", {**SPARSE, "granularity": "tile", "tile": 16})],
    "sparsifiner_image": [("sparsifiner", {**SPARSE, "granularity": "image", "k": 8})],
    "sparsifiner_pruned": [("sparsifiner", {**SPARSE, "token_keep_rate": 0.7, "prune_layers": (0,)})],
    "skipat+sret": [("skipat", {"layers": (1,), "expansion": 0.5}), ("sret", SHARED)],
    "sparsifiner+evo_vit": [("sparsifiner", SPARSE), ("evo_vit", EVOLVED)],
}
# In half precision the graph has the same operators with casts between them: one case for each way to attend, to choose
# and to share is in fp16, one in bfloat16, what has operators of its own besides in fp32. The rest runs with --slow.
USUAL = dict.fromkeys(("skipat", "evo_vit", "sret", "sparsifiner", "sparsifiner_image", "sparsifiner_pruned"), "fp32")
USUAL |= dict.fromkeys(("skipat_prefix", "evo_vit_slow_fast", "sret_sliced", "sparsifiner_tile"), "fp16")
USUAL["sparsifiner+evo_vit"] = "bf16"
FILES = [
    pytest.param(name, precision, marks=() if USUAL.get(name) == precision else pytest.mark.slow)
    for name in STEPS
    for precision in ("fp32", "fp16", "bf16")
]
ELEMENTS = {"fp32": "float", "fp16": "float16", "bf16": "bfloat16"}


@cache
def model(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Of 16 patches one tile of 16 would be the whole image.
        finer = {"patch_size": 4} if name == "sparsifiner_tile" else {}
        made: nn.Module = VisionTransformer(**{**SIZE, "depth": 2, **finer}).eval()
        for method, options in STEPS[name]:
            made = convert(made, method, **options)
    # Where a method starts as the identity, a lost part of it would not show.
    return lively_(copy.deepcopy(made)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")

    @cache
    def export(name: str, precision: str) -> tuple[Path, OnnxExport]:
        path = folder / f"{name}-{precision}.onnx"
        return path, export_onnx(model(name), path, precision=precision)

    return export


@pytest.mark.parametrize(("name", "precision"), FILES)
def test_a_file_computes_in_its_precision_with_softmax_and_norms_in_float32(exported, name, precision):
    path, record = exported(name, precision)
    # Products on the way to the outputs, every softmax, what every normalisation accumulates in.
    assert precision_errors(path, precision) == []
    assert record.types["Softmax"].keys() == {"float"}
    assert record.types["Conv"].keys() == record.types["LayerNormalization"].keys() == {ELEMENTS[precision]}
    assert record.types["MatMul"][ELEMENTS[precision]] >= 8
    # A key set per query has no kernel.
    assert record.operators.get("SparseAttention", 0) == (name == "sparsifiner_tile")


@pytest.mark.parametrize(("name", "precision"), FILES)
def test_a_file_computes_what_torch_does(exported, name, precision):
    path, record = exported(name, precision)
    report = verify(model(name), path, images_for(model(name), batch=7))
    assert report.failures() == []
    assert [check.batch for check in report.checks[:2]] == [1, 3]
    forms = set() if precision == "bf16" else {"as written", *(["inlined"] if record.functions else [])}
    forms |= set() if precision == "fp32" else {"rounded"}
    assert {check.form for check in report.checks} == forms
    # It did compute in it: the next finer precision would lie far nearer.
    least = {"fp32": 0.0, "fp16": 1e-5, "bf16": 2e-4}[precision]
    assert all(check.max_abs > least * check.scale for check in report.checks)


def test_the_pyramid_in_half_precision_runs_in_a_session_of_anybody(tmp_path):
    options = {"base_dims": (16, 16, 16), "heads": (2, 4, 8), "depths": (2, 2, 2), "unique": (1, 1, 1)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pyramid = SretPyramid(64, num_classes=10, **options).eval()
    path = tmp_path / "m.onnx"
    export_onnx(pyramid, path, precision="fp16")
    assert precision_errors(path, "fp16") == []
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert verify(pyramid, path, images).failures() == []
    # With all of ONNX Runtime's optimisations, one of which takes the process down on some float16 files.
    script = "import onnxruntime; onnxruntime.InferenceSession('m.onnx', providers=['CPUExecutionProvider'])"
    ran = subprocess.run([sys.executable, "-c", script], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, f"exit code {ran.returncode}: {ran.stderr}"
