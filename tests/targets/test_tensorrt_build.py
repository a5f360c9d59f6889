"""Engines built for real, with TensorRT-RTX, which needs no GPU for that."""

import json
import shutil
import sys
from functools import cache

import pytest
import timm
import torch

from tests.methods.cases import SPARSE
from tests.variants import dense
from vitslim.errors import (
    CheckFailedError,
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    UnsupportedModelError,
)
from vitslim.methods import convert
from vitslim.pipeline import export
from vitslim.runtime.engine import file_sha256, read_record, record_path
from vitslim.runtime.machine import Machine
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.tensorrt import refit
from vitslim.targets.tensorrt.build import build_engine, describe
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.process import COMMAND

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (vitslim[rtx]); no engine can be built here")

OPSET = 20
RTX = {"flavor": "rtx", "batch": (1, 2, 4)}
TO_RTX = {"to": "rtx", "batch": (1, 2, 4)}
# The time of an export and of a build grows with the number of blocks: one that attends as always, and one or two that
# the method changes.
METHODS = {
    "dense": {},
    "skipat": {"layers": (1, 2)},
    "evo_vit": {"stages": (1,)},
    "sparsifiner": {**SPARSE, "layers": (1,)},
    "sret": {"keep_last": 0},
}
BLOCKS = {"dense": 2, "skipat": 3, "evo_vit": 2, "sparsifiner": 2, "sret": 3}
FUSED = {**BLOCKS, "skipat": 1}


