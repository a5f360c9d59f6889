"""Precisions, functions, weights beside the file, bytes as input, free sizes."""

import copy
import errno
import importlib
import json
import os
from functools import partial

import onnx
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.methods.cases import CASES
from tests.variants import dense, images_for
from vitslim.errors import CheckFailedError, CheckpointError, MissingDependencyError, UnsupportedModelError
from vitslim.methods import convert
from vitslim.runtime import OrtRunner
from vitslim.targets import verify
from vitslim.targets.input_format import format_of
from vitslim.targets.onnx import slimming
from vitslim.targets.onnx import weights as onnx_weights
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.types import operator_types, precision_errors, require_precision
from vitslim.targets.onnx.weights import data_path, external_files
from vitslim.targets.record import ExportRecord


def tiny(**options) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=10, **options
        ).eval()


def sparse() -> nn.Module:
    # One sparse block, the other dense; four tiles of 64 patches, since smaller ones have no kernel.
    options = {**CASES["sparsifiner_tile"].options, "layers": (1,), "tile": 16}
    return convert(dense("vit_plain", depth=2, patch_size=4), "sparsifiner", **options)


@pytest.mark.parametrize(
    ("precision", "element", "opset"), [("fp16", "float16", 20), ("bf16", "bfloat16", 22), ("bf16", "bfloat16", 23)]
)
def test_a_half_precision_file_computes_in_it_and_keeps_softmax_in_float32(tmp_path, precision, element, opset):
    asked = opset if opset == 23 else None
    record = export_onnx(tiny(), tmp_path / "m.onnx", precision=precision, opset=asked)
    assert record.opset == opset
    assert record.types == operator_types(tmp_path / "m.onnx")
    assert record.types["MatMul"].keys() == {element}
    attention = {"Attention": {element: 1}} if opset == 23 else {"Softmax": {"float": 1}}
    assert attention.items() <= record.types.items()
    assert precision_errors(tmp_path / "m.onnx", precision) == []
    with pytest.raises(CheckFailedError, match=rf"not compute in fp32: 'patch_embed.proj/Conv' \(Conv\).*{element}"):
        require_precision(tmp_path / "m.onnx", "fp32")


def test_a_softmax_in_half_precision_breaks_the_guarantee(tmp_path):
    export_onnx(tiny(), tmp_path / "m.onnx", precision="fp16", opset=23)
    model = onnx.load(tmp_path / "m.onnx")
    for node in model.graph.node:
        kept = [one for one in node.attribute if one.name != "softmax_precision"]
        del node.attribute[:]
        node.attribute.extend(kept)
    assert "wanted softmax_precision = float" in precision_errors(model, "fp16")[0]


def test_bfloat16_is_verified_by_rounding_after_every_operator(tmp_path):
    model = tiny()
    export_onnx(model, tmp_path / "m.onnx", precision="bf16")
    report = verify(model, tmp_path / "m.onnx", images_for(dense("vit_plain"), batch=4))
    assert report.failures() == []
    assert {check.form for check in report.checks} == {"rounded"}
    # It did round: float32 would lie a thousand times nearer.
    assert all(check.max_abs > 1e-4 * check.scale for check in report.checks)
    assert "ONNX Runtime computes no bfloat16 on a CPU" in report.notes[0]
    with pytest.raises(
        MissingDependencyError, match=r"m.onnx is in bfloat16, .* not compute on a CPU; run it on a GPU"
    ):
        OrtRunner(tmp_path / "m.onnx")


def test_sparse_attention_is_a_node_with_a_function_that_every_runtime_inlines(tmp_path):
    model, images = sparse(), images_for(dense("vit_plain"), batch=3)
    record = export_onnx(model, tmp_path / "m.onnx")
    assert record.functions == ["vitslim::SparseAttention"]
    file = onnx.load(tmp_path / "m.onnx")
    (node,) = [one for one in file.graph.node if one.op_type == "SparseAttention"]
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert (given["plugin_namespace"], given["plugin_version"], given["tile"]) == (b"vitslim", b"1", 16)
    assert (node.domain, len(node.input)) == ("vitslim", 4)
    report = verify(model, tmp_path / "m.onnx", images)
    assert report.failures() == []
    assert [check.form for check in report.checks] == ["as written"] * 2 + ["inlined"] * 2
    plain = export_onnx(model, tmp_path / "inline.onnx", inline=True)
    assert (plain.functions, plain.operators.get("SparseAttention")) == ([], None)
    with OrtRunner(tmp_path / "m.onnx") as one, OrtRunner(tmp_path / "inline.onnx") as other:
        torch.testing.assert_close(one.run(images), other.run(images), rtol=0, atol=1e-6)


def test_nodes_are_named_after_their_modules(tmp_path):
    export_onnx(tiny(), tmp_path / "m.onnx", optimize=False)
    names = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "blocks.0.norm1/LayerNormalization" in names
    assert len(set(names)) == len(names)


class Unknown(nn.Module):
    def forward(self, tokens):
        return tokens + torch.linalg.eigvals(tokens[:, :4, :4]).real.sum()


