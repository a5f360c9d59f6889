"""Exchanging an engine's weights: what is refused, what our code tells TensorRT, what engine.json says afterwards."""

import importlib.util
import json

import onnx
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitslim
from tests.targets.tensorrt_stub import FAKE, STUB_COMMAND, plan_of, write_file
from tests.variants import SIZE
from vitslim import checkpoint
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline import refit as refit_from
from vitslim.runtime.engine import file_sha256, read_record, record_path
from vitslim.runtime.machine import Machine
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.tensorrt import refit
from vitslim.targets.tensorrt.build import build_engine
from vitslim.targets.tensorrt.fingerprint import graph_sha256, weights_sha256
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.refit import options_of, refit_engine


@pytest.fixture
def built(stub, tmp_path):
    """Build the file in the folder with these options."""

    def build(plugin_library=None, **options):
        file = write_file(tmp_path / "model.onnx")
        asked = EngineOptions(**{"batch": (1, 2, 4), "plugins": "off"} | options)
        engine = tmp_path / "model.engine"
        build_engine(file, engine, asked, plugin_library=plugin_library, command=STUB_COMMAND)
        return engine

    return build


@pytest.fixture
def other(tmp_path):
    """The same model with other weights."""
    return write_file(tmp_path / "other.onnx", seed=1)


def test_other_weights_come_in_and_the_record_says_so(built, other):
    engine = built(refit=True)
    before = read_record(engine)
    record = refit_engine(engine, other, command=STUB_COMMAND)
    assert record == read_record(engine)
    assert record.engine_sha256 == file_sha256(engine) != before.engine_sha256
    assert record.onnx_sha256 == file_sha256(other)
    assert record.weights_sha256 != before.weights_sha256
    assert record.graph_sha256 == before.graph_sha256
    assert record.is_refittable
    changed = {"engine_sha256", "onnx_sha256", "weights_sha256"}
    assert record.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    # And back again.
    again = refit_engine(engine, engine.with_suffix(".onnx"), command=STUB_COMMAND)
    assert again == before


def test_a_refit_may_write_another_file_and_leave_the_engine(built, other, tmp_path):
    engine = built(refit=True)
    content = engine.read_bytes()
    refit_engine(engine, other, tmp_path / "new.engine", command=STUB_COMMAND)
    assert engine.read_bytes() == content
    assert plan_of(tmp_path / "new.engine")["weights"] != plan_of(engine)["weights"]
    assert read_record(tmp_path / "new.engine").engine_sha256 == file_sha256(tmp_path / "new.engine")
    with pytest.raises(ConfigError, match=r"ends in \.engine"):
        refit_engine(engine, other, tmp_path / "new.plan", command=STUB_COMMAND)


def test_a_stripped_engine_gets_back_its_own_weights_and_no_others(built, other):
    engine = built(strip_plan=True)
    stripped = read_record(engine)
    assert (stripped.has_weights, stripped.is_refittable) == (False, True)
    assert plan_of(engine)["weights"]["patch.weight"] is None
    with pytest.raises(ConfigError, match=r"takes back the very weights it was built from; other\.onnx has others"):
        refit_engine(engine, other, command=STUB_COMMAND)
    record = refit_engine(engine, engine.with_suffix(".onnx"), command=STUB_COMMAND)
    assert record.has_weights
    assert plan_of(engine)["weights"]["patch.weight"] is not None


def test_a_stripped_engine_that_was_built_refittable_takes_others(built, other):
    engine = built(strip_plan=True, refit=True)
    record = refit_engine(engine, other, command=STUB_COMMAND)
    assert (record.has_weights, record.is_refittable) == (True, True)


def test_an_engine_with_fixed_weights_is_refused_with_the_command_that_builds_another(built, other):
    engine = built()
    with pytest.raises(
        ConfigError, match=r"has fixed weights.*vitslim export DIR --to tensorrt .* --overwrite --refit"
    ):
        refit_engine(engine, other, command=STUB_COMMAND)
    with pytest.raises(ConfigError, match="has fixed weights"):
        refit_from(engine, "vit_tiny_patch16_224")


@pytest.mark.parametrize("change", [{"keys": 3}, {"plugin": False}], ids=["another number of keys", "another operator"])
def test_a_file_that_computes_something_else_is_refused(built, tmp_path, change):
    engine = built(refit=True)
    content = engine.read_bytes()
    with pytest.raises(ConfigError, match=r"computes something else than the file model\.engine was built from"):
        refit_engine(engine, write_file(tmp_path / "other.onnx", seed=1, **change), command=STUB_COMMAND)
    assert engine.read_bytes() == content


def test_an_engine_that_does_not_belong_here_is_refused(built, other, monkeypatch):
    engine = built(refit=True)
    monkeypatch.setattr(refit, "this_machine", lambda: Machine(gpu="NVIDIA H200", compute_capability="9.0"))
    with pytest.raises(CheckpointError, match=r"does not fit this machine: built for compute capability 8\.9"):
        refit_engine(engine, other, command=STUB_COMMAND)
    monkeypatch.setattr(refit, "this_machine", Machine)
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU"):
        refit_engine(engine, other, command=STUB_COMMAND)
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it was cut short"):
        refit_engine(engine, other, command=STUB_COMMAND)


def test_a_refit_that_dies_leaves_engine_and_record(built, other, tmp_path):
    engine = built(refit=True)
    before = engine.read_bytes(), record_path(engine).read_bytes()
    with pytest.raises(CheckFailedError, match="exit code 7"):
        refit_engine(engine, other, command=["sh", "-c", "exit 7"])
    assert (engine.read_bytes(), record_path(engine).read_bytes()) == before
    assert not list(tmp_path.glob(".*.part"))


