import os

import pytest

from vitslim.errors import CheckpointError, ConfigError
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.source import input_shapes, read_source, write_source

onnx = pytest.importorskip("onnx")

ATTENTION = """
<ir_version: 10, opset_import: ["": 23]>
g (float16[batch, 3, 8, 4] images) => (float16[batch, 3, 8, 4] logits)
{ logits = Attention <softmax_precision = 1> (images, images, images) }
"""
PARTS = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 3, 8, 4] images) => (float[batch, 3, 8, 4] logits)
<float[4, 4] "blocks.2.attn.proj.weight" = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
  turned = Transpose <perm = [0, 1, 3, 2]> (images)
  scores = MatMul (images, turned)
  rows = Softmax (scores)
  mixed = MatMul (rows, images)
  linear = MatMul (mixed, "blocks.2.attn.proj.weight")
  weights = Softmax (linear)
  unattended = MatMul (weights, "blocks.2.attn.proj.weight")
  logits = Mystery (unattended)
}
"""
FUNCTION = """
<ir_version: 10, opset_import: ["": 20, "vitslim": 1]>
g (float[batch, 3, 8, 4] images) => (float[batch, 3, 8, 4] logits)
{ logits = vitslim.SparseAttention <tile: int = 1> (images) }
<domain: "vitslim", opset_import: ["": 20]>
SparseAttention <tile> (q) => (mixed)
{
  turned = Transpose <perm = [0, 1, 3, 2]> (q)
  scores = MatMul (q, turned)
  rows = Softmax (scores)
  mixed = MatMul (rows, q)
}
"""


def write(path, text, **properties):
    text = text.replace('"blocks.2.attn.proj.weight"', "blocks_weight").replace("vitslim.Sparse", "vitslim.Sparse")
    model = onnx.parser.parse_model(text)
    for tensor in model.graph.initializer:
        tensor.name = "blocks.2.attn.proj.weight"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("blocks_weight", "blocks.2.attn.proj.weight")
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


def test_an_attention_op_is_refused_in_fp32_before_anything_is_built(tmp_path):
    path = write(tmp_path / "m.onnx", ATTENTION)
    with pytest.raises(ConfigError, match="does not build in fp32; export with opset 20 or less"):
        read_source(path, EngineOptions(precision="fp32"), "11.4.0", with_plugins=False)
    with pytest.raises(ConfigError, match=r"TensorRT knows from 10\.14 on, here is 10\.12\.0"):
        read_source(path, EngineOptions(), "10.12.0", with_plugins=False)


def test_the_attribute_that_the_parser_refuses_is_taken_off_and_noted(tmp_path):
    path = write(tmp_path / "m.onnx", ATTENTION)
    source = read_source(path, EngineOptions(), "11.4.0", with_plugins=False)
    assert source.changes == ["softmax_precision was taken off the Attention nodes"]
    (tmp_path / "work").mkdir()
    copy = write_source(source, tmp_path / "work")
    assert copy != path
    assert not onnx.load(copy).graph.node[0].attribute
    assert onnx.load(path).graph.node[0].attribute


def test_attentions_are_softmaxes_between_two_products_of_images(tmp_path):
    source = read_source(write(tmp_path / "m.onnx", PARTS), EngineOptions(), "11.4.0", with_plugins=False)
    # The second softmax stands between linear layers.
    assert source.attentions == 1
    assert write_source(source, tmp_path) == source.path


def test_a_node_is_named_by_the_module_of_the_weights_before_it(tmp_path):
    source = read_source(write(tmp_path / "m.onnx", PARTS), EngineOptions(), "11.4.0", with_plugins=False)
    source.model.graph.node[-1].name = "node_Mystery_7"
    assert source.module_of("node_Mystery_7", "Mystery") == "blocks.2.attn.proj"
    assert source.module_of("Mystery_7", "Mystery") == "blocks.2.attn.proj"
    assert source.module_of("other", "Mystery") is None


def test_a_node_is_named_by_the_module_in_its_name(tmp_path):
    source = read_source(write(tmp_path / "m.onnx", PARTS), EngineOptions(), "11.4.0", with_plugins=False)
    source.model.graph.node[-1].name = "blocks.7.mlp.act/Mystery"
    assert source.module_of("blocks.7.mlp.act/Mystery", "Mystery") == "blocks.7.mlp.act"
    # Other exporters' paths begin with a stroke and need not be modules.
    source.model.graph.node[-1].name = "/a/b/Mystery"
    assert source.module_of("/a/b/Mystery", "Mystery") == "blocks.2.attn.proj"


def test_functions_are_written_out_unless_the_plugin_is_there(tmp_path):
    path = write(tmp_path / "m.onnx", FUNCTION)
    plain = read_source(path, EngineOptions(), "11.4.0", with_plugins=False)
    assert {node.domain for node in plain.model.graph.node} == {""}
    assert (plain.attentions, plain.plugin_nodes) == (1, {})
    kept = read_source(path, EngineOptions(), "11.4.0", with_plugins=True)
    assert kept.plugin_nodes == {"vitslim::SparseAttention": 1}
    assert kept.changes == []


def test_precision_batch_and_size_of_the_file_are_compared_with_what_is_asked(tmp_path):
    path = write(tmp_path / "m.onnx", PARTS, precision="fp32")
    with pytest.raises(ConfigError, match=r"m\.onnx is in fp32, an engine in fp16 was asked for"):
        read_source(path, EngineOptions(precision="fp16"), "11.4.0", with_plugins=False)
    with pytest.raises(ConfigError, match="takes images of 8x4 only, asked for 4:8:16"):
        read_source(path, EngineOptions(precision="fp32", image_size=(4, 8, 16)), "11.4.0", with_plugins=False)
    fixed = write(tmp_path / "f.onnx", PARTS.replace("batch", "2"))
    with pytest.raises(ConfigError, match="takes batch 2 only, asked for 1:8:64"):
        read_source(fixed, EngineOptions(), "11.4.0", with_plugins=False)
    free = write(tmp_path / "d.onnx", PARTS.replace("8, 4]", "h, w]"))
    with pytest.raises(ConfigError, match="say which with --image-size"):
        read_source(free, EngineOptions(), "11.4.0", with_plugins=False)
    options = EngineOptions(batch=(1, 2, 4), image_size=(32, 64, 96))
    source = read_source(free, options, "11.4.0", with_plugins=False)
    assert input_shapes(source, options) == {"min": [1, 3, 32, 32], "opt": [2, 3, 64, 64], "max": [4, 3, 96, 96]}


def test_a_missing_and_a_broken_file_are_distinguished(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_source(tmp_path / "none.onnx", EngineOptions(), "11.4.0", with_plugins=False)
    (tmp_path / "cut.onnx").write_bytes(os.urandom(64))
    with pytest.raises(CheckpointError, match="truncated"):
        read_source(tmp_path / "cut.onnx", EngineOptions(), "11.4.0", with_plugins=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": (8, 1, 64)}, "8:1:64 is not min:opt:max"),
        ({"flavor": "rtx", "version_compatible": True}, "no version-compatible engines"),
        ({"flavor": "rtx", "timing_cache": "cache"}, "times nothing"),
        ({"flavor": "rtx", "plugins": "on"}, "ends the process when it meets a plugin"),
    ],
)
def test_options_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**given)


def test_sizes_are_three_numbers_or_one():
    assert EngineOptions(batch="1:8:64").batch == (1, 8, 64)
    assert EngineOptions(image_size="8").image_size == (8, 8, 8)
    for text in ("²", "1:8"):
        with pytest.raises(ValueError, match="wanted min:opt:max such as 1:8:64"):
            EngineOptions(batch=text)
