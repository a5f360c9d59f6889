import hashlib
import json

import onnx
import pytest
import torch
from onnxscript import rewriter
from timm.models.vision_transformer import VisionTransformer

from vitslim.errors import ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.plans import read_plan
from vitslim.runtime import OrtRunner, working_copy
from vitslim.targets.metadata import artifact_metadata
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.trace import QUADRATIC, without_quadratic_rules
from vitslim.trunk import plan_of


def test_the_file_has_one_named_input_and_output_with_a_free_batch(exported):
    _, path, record = exported("vit")
    assert [(value.name, value.shape) for value in record.inputs] == [("images", [None, 3, 32, 32])]
    assert [(value.name, value.shape) for value in record.outputs] == [("logits", [None, 10])]
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_fp32_has_no_attention_op_because_tensorrt_does_not_build_it(exported):
    record = exported("vit")[2]
    assert record.opset == 20
    assert "Attention" not in record.operators
    assert record.operators["Softmax"] == 4  # one per block
    assert record.operators["LayerNormalization"] == 9  # two per block, one at the end


def test_fp16_accumulates_softmax_and_layer_norm_in_float32_between_float32_ends(exported):
    _, path, record = exported("vit", "fp16")
    graph = onnx.load(path).graph
    assert record.opset == 20
    assert "Attention" not in record.operators
    assert record.types["Softmax"] == {"float": 4}
    assert record.types["LayerNormalization"] == {"float16": 9}
    stashed = [
        {one.name: one.i for one in node.attribute}["stash_type"] for node in graph.node if "Layer" in node.op_type
    ]
    assert stashed == [onnx.TensorProto.FLOAT] * 9
    assert record.inputs[0].dtype == record.outputs[0].dtype == "float"
    assert record.notes == []
    assert {tensor.data_type for tensor in graph.initializer if tensor.name.startswith("blocks")} == {
        onnx.TensorProto.FLOAT16
    }


def test_from_opset_23_on_attention_is_one_operator_with_a_float32_softmax_and_a_warning(exported):
    _, path, record = exported("one_block", "fp16", opset=23)
    graph = onnx.load(path).graph
    attributes = {
        node.op_type: {one.name: one.i for one in node.attribute} for node in graph.node if node.op_type == "Attention"
    }
    assert record.opset == 23
    assert attributes["Attention"]["softmax_precision"] == onnx.TensorProto.FLOAT
    (note,) = record.notes
    assert "whose softmax_precision TensorRT's parser refuses" in note
    assert "opset 20, the default" in note


def test_the_ends_may_be_half_precision_too(exported, images):
    model, path, record = exported("one_block", "fp16", fp32_ends=False)
    assert record.inputs[0].dtype == record.outputs[0].dtype == "float16"
    with OrtRunner(path) as runner, torch.no_grad():
        torch.testing.assert_close(runner.run(images), model(images), rtol=0, atol=1e-2)


def test_the_file_says_what_it_is_and_nothing_about_this_machine(exported):
    student, path, record = exported("skipat")
    model = onnx.load(path)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == record.metadata
    assert (model.producer_name, found["producer"], found["precision"]) == ("vitslim", "vitslim", "fp32")
    assert json.loads(found["image_size"]) == [32, 32]
    assert json.loads(found["methods"])[0]["method"] == "skipat"
    assert read_plan(json.loads(found["plan"]), "metadata") == plan_of(student)
    assert "plan" not in exported("vit")[2].metadata
    assert json.loads(found["versions"])["torch"] == torch.__version__.split("+")[0]
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(path.parent).encode() not in content


def test_the_callers_metadata_is_added_and_cannot_contradict_the_exporter(exported):
    model = exported("vit")[0]
    entries = artifact_metadata(model, "fp32", {"base_model": "mine", "labels": ["a", "b"], "top1": 0.5})
    assert (entries["base_model"], entries["labels"], entries["top1"]) == ("mine", '["a", "b"]', "0.5")
    with pytest.raises(ConfigError, match="precision is written by the exporter"):
        artifact_metadata(model, "fp32", {"precision": "int8"})


def test_a_model_without_classifier_gives_features_at_a_fixed_batch(tmp_path, exported):
    headless = working_copy(exported("one_block")[0])
    headless.reset_classifier(0)
    record = export_onnx(headless, tmp_path / "features.onnx", batch=2, optimize=False)
    assert [(value.name, value.shape) for value in record.outputs] == [("features", [2, 48])]
    assert record.batch == 2
    assert not record.optimized


def test_export_leaves_the_model_as_it_was(tmp_path, images):
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=10).train()
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        before = model(images)
    threads, calls[:] = torch.get_num_threads(), []

    export_onnx(model, tmp_path / "model.onnx", precision="fp16")

    assert calls == []
    assert len(model.blocks[0]._forward_hooks) == 1
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.get_num_threads() == threads
    with torch.no_grad():
        assert torch.equal(model(images), before)


class FixedBatch(VisionTransformer):
    def forward(self, x):
        return super().forward(x) if x.shape[0] == 2 else super().forward(x) * 0


class DataDependent(VisionTransformer):
    def forward(self, x):
        return super().forward(x) * (1 if x.sum().item() > 0 else 2)


@pytest.mark.parametrize("kind", [FixedBatch, DataDependent])
def test_a_model_that_cannot_be_exported_is_refused_and_the_old_file_survives(tmp_path, kind):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    model = kind(img_size=32, patch_size=16, embed_dim=48, depth=1, num_heads=3, num_classes=10)
    with pytest.raises(UnsupportedModelError, match=f"this {kind.__name__}|fixes the batch"):
        export_onnx(model, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_without_weights_is_refused_before_tracing(tmp_path):
    with torch.device("meta"):
        weightless = VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=1, num_heads=3)
    with pytest.raises(ConfigError, match="meta device"):
        export_onnx(weightless, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 12}, "opset 12: wanted 18 to"),
        ({"precision": "bf16", "opset": 20}, r"opset 20 cannot say this in bf16: Conv takes no bfloat16 .*; use 22"),
    ],
)
def test_options_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, exported, options, message):
    with pytest.raises(ConfigError, match=message):
        export_onnx(exported("one_block")[0], tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, exported):
    from vitslim.targets.onnx import export as onnx_export

    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxslim" else object())
    with pytest.raises(MissingDependencyError, match=r"needs onnxslim: pip install 'vitslim\[onnx\]'"):
        export_onnx(exported("vit")[0], tmp_path / "model.onnx")


def test_nothing_is_printed(tmp_path, capfd):
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=1, num_heads=3, num_classes=10)
    export_onnx(model, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_the_exporter_s_quadratic_rule_is_left_out_and_put_back() -> None:
    before = rewriter._DEFAULT_REWRITE_RULES
    names = {rule.name for rule in before}
    assert {*QUADRATIC} <= names  # else there is nothing to leave out any more
    with without_quadratic_rules():
        assert {rule.name for rule in rewriter._DEFAULT_REWRITE_RULES} == names - {*QUADRATIC}
    assert rewriter._DEFAULT_REWRITE_RULES is before