class Branching(nn.Module):
    def forward(self, tokens):
        return tokens if tokens.sum() > 0 else -tokens


@pytest.mark.parametrize("kind", [Unknown, Branching])
def test_what_cannot_be_exported_names_its_module(tmp_path, kind):
    model = tiny()
    model.blocks[0].mlp.act = kind()
    with pytest.raises(UnsupportedModelError, match=rf"module blocks\.0\.mlp\.act \({kind.__name__}\)"):
        export_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnxslim_may_not_change_the_numbers(tmp_path, monkeypatch):
    def wrong(graph):
        changed = copy.deepcopy(graph)
        for tensor in changed.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 1000:
                values = onnx.numpy_helper.to_array(tensor) * 1.001
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), tensor.name))
        return changed

    import onnxslim

    monkeypatch.setattr(onnxslim, "slim", wrong)
    with pytest.raises(CheckFailedError, match=r"onnxslim changed the numbers by .*--no-optimize"):
        export_onnx(tiny(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert slimming._RELATIVE["fp32"] < 1e-5


def test_a_model_that_gives_nan_is_told_apart_from_a_graph_that_was_changed(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(CheckFailedError, match="the model itself gives NaN or infinity in fp32"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_weights, "FILE_LIMIT", 10_000)
    model, path, images = tiny(), tmp_path / "m.onnx", images_for(dense("vit_plain"), batch=3)
    record = export_onnx(model, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.json"]
    assert record.data_bytes == data_path(path).stat().st_size > record.size_bytes
    assert (record.data_file, record.optimized) == ("m.onnx.data", False)
    assert "onnxslim was left out" in record.notes[0]
    onnx.checker.check_model(str(path), full_check=True)
    assert verify(model, path, images).passed
    data_path(path).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"keeps its weights in m\.onnx\.data, which is not beside it"):
        verify(model, path, images)
    (tmp_path / "elsewhere").rename(data_path(path))
    monkeypatch.undo()
    export_onnx(model, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "sub/w.bin", "link.bin", "m.onnx", "..", ""])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_weights_are_plain_files_beside_the_model_or_refused(tmp_path, name, place):
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for plain in ("sub/w.bin", "m.onnx"):
        (folder / plain).write_bytes(bytes(4))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.ModelProto()
    if place == "initializer":
        tensor = model.graph.initializer.add()
    else:
        tensor = model.graph.node.add(op_type="Constant").attribute.add(name="value").t
    tensor.external_data.add(key="location", value=name)
    with pytest.raises(CheckpointError, match="wanted a plain file beside it"):
        external_files(model, folder / "m.onnx")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_old_pair(tmp_path, monkeypatch, failing):
    monkeypatch.setattr(onnx_weights, "FILE_LIMIT", 10)
    model, path = onnx.ModelProto(), tmp_path / "m.onnx"
    model.graph.initializer.add(name="w", data_type=1, dims=[1024], raw_data=bytes(4096))
    record = partial(
        ExportRecord, precision="fp32", opset=20, input_format="normalized", is_inlined=True, model_sha256=""
    )
    onnx_weights.write_model(path, model, lambda sha256: record(sha256=sha256))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    calls: list[int] = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        onnx_weights.write_model(path, model, lambda sha256: record(sha256=sha256))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_old_file_and_nothing_half(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"m\.onnx.*No space left") as caught:
        export_onnx(tiny(), tmp_path / "m.onnx")
    assert caught.value.exit_code == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m.onnx": b"old"}


def test_bytes_go_in_and_the_file_says_what_is_left_to_do(tmp_path):
    model, images = tiny(), images_for(dense("vit_plain"), batch=3)
    record = export_onnx(model, tmp_path / "m.onnx", input_format="uint8-nhwc")
    assert (record.inputs[0].dtype, record.inputs[0].shape) == ("uint8", [None, 32, 32, 3])
    said = json.loads(record.metadata["input"])
    assert said["inside"] == ["scale 0..255 to 0..1", "subtract mean", "divide by std"]
    assert said["before"] == ["resize and centre crop to 32x32 (bicubic, crop_pct 0.875)"]
    assert verify(model, tmp_path / "m.onnx", images).failures() == []


@pytest.mark.parametrize("said", ["", "3", "[]", "{", "[" * 100_000])
def test_a_file_that_says_nonsense_of_its_input_is_refused(said):
    with pytest.raises(CheckpointError, match="which vitslim did not write"):
        format_of({"input": said})


def test_a_graph_that_cannot_be_rewritten_is_refused_by_name(tmp_path, monkeypatch):
    def refuse(model):
        raise KeyError("a node that is not there")

    model = sparse()
    export_onnx(model, tmp_path / "m.onnx")
    monkeypatch.setattr(importlib.import_module("vitslim.targets.onnx.forms"), "inlined", refuse)
    with pytest.raises(CheckpointError, match=r"m\.onnx is damaged \(KeyError"):
        verify(model, tmp_path / "m.onnx", images_for(model), batches=(1,))
