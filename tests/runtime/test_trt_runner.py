"""Engines run for real; needs a GPU and one of TensorRT's flavors."""

import threading

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitslim.errors import ConfigError
from vitslim.export import export_onnx
from vitslim.export.tensorrt import EngineOptions, build_engine
from vitslim.runtime import Runner, TrtRunner, host_buffer
from vitslim.runtime.tensorrt_api import installed_version

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
    near(runner.run(host_buffer(runner.inputs[0], (3, 3, 32, 32)).copy_(images)), model(images.cuda()))
    captured = runner.capture((3, 3, 32, 32))
    captured.images.copy_(images)
    captured.replay()
    near(captured.result.float(), model(images.cuda()))


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
