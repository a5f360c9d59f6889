import shutil

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitslim import checkpoint
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError, VitslimError
from vitslim.models import preprocessing
from vitslim.opening import open_model
from vitslim.pipeline import open_runner
from vitslim.runtime import OrtRunner, Runner, TorchRunner
from vitslim.targets.onnx.export import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved tiny model with a float32 ONNX file."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_model("vit_tiny_patch16_224", pretrained=False, **options)
    checkpoint.save(model, folder)
    export_onnx(model, folder / "export" / "model.onnx")
    return model.eval(), folder


@pytest.fixture(scope="module")
def model(saved):
    return saved[0]


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_best_backend_is_picked_and_says_its_name(saved, images):
    model, folder = saved
    with open_runner(folder) as runner, torch.no_grad():
        assert isinstance(runner, Runner)
        assert runner.backend == ("ort-cuda" if runner.device.type == "cuda" else "ort")
        torch.testing.assert_close(runner(images).cpu(), model(images), rtol=1e-4, atol=1e-5)


def test_a_folder_without_exports_runs_in_torch(saved, images, tmp_path):
    model, folder = saved
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("export"))
    with open_runner(bare, device="cpu") as runner, torch.no_grad():
        assert runner.backend == "torch"
        torch.testing.assert_close(runner(images), model(images))
    with pytest.raises(ConfigError, match=r"nothing that backend 'rtx' reads; make it with .* --to rtx"):
        open_runner(bare, backend="rtx")


def test_an_engine_that_cannot_be_opened_is_passed_over_and_said(saved, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(saved[1], folder)
    (folder / "export" / "model-fp16.engine").write_bytes(b"cut")
    said = []
    with open_runner(folder, on_skip=said.append) as runner:
        assert runner.backend.startswith("ort")
    assert len(said) == 1
    assert said[0].startswith("model-fp16.engine in tensorrt: ")
    assert "has no model-fp16.engine.json" in said[0]


def test_a_named_backend_is_used_or_refused(saved):
    folder = saved[1]
    with open_runner(folder, backend="torch", device="cpu") as runner:
        assert isinstance(runner, TorchRunner)
    with open_runner(folder / "export" / "model.onnx", backend="ort") as runner:
        assert isinstance(runner, OrtRunner)
    with pytest.raises(ConfigError, match="unknown backend 'otr'; did you mean 'ort'"):
        open_runner(folder, backend="otr")
    with pytest.raises(ConfigError, match=r"backend 'compiled' is for benchmarks; wanted torch, .*ort"):
        open_runner(folder, backend="compiled")
    with open_runner(folder, backend="onnx") as runner:
        assert runner.backend == "ort"
    with pytest.raises(ConfigError, match=r"backend 'rtx' does not read model\.onnx; wanted one of ort"):
        open_runner(folder / "export" / "model.onnx", backend="rtx")
    with pytest.raises(VitslimError):
        open_runner(folder / "nothing.onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_providers_that_are_not_here_are_refused_with_what_to_install(saved):
    for backend in ("ort-cuda", "ort-tensorrt"):
        with pytest.raises(MissingDependencyError, match="pip install onnxruntime-gpu"):
            open_runner(saved[1], backend=backend)


def test_nothing_that_opens_is_an_error_that_names_every_try(saved, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.onnx").write_bytes(b"no")
    (export / "model-fp16.onnx").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model\.onnx in ort: .*; model-fp16\.onnx in ort: "):
        open_runner(tmp_path, backend="ort")


def test_a_folder_opens_for_normalised_images_and_a_file_for_bytes_by_its_path(saved, images, tmp_path):
    model, folder = saved[0], tmp_path / "out"
    shutil.copytree(saved[1], folder)
    raw = folder / "export" / "model-uint8-nhwc.onnx"
    export_onnx(model, raw, input_format="uint8-nhwc")
    shutil.copy(folder / "export" / "model.onnx", folder / "export" / "model-inlined.onnx")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    image = preprocessing(model)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    normalized = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    with open_runner(folder, backend="ort") as runner, open_runner(raw) as bytewise:
        assert (runner.name, bytewise.name) == ("model", "model-uint8-nhwc")
        assert bytewise.inputs[0].dtype == torch.uint8
        torch.testing.assert_close(bytewise(pixels), runner(normalized), rtol=0, atol=1e-5)
        with pytest.raises(ConfigError, match=r"takes the bytes of pictures, 0..255 as uint8, .*given float32"):
            bytewise(pixels.float())
        with pytest.raises(ConfigError, match=r"takes normalised images, given bytes \(uint8\)"):
            runner(pixels.permute(0, 3, 1, 2))
    for file in ("model.onnx", "model-inlined.onnx"):
        (folder / "export" / file).unlink()
    with pytest.raises(ConfigError, match=r"for normalised images \(model-uint8-nhwc.onnx takes bytes; open it by its"):
        open_runner(folder, backend="ort")


def test_arrays_of_other_libraries_come_in_and_go_out_through_dlpack(model, images):
    with TorchRunner(model) as runner:
        given = runner(images.numpy())
        assert torch.equal(given, runner.run(images))
        assert np.array_equal(np.from_dlpack(given), given.numpy())
        with pytest.raises(ConfigError, match="images are a list"):
            runner(images.tolist())


def test_a_shared_runner_goes_on_when_the_first_is_closed(saved, model, images):
    for first in (TorchRunner(model), open_runner(saved[1] / "export" / "model.onnx", backend="ort")):
        expected = first.run(images)
        second = first.share()
        first.close()
        assert torch.equal(second.run(images), expected)
        second.close()
        with pytest.raises(ConfigError, match="closed"):
            second.run(images)


def test_a_cuda_graph_is_refused_where_there_is_none(saved, model):
    with TorchRunner(model, device="cpu") as runner, pytest.raises(MissingDependencyError, match="needs a GPU"):
        runner.capture((1, 3, 32, 32))
    with open_runner(saved[1], backend="ort") as runner, pytest.raises(ConfigError, match="cannot record"):
        runner.capture((1, 3, 32, 32))


@pytest.mark.gpu
def test_a_captured_run_computes_what_a_plain_one_does(images):
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    with TorchRunner(model, device="cuda") as runner:
        captured = runner.capture(tuple(images.shape))
        captured.images.copy_(images)
        captured.replay()
        torch.testing.assert_close(captured.result, runner.run(images))