def test_what_tensorrt_itself_refuses_is_reported(built, other):
    engine = built(refit=True)
    # A record that guarantees more than the engine keeps.
    plan = plan_of(engine) | {"refittable": False}
    engine.write_text(json.dumps(plan))
    record = read_record(engine).model_copy(update={"engine_sha256": file_sha256(engine)})
    record_path(engine).write_text(record.model_dump_json())
    with pytest.raises(ConfigError, match="TensorRT says that this engine's weights are fixed"):
        refit_engine(engine, other, command=STUB_COMMAND)
    plan |= {"refittable": True, "weights": {"head.weight": "x"}}
    engine.write_text(json.dumps(plan))
    record_path(engine).write_text(record.model_copy(update={"engine_sha256": file_sha256(engine)}).model_dump_json())
    with pytest.raises(ConfigError, match=r"lacks weights of the engine: head\.weight"):
        refit_engine(engine, other, command=STUB_COMMAND)


@pytest.mark.parametrize("form", ["embedded", "external"])
def test_an_engine_with_a_plugin_opens_for_its_refit(built, other, tmp_path, form):
    library = tmp_path / "libvitslim_plugins.so"
    library.write_text("the library")
    engine = built(library, refit=True, plugins="external" if form == "external" else "auto")
    assert read_record(engine).plugins.form == form
    if form == "external":
        with pytest.raises(MissingDependencyError, match="calls the plugins vitslim::SparseAttention, whose library"):
            refit_engine(engine, other, command=STUB_COMMAND)
    record = refit_engine(engine, other, plugin_library=library if form == "external" else None, command=STUB_COMMAND)
    assert record.plugins.form == form
    assert plan_of(engine)["libraries"] == (["the library"] if form == "embedded" else [])


def test_code_in_an_engine_that_tells_of_none_does_not_run_in_a_refit(built, other, tmp_path):
    library = tmp_path / "libvitslim_plugins.so"
    library.write_text("the library")
    engine = built(library, refit=True, plugins="auto")
    path = record_path(engine)
    record = json.loads(path.read_text())
    record["plugins"]["form"] = "ahead-of-time"
    path.write_text(json.dumps(record))
    with pytest.raises(CheckFailedError, match="cannot open the engine"):
        refit_engine(engine, other, command=STUB_COMMAND)


def test_the_options_of_a_build_come_back_out_of_its_record(built):
    options = EngineOptions(batch=(1, 2, 4), plugins="off", refit=True, version_compatible=True)
    assert options_of(read_record(built(refit=True, version_compatible=True))) == options


def test_a_model_that_is_exported_again_has_the_same_graph_and_only_other_weights_differ(tmp_path):
    def digests(seed, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = convert(VisionTransformer(**SIZE | {"depth": 1}).eval(), "sparsifiner", **options)
        file = tmp_path / "model.onnx"
        export_onnx(model, file, precision="fp16", opset=20)
        written = onnx.load(file)
        return graph_sha256(written), weights_sha256(written, tmp_path)

    first = digests(0)
    assert digests(0) == first
    other = digests(1)
    assert other[0] == first[0]
    assert other[1] != first[1]
    assert digests(0, keep_rate=0.5)[0] != first[0]


def test_a_folder_is_exported_again_for_its_engine(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKE))

    def save(name, seed, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = open_model("vit_tiny_patch16_224", pretrained=False, **SIZE | {"depth": 1} | options)
        checkpoint.save(model, tmp_path / name, class_names=[f"{name} {index}" for index in range(10)])
        return tmp_path / name

    folder, tuned = save("first", 0), save("tuned", 1)
    record = vitslim.export(folder, to="tensorrt", strip_plan=True, refit=True, batch=(1, 2, 4))
    engine = folder / "export" / "model-fp16.engine"
    assert not record.has_weights
    # The same folder gives the very weights, another its own, labels included; nothing of the ONNX file was kept.
    assert vitslim.refit(engine, folder).weights_sha256 == record.weights_sha256
    refitted = vitslim.refit(engine, tuned, tmp_path / "tuned.engine")
    assert refitted.weights_sha256 != record.weights_sha256
    assert json.loads(refitted.metadata["labels"])[3] == "tuned 3"
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        *("model-fp16.engine", "model-fp16.engine.json", "model-fp16.engine.log")
    ]
    with pytest.raises(ConfigError, match="computes something else"):
        vitslim.refit(engine, save("wider", 0, mlp_ratio=2.0))


def test_the_stand_in_has_no_name_that_tensorrt_lacks():
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (vitslim[rtx])")
    spec = importlib.util.spec_from_file_location("stand_in", FAKE / "tensorrt/__init__.py")
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    named = {"Config": "IBuilderConfig", "Engine": "ICudaEngine", "Network": "INetworkDefinition"}
    ours = {"Network": {"layers", "inputs", "outputs", "weights"}}
    names = ("Builder", "Config", "Network", "OnnxParser", "Runtime", "Engine", "Refitter", "OnnxParserRefitter")
    for name in (*names, "IExecutionContext"):
        offered = {one for one in dir(getattr(fake, name)) if not one.startswith("_")} - ours.get(name, set())
        assert offered <= set(dir(getattr(real, named.get(name, name)))), name
    for name in ("BuilderFlag", "SerializationFlag", "ProfilingVerbosity", "MemoryPoolType", "LayerInformationFormat"):
        assert set(getattr(fake, name).__members__) <= set(getattr(real, name).__members__), name
