"""Engines run for real; needs a GPU and one of TensorRT's flavors."""

import copy
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitslim.errors import CheckpointError, ConfigError
from vitslim.methods import convert
from vitslim.plugin import plugin_library
from vitslim.runtime import Runner, TrtRunner
from vitslim.runtime.tensorrt_api import installed_version
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.tensorrt.build import build_engine
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.refit import refit_engine

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def opened(request, tmp_path_factory):
    """A float32 model on the GPU and its engine in half precision."""
    pytest.importorskip("onnxscript")
    if installed_version(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "rtx" and torch.cuda.get_device_capability()[0] == 9:
        pytest.skip("TensorRT-RTX has no kernels for compute capability 9.0")
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10).eval()
    export_onnx(model, folder / "model.onnx", precision="fp16", opset=20)
    build_engine(folder / "model.onnx", folder / "model.engine", EngineOptions(flavor=request.param, batch=(1, 2, 4)))
    with TrtRunner(folder / "model.engine") as runner:
        yield model.cuda(), runner


def near(given, expected):
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


@torch.no_grad()
def test_an_engine_computes_what_its_model_does_at_every_batch_of_its_profile(opened, images):
    model, runner = opened
    assert isinstance(runner, Runner)
    images = torch.cat([images, images])[:4].cuda()
    for batch in (1, 2, 4):
        near(runner.run(images[:batch]), model(images[:batch]))
    with pytest.raises(ConfigError, match="given 5x3x32x32"):
        runner.run(torch.zeros(5, 3, 32, 32))


@torch.no_grad()
def test_a_captured_engine_and_page_locked_images_give_the_same(opened, images):
    model, runner = opened
    near(runner.run(images), model(images.cuda()))
    captured = runner.capture((3, 3, 32, 32))
    captured.images.copy_(images)
    captured.replay()
    near(captured.result.float(), model(images.cuda()))


@torch.no_grad()
def test_arrays_of_other_libraries_go_in_and_out_of_an_engine(opened, images):
    model, runner = opened
    expected = model(images.cuda())
    near(runner(images.numpy()), expected)
    # Another library's array on the GPU: the capsule is all that a runner may ask for.
    on_gpu = images.to(runner.device, runner.inputs[0].dtype)
    foreign = SimpleNamespace(__dlpack__=on_gpu.__dlpack__, __dlpack_device__=on_gpu.__dlpack_device__)
    given = runner(foreign)
    near(given, expected)
    assert torch.from_dlpack(given).data_ptr() == given.data_ptr()


@torch.no_grad()
def test_contexts_of_one_engine_run_in_threads_of_their_own(opened, images):
    model, runner = opened
    expected, found = model(images.cuda()), {}

    def work(index):
        with runner.share() as own, torch.cuda.stream(torch.cuda.Stream()):
            found[index] = own.run(images).cpu()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given in found.values():
        near(given.cuda(), expected)
    assert len(found) == 3


@torch.no_grad()
def test_an_engine_takes_other_weights_and_a_stripped_one_its_own(opened, images, tmp_path):
    model, runner = opened
    flavor = runner.backend
    export_onnx(model.cpu(), tmp_path / "first.onnx", precision="fp16", opset=20)
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.head.weight)
    export_onnx(other, tmp_path / "other.onnx", precision="fp16", opset=20)
    model.cuda()
    images = images.cuda()
    options = EngineOptions(flavor=flavor, batch=(1, 2, 4), refit=True)
    build_engine(tmp_path / "first.onnx", tmp_path / "m.engine", options)
    assert refit_engine(tmp_path / "m.engine", tmp_path / "other.onnx").is_refittable
    with TrtRunner(tmp_path / "m.engine") as refitted:
        near(refitted.run(images), other.cuda()(images))
    options = EngineOptions(flavor=flavor, batch=(1, 2, 4), strip_plan=True)
    build_engine(tmp_path / "first.onnx", tmp_path / "s.engine", options)
    with pytest.raises(CheckpointError, match="without its weights"):
        TrtRunner(tmp_path / "s.engine")
    refit_engine(tmp_path / "s.engine", tmp_path / "first.onnx")
    with TrtRunner(tmp_path / "s.engine") as whole:
        near(whole.run(images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("form", ["embedded", "ahead-of-time", "external"])
def test_an_engine_computes_sparse_attention_by_its_plugin(images, tmp_path, form):
    if installed_version("tensorrt") is None:
        pytest.skip("tensorrt is not installed")
    library = None if form == "ahead-of-time" else plugin_library()
    if form != "ahead-of-time" and library is None:
        pytest.skip("the plugin is not built: vitslim plugin build --tensorrt-include DIR")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10)
        model = convert(dense.eval(), "sparsifiner", keep_rate=0.25, granularity="tile", tile=16)
    export_onnx(model, tmp_path / "model.onnx", precision="fp16", opset=20)
    options = EngineOptions(batch=(1, 2, 4), plugins="external" if form == "external" else "on")
    record = build_engine(tmp_path / "model.onnx", tmp_path / "m.engine", options, plugin_library=library)
    assert record.plugins.form == form
    code = (
        "import sys, torch; from vitslim.runtime import TrtRunner\n"
        "runner = TrtRunner(sys.argv[1], plugin_library=sys.argv[3] or None)\n"
        "torch.save(runner.run(torch.load(sys.argv[2], weights_only=True)).cpu(), sys.argv[2])"
    )
    torch.save(images, tmp_path / "images.pt")
    # In a process that never saw the plugin.
    outside = str(library) if form == "external" else ""
    words = [sys.executable, "-c", code, tmp_path / "m.engine", tmp_path / "images.pt", outside]
    subprocess.run([str(word) for word in words], check=True)
    near(torch.load(tmp_path / "images.pt", weights_only=True), model(images))
