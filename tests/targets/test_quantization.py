"""Model-Optimizer is another environment's business: what it is asked, and what becomes of its answer."""

import stat
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from tests.targets.serving import small
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.graph import choosing_products
from vitslim.targets.onnx.quantization import quantize_onnx
from vitslim.targets.triton.servable import choose_artifact

# Stands for the interpreter of an environment with nvidia-modelopt: it answers with its version, then puts Q/DQ nodes
# around the first weight, and leaves the command line and the images beside the result.
STAND_IN = """#!{python}
import sys, shutil
if sys.argv[1] == "-c":
    print("0.47.0"); sys.exit()
import numpy as np, onnx
from onnx import helper, numpy_helper
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
open({log!r}, "w").write("\\n".join(sys.argv))
shutil.copy(given["--calibration_data_path"], {images!r})
if {fails}:
    print("INFO all is well"); print("AssertionError: no MatMul", file=sys.stderr); sys.exit(1)
model = onnx.load(given["--onnx_path"])
weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
scale = np.abs(numpy_helper.to_array(weight)).max() / 127
constants = {{"s": np.float32(scale), "z": np.int8(0)}}
model.graph.initializer.extend([numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
for node in model.graph.node:
    for index, name in enumerate(node.input):
        if name == weight.name: node.input[index] = "dq"
model.graph.node.insert(0, helper.make_node("QuantizeLinear", [weight.name, "s", "z"], ["q"]))
model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
del model.metadata_props[:]
onnx.save(model, given["--output_path"])
"""


def stand_in(tmp_path: Path, fails: bool = False) -> Path:
    path = tmp_path / "python"
    path.write_text(
        STAND_IN.format(
            python=sys.executable, log=str(tmp_path / "asked"), images=str(tmp_path / "images.npz"), fails=fails
        )
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_file_comes_back_quantized_and_described(saved: Path, tmp_path: Path) -> None:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = quantize_onnx(
        choose_artifact(saved),
        tmp_path / "int8.onnx",
        images,
        precision="int8",
        python=stand_in(tmp_path),
        calibration_file=tmp_path / "kept.npz",
    )
    asked = (tmp_path / "asked").read_text().split("\n")
    for option, value in (
        ("--quantize_mode", "int8"),
        ("--high_precision_dtype", "fp16"),
        ("--calibration_eps", "cpu"),
    ):
        assert asked[asked.index(option) + 1] == value
    assert asked[1:3] == ["-m", "modelopt.onnx.quantization"]
    for path in ("images.npz", "kept.npz"):
        given = np.load(tmp_path / path)  # without pickle
        assert given.files == ["images"]
        np.testing.assert_array_equal(given["images"], images.numpy())
    assert (found.modelopt, found.calibration_images, found.quantizers) == ("0.47.0", 6, 1)
    metadata = {one.key: one.value for one in onnx.load(tmp_path / "int8.onnx").metadata_props}
    assert metadata["producer"] == "vitslim"
    assert metadata["quantization"] == '{"precision": "int8"}'


def test_what_chooses_keys_stays_in_high_precision(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    export_onnx(small("sparsifiner", granularity="query"), source)
    found = quantize_onnx(source, tmp_path / "fp8.onnx", torch.randn(2, 3, 32, 32), python=stand_in(tmp_path))
    asked = (tmp_path / "asked").read_text().split("\n")
    assert len(found.kept) >= 1
    assert [name.replace("\\", "") for name in asked[asked.index("--nodes_to_exclude") + 1 :]] == found.kept
    assert not onnx.load(tmp_path / "fp8.onnx").functions


def test_products_before_a_sort_are_found_through_sums_and_casts() -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["scores"], "choosing"),
        helper.make_node("Cast", ["scores"], ["wide"], to=1),
        helper.make_node("Add", ["wide", "always"], ["sum"]),
        helper.make_node("TopK", ["sum", "k"], ["values", "order"]),
        helper.make_node("MatMul", ["a", "order"], ["out"], "other"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert choosing_products(model) == ["choosing"]


def test_a_failure_shows_its_last_line_and_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"exit code 1.*AssertionError: no MatMul"):
        quantize_onnx(
            choose_artifact(saved), tmp_path / "q.onnx", torch.randn(2, 3, 32, 32), python=stand_in(tmp_path, True)
        )
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("python", [None, "/nowhere/python"])
def test_a_missing_environment_says_how_to_make_one(python: str | None, saved: Path, tmp_path: Path) -> None:
    if python is None and find_spec("modelopt") is not None:
        pytest.skip("nvidia-modelopt is installed here")
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'nvidia-modelopt\[onnx\]>=0\.47'.*--modelopt-python"
    ):
        quantize_onnx(choose_artifact(saved), tmp_path / "q.onnx", torch.randn(2, 3, 32, 32), python=python)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "q.engine"}, "wanted a path that ends in .onnx"),
        ({"calibration": torch.zeros(0, 3, 32, 32)}, "calibration needs images"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    options: dict[str, Any], message: str, saved: Path, tmp_path: Path
) -> None:
    given = {"path": tmp_path / "q.onnx", "calibration": torch.zeros(1, 3, 32, 32), **options}
    with pytest.raises(ConfigError, match=message):
        quantize_onnx(choose_artifact(saved), python=stand_in(tmp_path), **given)


def test_a_file_that_is_not_float32_or_not_there_is_refused(tmp_path: Path) -> None:
    export_onnx(small(), tmp_path / "half.onnx", precision="fp16")
    with pytest.raises(ConfigError, match=r"half\.onnx is fp16; Model-Optimizer is given the float32 file"):
        quantize_onnx(tmp_path / "half.onnx", tmp_path / "q.onnx", torch.zeros(1, 3, 32, 32), python=stand_in(tmp_path))
    with pytest.raises(CheckpointError, match="vitslim export DIR --to onnx"):
        quantize_onnx(tmp_path / "no.onnx", tmp_path / "q.onnx", torch.zeros(1, 3, 32, 32), python=stand_in(tmp_path))


def test_scores_are_followed_through_the_softmax_of_class_attention(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(small("evo_vit"), path, inline=True)
    graph = onnx.load(path)
    assert choosing_products(graph)
    # The other way round: what chooses nothing is free to be rounded.
    export_onnx(small("skipat"), path, inline=True)
    assert not choosing_products(onnx.load(path))
