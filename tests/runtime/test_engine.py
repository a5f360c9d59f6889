import hashlib
import json

import pytest
import torch

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime import EngineRecord, TrtRunner
from vitslim.runtime.engine import TensorProfile, read_record, record_path
from vitslim.runtime.fit import check_profile, driver_difference, misfits, require_fit, require_plugins
from vitslim.runtime.machine import Machine
from vitslim.runtime.tensorrt_api import version_numbers
from vitslim.targets import Opening, target_of

HERE = Machine(gpu="NVIDIA L4", compute_capability="8.9", driver="580.1", cuda="13.0")
CONTENT = b"not really an engine"


def record(**changes) -> EngineRecord:
    fields = {
        "flavor": "tensorrt",
        "tensorrt": "11.4.0",
        **HERE.model_dump(),
        "onnx_sha256": "0",
        "graph_sha256": "0",
        "weights_sha256": "0",
        "engine_sha256": hashlib.sha256(CONTENT).hexdigest(),
        "precision": "fp16",
        "profiles": [{"name": "images", "min": [1, 3, 32, 32], "opt": [8, 3, 32, 32], "max": [64, 3, 32, 32]}],
        "inputs": [{"name": "images", "dtype": "float32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 10]}],
        "plugins": {"used": [], "form": None, "library_sha256": None},
        "layers": None,
        "layers_source": None,
        "matrix_types": {"HALF": 18},
        "fused_mha": None,
        "unknown": {"layers": "not reported", "fused_mha": "not reported"},
        "options": {"batch": [1, 8, 64], "image_size": None, "plugins": "auto", "refit": True},
        "is_refittable": True,
        "has_weights": True,
        "changes": [],
        "metadata": {},
        "build_log_sha256": "0",
        "seconds": 1.0,
        "versions": {},
    }
    return EngineRecord.model_validate(fields | changes)


def write(path, **changes):
    path.write_bytes(CONTENT)
    record_path(path).write_text(record(**changes).model_dump_json())
    return path


def test_an_engine_that_fits_is_not_complained_of(tmp_path):
    path = write(tmp_path / "m.engine")
    require_fit(path, read_record(path), HERE, "11.4.0")


def test_what_differs_is_named_with_the_command_that_helps(tmp_path):
    path = write(tmp_path / "m.engine")
    other = Machine(gpu="NVIDIA H200", compute_capability="9.0")
    with pytest.raises(CheckpointError) as error:
        require_fit(path, read_record(path), other, "11.1.0")
    assert str(error.value) == (
        "m.engine does not fit this machine: built with TensorRT 11.4.0, here is 11.1.0; "
        "built for compute capability 8.9, here is 9.0; built for NVIDIA L4, here is NVIDIA H200. "
        "Engines are bound to these; build it here: vitslim export DIR --to tensorrt "
        "--precision fp16 --batch 1:8:64 --plugins auto --refit --overwrite"
    )


def test_a_version_compatible_engine_runs_in_later_versions_only():
    compatible = record(options={"version_compatible": True})
    assert misfits(compatible, HERE, "11.10.0") == []
    assert misfits(compatible, HERE, "11.3.9") == ["built with TensorRT 11.4.0, here is 11.3.9"]
    assert version_numbers("11.10.0rc1") == (11, 10)


def test_an_rtx_engine_is_bound_to_its_version_and_to_no_gpu():
    portable = record(flavor="rtx", tensorrt="1.7.1", gpu=None, compute_capability=None)
    assert misfits(portable, HERE, "1.7.1") == []
    assert misfits(portable, HERE, "1.7.2") == ["built with TensorRT-RTX 1.7.1, here is 1.7.2"]


def test_a_truncated_engine_is_refused_before_anything_opens_it(tmp_path):
    path = write(tmp_path / "m.engine")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match=r"m\.engine is not the file that m\.engine\.json describes: it was cut"):
        TrtRunner(path)


def test_a_missing_library_or_gpu_is_named(tmp_path):
    path = write(tmp_path / "m.engine")
    with pytest.raises(MissingDependencyError, match=r"needs TensorRT 11\.4\.0, which is not installed"):
        require_fit(path, read_record(path), HERE, None)
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU and its driver"):
        require_fit(path, read_record(path), Machine(), "11.4.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has no m\.engine\.json beside it"),
        ("{", "not readable JSON"),
        ('{"format": 9}', "has format 9, wanted 1"),
        ('{"format": 1}', r"is damaged \(flavor: Field required\)"),
        ("[]", "has format None"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(tmp_path, text, message):
    (tmp_path / "m.engine").write_bytes(CONTENT)
    if text is not None:
        (tmp_path / "m.engine.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        target_of(tmp_path / "m.engine").load(tmp_path / "m.engine", Opening())


def test_a_missing_engine_says_how_to_build_one(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; build it with"):
        target_of(tmp_path / "m.engine").load(tmp_path / "m.engine", Opening())


def test_an_engine_of_one_flavor_is_not_opened_as_another(tmp_path):
    with pytest.raises(ConfigError, match=r"backend 'rtx' does not read m.engine; wanted one of tensorrt"):
        target_of(write(tmp_path / "m.engine"), "rtx")


def test_shapes_outside_the_profile_are_refused_with_the_range():
    profile = TensorProfile(name="images", min=[1, 3, 32, 32], opt=[8, 3, 32, 32], max=[64, 3, 32, 32])
    check_profile((64, 3, 32, 32), profile)
    for shape in ((65, 3, 32, 32), (1, 3, 32, 33), (3, 32, 32)):
        with pytest.raises(ConfigError, match="takes 1x3x32x32 to 64x3x32x32, given"):
            check_profile(shape, profile)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_plugin_that_is_not_there_is_named_where_the_rest_fits(tmp_path, monkeypatch):
    plugins = {"used": ["vitslim::SparseAttention"], "form": "external", "library_sha256": "0" * 64}
    path = write(tmp_path / "m.engine", plugins=plugins)
    monkeypatch.setattr("vitslim.runtime.trt_runner.this_machine", lambda device: HERE)
    monkeypatch.setattr("vitslim.runtime.trt_runner.installed_version", lambda flavor: "11.4.0")
    with pytest.raises(MissingDependencyError, match=r"calls the plugins vitslim::SparseAttention, whose library"):
        TrtRunner(path)
    library = tmp_path / "libvitslim_plugins.so"
    library.write_bytes(b"another build")
    with pytest.raises(CheckpointError, match=r"was built with another build of libvitslim_plugins\.so"):
        TrtRunner(path, plugin_library=library)


@pytest.mark.parametrize("form", ["embedded", "ahead-of-time"])
def test_a_plugin_inside_the_engine_asks_for_no_library(tmp_path, form):
    plugins = {"used": ["vitslim::SparseAttention"], "form": form, "library_sha256": None}
    path = write(tmp_path / "m.engine", plugins=plugins)
    require_plugins(path, read_record(path), None)
    assert read_record(path).brings_code == (form == "embedded")


def test_an_engine_without_its_weights_is_refused_with_the_command_that_gives_them_back(tmp_path):
    path = write(tmp_path / "m.engine", has_weights=False)
    with pytest.raises(
        CheckpointError, match=r"without its weights \(--strip-plan\).*vitslim refit .*m\.engine --from DIR"
    ):
        require_fit(path, read_record(path), HERE, "11.4.0")


def test_another_driver_is_no_misfit_but_is_reported_when_an_engine_does_not_load():
    older = HERE.model_copy(update={"driver": "550.2"})
    assert misfits(record(), older, "11.4.0") == []
    assert driver_difference(record(), older) == " (it was built with driver 580.1, here is 550.2)"
    assert driver_difference(record(), HERE) == driver_difference(record(), Machine()) == ""


def test_the_record_survives_its_file(tmp_path):
    path = write(tmp_path / "m.engine")
    assert json.loads(record_path(path).read_text())["format"] == 1
    assert read_record(path) == record()
