"""The model repository for Triton Inference Server."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tests.targets.serving import LABELS, write_engine
from tests.targets.triton_schema import parse
from vitslim.errors import CheckpointError, ConfigError
from vitslim.runtime import OrtRunner
from vitslim.runtime.engine import PluginUse, TensorProfile, file_sha256
from vitslim.runtime.machine import Machine
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.triton import repository as triton
from vitslim.targets.triton import servable as describing
from vitslim.targets.triton.repository import write_model_repository
from vitslim.targets.triton.servable import Tensor, choose_artifact, read_servable


def config_of(repository: Path, name: str = "vit") -> Any:
    return parse((repository / name / "config.pbtxt").read_text())


def profile(*batches: int) -> list[TensorProfile]:
    sizes = [[batch, 3, 32, 32] for batch in batches]
    return [TensorProfile(name="images", min=sizes[0], opt=sizes[1], max=sizes[2])]


# --- ONNX -----------------------------------------------------------------------------------------------------------


def test_a_file_of_an_unknown_type_is_refused(saved: Path, tmp_path: Path) -> None:
    model = onnx.load(choose_artifact(saved))
    model.graph.output[0].type.tensor_type.elem_type = 99
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="'logits' is of type 99, which ONNX has not"):
        read_servable(tmp_path / "odd.onnx")


def test_the_config_says_what_the_file_says(saved: Path, tmp_path: Path) -> None:
    path = choose_artifact(saved)
    written = write_model_repository(read_servable(path), tmp_path / "models", name="vit", labels=LABELS, instances=2)
    config = config_of(tmp_path / "models")
    session = OrtRunner(path)
    assert (config.name, config.backend, config.max_batch_size) == ("vit", "onnxruntime", 64)
    for declared, spec in ((config.input, session.inputs), (config.output, session.outputs)):
        assert [one.name for one in declared] == [one.name for one in spec]
        assert [tuple(one.dims) for one in declared] == [one.shape[1:] for one in spec]
        assert {one.data_type for one in declared} == {11}  # TYPE_FP32
    assert config.output[0].label_filename == "labels.txt"
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, 0)  # KIND_AUTO
    assert config.HasField("dynamic_batching")
    assert list(config.dynamic_batching.preferred_batch_size) == []
    parameters = {
        one.key: json.loads(one.value.string_value) for one in config.parameters if one.key in ("image_size", "std")
    }
    assert parameters["image_size"] == [32, 32]
    assert written.files == ["vit/1/model.onnx", "vit/README.md", "vit/config.pbtxt", "vit/labels.txt"]
    assert (tmp_path / "models" / "vit" / "labels.txt").read_text().splitlines() == LABELS
    assert (tmp_path / "models" / "vit" / "1" / "model.onnx").read_bytes() == path.read_bytes()


def test_the_copy_runs(saved: Path, tmp_path: Path) -> None:
    write_model_repository(read_servable(choose_artifact(saved)), tmp_path, name="vit")
    images = torch.randn(3, 3, 32, 32)
    with OrtRunner(tmp_path / "vit/1/model.onnx") as copy, OrtRunner(choose_artifact(saved)) as original:
        assert torch.equal(copy.run(images), original.run(images))


def test_weights_beside_the_file_come_along_under_their_name(saved: Path, tmp_path: Path) -> None:
    model = onnx.load(choose_artifact(saved))
    big = tmp_path / "big.onnx"
    onnx.save(model, big, save_as_external_data=True, location="big.onnx.data", size_threshold=100)
    write_model_repository(read_servable(big), tmp_path / "models", name="vit")
    assert (tmp_path / "models/vit/1/big.onnx.data").is_file()
    OrtRunner(tmp_path / "models/vit/1/model.onnx").close()
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"keeps its weights in big\.onnx\.data, which is not beside it"):
        read_servable(big)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "model.onnx"])
def test_no_foreign_file_is_copied_and_none_over_the_model(name: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_text("secret")
    folder = tmp_path / "given"
    folder.mkdir()
    file = onnx.load(saved / "export" / "model.onnx")
    onnx.save(file, folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").rename(folder / "model.onnx")
    lean = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in lean.graph.initializer:
        for entry in tensor.external_data:
            entry.value = name if entry.key == "location" else entry.value
    (folder / "net.onnx").write_bytes(lean.SerializeToString())
    message = "the name that it gets itself" if name == "model.onnx" else "wanted a plain file beside it"
    with pytest.raises(CheckpointError, match=message):
        write_model_repository(read_servable(folder / "net.onnx"), tmp_path / "models", name="vit")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "said", [{"labels": "["}, {"labels": "{}"}, {"image_size": "[1"}, {"input": "[]"}, {"image_size": "[" * 10**5}]
)
def test_a_file_that_says_nonsense_of_itself_is_refused(said: dict[str, str], saved: Path, tmp_path: Path) -> None:
    file = onnx.load(saved / "export" / "model.onnx")
    onnx.helper.set_model_props(file, {entry.key: entry.value for entry in file.metadata_props} | said)
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=f"does not say of itself what vitslim writes \\({next(iter(said))}\\)"):
        read_servable(tmp_path / "m.onnx")


def test_a_file_of_one_batch_is_left_to_the_client(saved: Path, tmp_path: Path) -> None:
    from vitslim import checkpoint

    export_onnx(checkpoint.load(saved), tmp_path / "four.onnx", batch=4)
    write_model_repository(read_servable(tmp_path / "four.onnx"), tmp_path / "models", name="vit")
    config = config_of(tmp_path / "models")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 3, 32, 32]
    with pytest.raises(ConfigError, match="takes batch 4 only"):
        write_model_repository(read_servable(tmp_path / "four.onnx"), tmp_path / "models", name="b", max_batch=8)


# --- engines --------------------------------------------------------------------------------------------------------


def test_an_engine_brings_its_profile(saved: Path, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "export", choose_artifact(saved))
    shutil.copy(choose_artifact(saved), engine.parent / "model.onnx")
    written = write_model_repository(read_servable(engine), tmp_path / "models", name="vit")
    config = config_of(tmp_path / "models")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 64)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 64]
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert [one.name for one in config.output] == ["logits"]
    assert (tmp_path / "models/vit/1/model.plan").read_bytes() == b"a plan"
    assert written.command == "tritonserver --model-repository=/models"
    readme = (tmp_path / "models/vit/README.md").read_text()
    assert "NVIDIA H100 (compute capability 9.0) with TensorRT 11.4.0 exactly" in readme
    few = write_model_repository(read_servable(engine), tmp_path / "models", name="few", max_batch=8)
    assert few.preferred_batch_sizes == [8]


def test_an_engine_tells_its_inputs_and_outputs_itself(tmp_path: Path) -> None:
    ends = [{"name": "images", "dtype": "uint8", "shape": [-1, 32, 32, 3]}]
    engine = write_engine(tmp_path, inputs=ends, outputs=[{"name": "features", "dtype": "bfloat16", "shape": [-1, 48]}])
    servable = read_servable(engine)
    assert servable.inputs == (Tensor("images", "UINT8", (32, 32, 3)),)
    assert servable.outputs == (Tensor("features", "BFLOAT16", (48,)),)
    write_model_repository(servable, tmp_path / "models", name="vit")
    config = config_of(tmp_path / "models")
    assert (config.input[0].data_type, list(config.input[0].dims)) == (2, [32, 32, 3])  # TYPE_UINT8


@pytest.mark.parametrize("found", [True, False])
def test_an_engine_with_a_plugin_says_how_the_server_loads_it(
    found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libvitslim_plugins.so"
    library.write_bytes(b"machine code" if found else b"another build")
    digest = file_sha256(library) if found else "1" * 64
    monkeypatch.setattr(triton, "plugin_library", lambda: library)
    engine = write_engine(tmp_path, plugins=PluginUse(used=["SparseAttention"], form="external", library_sha256=digest))
    written = write_model_repository(read_servable(engine), tmp_path / "models", name="vit")
    assert written.plugin is found
    assert (tmp_path / "models/vit/plugins/libvitslim_plugins.so").is_file() is found
    assert written.command == (
        "VITSLIM_PLUGIN_REGISTER=1 tritonserver --model-repository=/models "
        "--backend-config=tensorrt,plugins=/models/vit/plugins/libvitslim_plugins.so"
    )
    assert any("copy libvitslim_plugins.so" in note for note in written.notes) is not found
    assert "SparseAttention" in (tmp_path / "models/vit/README.md").read_text()


def test_an_engine_that_carries_its_plugin_needs_no_library_but_leave_to_run_it(tmp_path: Path) -> None:
    plugins = PluginUse(used=["SparseAttention"], form="embedded", library_sha256="1" * 64)
    engine = write_engine(tmp_path, plugins=plugins)
    written = write_model_repository(read_servable(engine), tmp_path / "models", name="vit")
    assert written.plugin is None
    assert written.command == (
        "tritonserver --model-repository=/models --backend-config=tensorrt,version-compatible=true"
    )
    assert "the engine carries the library of its plugin SparseAttention" in written.notes
    assert not (tmp_path / "models/vit/plugins").exists()


def test_an_engine_without_its_weights_is_not_served(tmp_path: Path) -> None:
    engine = write_engine(tmp_path, has_weights=False)
    with pytest.raises(
        CheckpointError, match=r"stored without its weights .*vitslim refit .*model-fp16\.engine --from"
    ):
        read_servable(engine)


def test_a_version_compatible_engine_says_so(tmp_path: Path) -> None:
    engine = write_engine(tmp_path, options={"version_compatible": True})
    written = write_model_repository(read_servable(engine), tmp_path / "models", name="vit")
    assert written.command.endswith("--backend-config=tensorrt,version-compatible=true")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"flavor": "rtx", "gpu": None}, {}, "was built for TensorRT-RTX, which Triton Inference Server does not load"),
        ({"engine_sha256": "2" * 64}, {}, "it was cut short, changed"),
        ({"profiles": profile(4, 8, 64)}, {}, "takes 4 to 64 images, a server gets single ones too"),
        ({}, {"max_batch": 65}, "takes at most 64"),
        ({}, {"max_batch": 0}, "wanted a number from 1"),
        ({}, {"instances": 0}, "wanted a number from 1"),
    ],
)
def test_an_engine_that_cannot_serve_is_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    engine = write_engine(tmp_path, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        write_model_repository(read_servable(engine), tmp_path / "models", name="vit", **options)
    assert not (tmp_path / "models").exists()


def test_an_engine_of_another_gpu_is_refused_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(gpu="NVIDIA L4", compute_capability="8.9")
    monkeypatch.setattr(describing, "this_machine", lambda: here)
    engine = write_engine(tmp_path)
    with pytest.raises(CheckpointError, match=r"built for compute capability 9\.0, here is 8\.9.*--any-gpu"):
        read_servable(engine)
    assert read_servable(engine, any_gpu=True).engine is not None


# --- what lies there already ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "../up", "-n", "a/b", ".hidden", "x..y", "ü", "a" * 129, "nul"])
def test_a_name_that_triton_cannot_serve_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model name"):
        write_model_repository(read_servable(choose_artifact(saved)), tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_models_stand_side_by_side_and_none_is_lost_unasked(saved: Path, tmp_path: Path) -> None:
    servable = read_servable(choose_artifact(saved))
    write_model_repository(servable, tmp_path, name="first")
    write_model_repository(servable, tmp_path, name="second")
    with pytest.raises(ConfigError, match="has a model 'first' already; pass --overwrite"):
        write_model_repository(servable, tmp_path, name="first")
    (tmp_path / "first" / "2").mkdir()
    write_model_repository(servable, tmp_path, name="first", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert not (tmp_path / "first" / "2").exists()


def test_a_folder_that_is_no_repository_is_left_alone(saved: Path, tmp_path: Path) -> None:
    servable = read_servable(choose_artifact(saved))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and no model repository"):
        write_model_repository(servable, tmp_path, name="vit")
    write_model_repository(servable, tmp_path, name="vit", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        write_model_repository(servable, tmp_path / "thesis.tex", name="vit", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_was_there(
    overwrite: bool, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servable = read_servable(choose_artifact(saved))
    if overwrite:
        write_model_repository(servable, tmp_path, name="vit")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton.shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_model_repository(servable, tmp_path, name="vit", overwrite=overwrite)
    assert os.listdir(tmp_path) == (["vit"] if overwrite else [])
    assert not overwrite or (tmp_path / "vit/1/model.onnx").is_file()


def test_labels_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 labels were given for 10 classes"):
        write_model_repository(read_servable(choose_artifact(saved)), tmp_path, name="vit", labels=["a", "b", "c"])


# --- choosing the file ----------------------------------------------------------------------------------------------


def test_the_engine_comes_before_the_onnx_file(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copied"))
    engine = write_engine(folder / "export", flavor="rtx")
    assert choose_artifact(folder).name == "model.onnx"  # Triton loads no TensorRT-RTX engines
    write_engine(folder / "export")
    assert choose_artifact(folder) == engine
    assert choose_artifact(folder, "onnx").name == "model.onnx"
    shutil.copy(folder / "export/model.onnx", folder / "export/model-fp16.onnx")
    with pytest.raises(ConfigError, match=r"export/model-fp16\.onnx, export/model\.onnx; say which with --artifact"):
        choose_artifact(folder, "onnx")


@pytest.mark.parametrize(("backend", "target"), [("auto", "onnx"), ("onnx", "onnx"), ("tensorrt", "tensorrt")])
def test_nothing_exported_says_what_to_run(backend: str, target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"run `vitslim export {tmp_path} --to {target}` first"):
        choose_artifact(tmp_path, backend)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx is not an ONNX file"):
        read_servable(tmp_path / "model.onnx")
