"""How the plugin comes into an engine: what our builder tells TensorRT, and what engine.json says of it."""

import shutil
from importlib.util import find_spec

import pytest
from timm.models.vision_transformer import VisionTransformer

from tests.targets.tensorrt_stub import FAKE, STUB_COMMAND, plan_of, write_file
from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError
from vitslim.methods import convert
from vitslim.runtime.engine import file_sha256, read_record
from vitslim.targets.tensorrt import plugins
from vitslim.targets.tensorrt.build import build_engine, describe
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.plugins import plan_plugins
from vitslim.targets.tensorrt.target import engine_advice

OPTIONS = {"batch": (1, 2, 4), "precision": "fp16"}
AOT_FLAG = 1 << 2


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "libvitslim_plugins.so"
    path.write_text("the library")
    return path


@pytest.fixture
def file(tmp_path):
    return write_file(tmp_path / "model.onnx")


def build(file, plugin_library=None, **options):
    engine = file.with_suffix(".engine")
    asked = EngineOptions(**OPTIONS | options)
    return engine, build_engine(file, engine, asked, plugin_library=plugin_library, command=STUB_COMMAND)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_an_engine_carries_the_library_of_its_plugin(stub, file, library, choice):
    engine, record = build(file, library, plugins=choice)
    plan = plan_of(engine)
    assert plan["libraries"] == ["the library"]
    assert plan["network_flags"] & AOT_FLAG == 0
    assert (record.plugins.used, record.plugins.form) == (["vitslim::SparseAttention"], "embedded")
    assert record.plugins.library_sha256 == file_sha256(library)
    assert not record.plugins.needs_library
    assert record.brings_code
    assert record == read_record(engine)
    assert "plugin vitslim::SparseAttention (embedded)" in describe(record)


def test_a_library_that_is_to_stay_outside_does(stub, file, library):
    engine, record = build(file, library, plugins="external")
    assert plan_of(engine)["libraries"] == []
    assert plan_of(engine)["calls_plugin"]
    assert record.plugins.form == "external"
    assert record.plugins.needs_library
    assert "--plugins external" in record.rebuild_command()


def test_without_a_library_tensorrt_bakes_the_kernel_in(stub, file):
    if find_spec("triton") is None:
        pytest.skip("no Triton: it comes with torch for Linux")
    engine, record = build(file)
    plan = plan_of(engine)
    assert plan["calls_plugin"]
    assert plan["baked_in"]
    assert plan["libraries"] == []
    assert (record.plugins.form, record.plugins.library_sha256) == ("ahead-of-time", None)
    assert not record.plugins.needs_library
    assert not record.brings_code


def test_an_attention_of_the_plugin_is_not_missed_among_the_fused_ones(stub, file, library):
    plain = build(file, library, plugins="off", require_fused_mha=True)[1].fused_mha
    assert (plain.found, plain.expected) == (1, 1)
    by_plugin = build(file, library, require_fused_mha=True)[1].fused_mha
    assert (by_plugin.found, by_plugin.expected) == (0, 0)


def test_what_is_turned_off_or_cannot_be_had_becomes_plain_operators(stub, file, library, monkeypatch):
    engine, record = build(file, library, plugins="off")
    assert not plan_of(engine)["calls_plugin"]
    assert (record.plugins.used, record.plugins.form) == ([], None)
    assert record.changes == ["vitslim's operators were written out in standard ones"]
    monkeypatch.setattr(plugins, "ahead_of_time_obstacle", lambda: "no Triton")
    assert build(file)[1].plugins.used == []
    for choice, reason in (("on", "Nor can TensorRT compile it in: no Triton"), ("external", "has to stay outside")):
        with pytest.raises(MissingDependencyError, match=f"--plugins {choice}: no plugin library.*{reason}"):
            build(file, plugins=choice)


def test_a_plugin_that_is_demanded_and_not_called_is_an_error(stub, tmp_path, library):
    plain = write_file(tmp_path / "plain.onnx", plugin=False)
    with pytest.raises(ConfigError, match="calls none of vitslim's operators"):
        build(plain, library, plugins="on")
    assert build(plain, library)[1].plugins.used == []


def test_a_parser_that_takes_the_function_instead_breaks_the_guarantee(stub, file, library, monkeypatch):
    # A stand-in whose library brings no such creator.
    other = file.parent / "other"
    shutil.copytree(FAKE, other)
    source = other / "tensorrt/__init__.py"
    source.write_text(source.read_text().replace('self.add("SparseAttention"', 'self.add("Another"'))
    command = [word.replace(str(FAKE), str(other)) for word in STUB_COMMAND]
    engine = file.with_suffix(".engine")
    with pytest.raises(CheckFailedError, match="took the function in the file instead of the plugin"):
        build_engine(file, engine, EngineOptions(**OPTIONS, plugins="on"), plugin_library=library, command=command)
    assert not engine.exists()
    record = build_engine(file, engine, EngineOptions(**OPTIONS), plugin_library=library, command=command)
    assert (record.plugins.used, record.plugins.form) == ([], None)


def test_a_library_that_tensorrt_does_not_take_is_named(stub, file, tmp_path):
    with pytest.raises(ConfigError, match=r"TensorRT 11\.4\.0 takes no plugins from gone\.so"):
        build(file, tmp_path / "gone.so")


def test_rtx_takes_no_plugins_whatever_is_here(library):
    assert plan_plugins(EngineOptions(flavor="rtx"), library) is None


def test_the_record_gives_inputs_outputs_and_their_types(stub, file):
    record = build(file, plugins="off")[1]
    assert [one.model_dump() for one in record.inputs] == [
        {"name": "images", "dtype": "float32", "shape": [-1, 3, 4, 4]}
    ]
    assert [one.model_dump() for one in record.outputs] == [{"name": "logits", "dtype": "float32", "shape": [-1, 12]}]
    assert (record.gpu, record.driver) == ("NVIDIA L4", "580.1")


@pytest.mark.parametrize(
    ("granularity", "size", "is_advised"), [("query", 64, True), ("image", 64, False), ("tile", 256, False)]
)
def test_keys_for_the_whole_image_are_advised_below_1025_tokens(granularity, size, is_advised):
    dense = VisionTransformer(img_size=size, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10)
    model = convert(dense.eval(), "sparsifiner", keep_rate=0.25, granularity=granularity, layers=[1])
    advice = engine_advice(model)
    assert len(advice) == is_advised
    if is_advised:
        # 2 · 65 of 12 · 64 + 2 · 65 per token and width
        assert advice[0].startswith("blocks 1: the products of 65 tokens with each other are 14% of a block's")
        assert "granularity=image gathers 17 keys once per head" in advice[0]