def model(name):
    tiny = dense("vit_layer_scale", depth=BLOCKS[name])
    return tiny if name == "dense" else convert(tiny, name, **METHODS[name])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The ONNX file of a method; the same request is exported once."""
    folder = tmp_path_factory.mktemp("engines")

    @cache
    def write(name, precision="fp16", opset=OPSET):
        path = folder / f"{name}-{precision}-{opset}.onnx"
        export_onnx(model(name), path, precision=precision, opset=opset)
        return path

    return write


@pytest.fixture(scope="module")
def built(written):
    """The engine of a method and what stands beside it; each is built once."""

    @cache
    def build(name, precision="fp16"):
        engine = written(name, precision).with_suffix(".engine")
        return engine, build_engine(written(name, precision), engine, EngineOptions(**RTX, precision=precision))

    return build


# In fp32 nothing is fused, whatever the method, and test_opsets.py builds one such engine; shared weights are plain
# products.
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=pytest.mark.slow if precision == "fp32" or name == "sret" else ())
        for precision in ("fp32", "fp16")
        for name in FUSED
    ],
)
def test_every_method_builds_in_its_precision_and_fuses_in_half(built, name, precision):
    engine, record = built(name, precision)
    assert record == read_record(engine)
    assert record.engine_sha256 == file_sha256(engine)
    assert (record.flavor, record.precision, record.gpu) == ("rtx", precision, None)
    assert [(one.name, one.min[0], one.opt[0], one.max[0]) for one in record.profiles] == [("images", 1, 2, 4)]
    wanted = {"fp32": ("FLOAT", "Float"), "fp16": ("HALF", "Half")}[precision]
    # The selection of keys multiplies in float32 whatever the file's precision.
    assert record.matrix_types[wanted[0]] > sum(record.matrix_types.values()) / 2
    assert record.layers_source == "build log"
    assert set(record.layers["gemm"]) <= {"Half", "Float"}
    assert record.layers["gemm"][wanted[1]] > 0
    assert (record.fused_mha.found, record.fused_mha.expected) == (FUSED[name] * (precision == "fp16"), FUSED[name])


def test_the_record_says_what_the_engine_was_made_from(built, written):
    engine, record = built("dense")
    assert record.onnx_sha256 == file_sha256(written("dense"))
    assert json.loads(record.metadata["image_size"]) == [32, 32]
    assert record.plugins.used == []
    assert [(one.name, one.dtype, one.shape) for one in record.inputs] == [("images", "float32", [-1, 3, 32, 32])]
    assert [(one.name, one.dtype, one.shape) for one in record.outputs] == [("logits", "float32", [-1, 10])]
    assert (record.has_weights, record.is_refittable) == (True, False)
    assert record.rebuild_command() == (
        "vitslim export DIR --to rtx --precision fp16 --batch 1:2:4 --plugins auto --overwrite"
    )
    assert describe(record).startswith("fp16, fused attention 2/2, TensorRT-RTX")
    log = engine.with_name(engine.name + ".log")
    assert record.build_log_sha256 == file_sha256(log)
    assert "[VERBOSE]" not in log.read_text()
    assert not list(engine.parent.glob(".*.part"))


def test_fused_attention_that_is_required_and_missing_fails_and_leaves_nothing(written, tmp_path):
    engine = tmp_path / "m.engine"
    options = EngineOptions(**RTX, precision="fp32", require_fused_mha=True)
    with pytest.raises(CheckFailedError, match=r"0/2 attentions became one kernel \(TensorRT fuses .* fp16 and bf16"):
        build_engine(written("dense", "fp32"), engine, options)
    assert not engine.exists()
    assert not record_path(engine).exists()


def test_the_attention_op_builds_in_half_although_it_asks_for_a_float32_softmax(written, tmp_path):
    record = build_engine(
        written("dense", opset=23), tmp_path / "m.engine", EngineOptions(**RTX, require_fused_mha=True)
    )
    assert (record.fused_mha.found, record.fused_mha.expected) == (2, 2)


def test_a_file_that_is_float32_inside_does_not_pass_for_half(written, tmp_path):
    path = tmp_path / "liar.onnx"
    file = onnx.load(written("dense", "fp32"))
    next(entry for entry in file.metadata_props if entry.key == "precision").value = "fp16"
    onnx.save(file, path)
    with pytest.raises(CheckFailedError, match=r"not in fp16: of its products with weights 0 of 10 are"):
        build_engine(path, tmp_path / "liar.engine", EngineOptions(**RTX))
    assert not (tmp_path / "liar.engine").exists()


def test_a_node_that_the_parser_does_not_know_is_named_with_its_module(written, tmp_path):
    path = tmp_path / "strange.onnx"
    file = onnx.load(written("dense"))
    node = [node for node in file.graph.node if node.op_type == "Gelu"][1]
    node.op_type, node.domain = "Mystery", "elsewhere"
    file.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(file, path)
    with pytest.raises(UnsupportedModelError, match=r"\(Mystery\) in module 'blocks\.1\.mlp\.act'"):
        build_engine(path, tmp_path / "m.engine", EngineOptions(**RTX))
    assert "Mystery" in (tmp_path / "m.engine.log").read_text()


def test_a_failed_build_leaves_the_earlier_engine_as_it_was(built, written, tmp_path):
    engine, record = built("dense")
    copy = tmp_path / "m.engine"
    shutil.copy(engine, copy)
    shutil.copy(record_path(engine), record_path(copy))
    dying = [sys.executable, "-c", "import os; os.abort()"]
    with pytest.raises(CheckFailedError, match="SIGABRT"):
        build_engine(written("dense"), copy, EngineOptions(**RTX), command=dying)
    assert read_record(copy) == record
    assert file_sha256(copy) == record.engine_sha256
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit, which limits what a process may do, is not here")
@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        # Less than the engine takes: the write fails as it does on a full disk.
        ("--fsize=1000000", CheckpointError, "could not be written"),
        # Less than building takes, of which TensorRT dies or which it says.
        ("--as=300000000", CheckFailedError, "the builder|TensorRT built nothing"),
    ],
)
def test_a_builder_without_disk_or_memory_leaves_nothing(written, tmp_path, limit, error, message):
    engine = tmp_path / "m.engine"
    with pytest.raises(error, match=message):
        build_engine(written("dense"), engine, EngineOptions(**RTX), command=["prlimit", limit, *COMMAND])
    assert not engine.exists()
    assert not record_path(engine).exists()


def test_what_needs_a_gpu_or_a_plugin_is_refused_before_the_builder_starts(written, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="on a GPU, none is usable here"):
        build_engine(written("dense"), tmp_path / "m.engine", EngineOptions(**RTX, strip_plan=True))
    with pytest.raises(ConfigError, match="Attention operators, which TensorRT-RTX does not build in fp32"):
        build_engine(written("dense", "fp32", 23), tmp_path / "m.engine", EngineOptions(**RTX, precision="fp32"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_refit_reaches_tensorrt_and_changes_nothing_where_it_cannot_open_the_engine(
    built, written, tmp_path, monkeypatch
):
    original, record = built("dense")
    engine = tmp_path / "m.engine"
    shutil.copy(original, engine)
    # A GPU and exchangeable weights, neither of which TensorRT-RTX can have on a CPU; the rest is real.
    record_path(engine).write_text(record.model_copy(update={"is_refittable": True}).model_dump_json())
    monkeypatch.setattr(refit, "this_machine", lambda: Machine(gpu="NVIDIA RTX 5090", compute_capability="12.0"))
    before = engine.read_bytes(), record_path(engine).read_bytes()
    with pytest.raises(
        CheckFailedError, match=r"TensorRT cannot open the engine: .*CUDA driver version is insufficient"
    ):
        refit.refit_engine(engine, written("dense"))
    assert (engine.read_bytes(), record_path(engine).read_bytes()) == before
    with pytest.raises(ConfigError, match="computes something else"):
        refit.refit_engine(engine, written("skipat"))


@pytest.mark.parametrize("name", [pytest.param("dense", marks=pytest.mark.slow), "sparsifiner"])
def test_bfloat16_builds_and_fuses(tmp_path, name):
    record = export(model(name), tmp_path / "m.engine", **TO_RTX, precision="bf16", require_fused_mha=True)
    assert record.matrix_types["BF16"] > sum(record.matrix_types.values()) / 2
    assert record.layers["gemm"]["BFloat16"] > 0


def test_free_image_sizes_build_where_position_embeddings_only_grow(tmp_path):
    free = dense("vit_dynamic_size")
    record = export(free, tmp_path / "m.engine", **TO_RTX, precision="fp16", image_size=(32, 48, 64))
    assert record.profiles[0].min == [1, 3, 32, 32]
    assert record.profiles[0].max == [4, 3, 64, 64]
    assert record.changes == ["antialias was taken off the Resize nodes, which only enlarge"]
    with pytest.raises(ConfigError, match="antialiasing, which TensorRT does not know; ask for --image-size from 32"):
        export(free, tmp_path / "n.engine", **TO_RTX, precision="fp16", image_size=(16, 32, 64))


def test_an_onnx_file_is_built_as_it_stands(written, tmp_path):
    path = tmp_path / "m.onnx"
    shutil.copy(written("dense"), path)
    assert export(path, **TO_RTX).onnx_sha256 == file_sha256(path)
    assert (tmp_path / "m.engine").is_file()
    # Nobody has to repeat the precision that the file tells.
    assert export(written("dense", "fp32"), tmp_path / "n.engine", **TO_RTX).precision == "fp32"
    with pytest.raises(ConfigError, match="needs a path"):
        export(model("dense"), **TO_RTX)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_deit_small_builds_with_every_attention_fused(tmp_path, precision):
    deit = timm.create_model("deit_small_patch16_224", pretrained=False).eval()
    export_onnx(deit, tmp_path / "deit.onnx", precision=precision, opset=OPSET)
    options = EngineOptions(flavor="rtx", precision=precision, require_fused_mha=precision == "fp16")
    record = build_engine(tmp_path / "deit.onnx", tmp_path / "deit.engine", options)
    assert record.fused_mha.expected == 12
    assert record.matrix_types == {"HALF" if precision == "fp16" else "FLOAT": 50}
