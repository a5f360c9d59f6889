"""What the runner tells TensorRT, with a stand-in for TensorRT and the host's memory for the GPU's."""

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("onnx")

from tests.targets import tensorrt_stub as stub
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.pipeline import open_runner
from vitslim.runtime import TrtRunner, trt_runner
from vitslim.targets import Opening, target_of
from vitslim.targets.tensorrt.build import build_engine
from vitslim.targets.tensorrt.options import EngineOptions

IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MEANS = IMAGES.mean((1, 2, 3))[:, None].expand(-1, 12)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with a GPU whose memory is the host's."""
    monkeypatch.setattr(trt_runner, "_gpu", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    yield from stub.pretend(monkeypatch)


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "libvitslim_plugins.so"
    path.write_text("the library")
    return path


@pytest.fixture
def engine(tmp_path, library):
    """Build an engine for 1 to 4 images."""

    def build(plugins="off"):
        file = stub.write_file(tmp_path / "model.onnx")
        options = EngineOptions(batch=(1, 2, 4), plugins=plugins)
        path = tmp_path / "model.engine"
        build_engine(file, path, options, plugin_library=library, command=stub.STUB_COMMAND)
        return path

    return build


def test_every_batch_of_the_profile_runs_and_no_other(engine):
    with TrtRunner(engine()) as runner:
        assert (runner.backend, runner.precision) == ("tensorrt", "fp16")
        assert [(spec.name, spec.shape, spec.dtype) for spec in (*runner.inputs, *runner.outputs)] == [
            ("images", (None, 3, 4, 4), torch.float32),
            ("logits", (None, 12), torch.float32),
        ]
        for batch in (4, 1, 3):
            torch.testing.assert_close(runner.run(IMAGES[:batch]), MEANS[:batch])
        for refused in (torch.zeros(5, 3, 4, 4), torch.zeros(1, 3, 4, 5)):
            with pytest.raises(ConfigError, match="takes 1x3x4x4 to 4x3x4x4, given"):
                runner.run(refused)


def test_images_of_any_type_and_layout_come_in_as_the_engine_wants_them(engine):
    with TrtRunner(engine()) as runner:
        torch.testing.assert_close(runner(IMAGES.numpy()), MEANS)
        torch.testing.assert_close(runner.run(IMAGES.to(memory_format=torch.channels_last)), MEANS)
        torch.testing.assert_close(runner.run(IMAGES.double()), MEANS)


def test_a_result_is_the_callers_own(engine):
    with TrtRunner(engine()) as runner:
        first = runner.run(IMAGES[:2])
        runner.run(torch.zeros(2, 3, 4, 4))
        torch.testing.assert_close(first, MEANS[:2])


def test_contexts_that_share_an_engine_do_not_share_shapes_or_addresses(engine):
    found = {}
    with TrtRunner(engine()) as runner:
        contexts = [runner.share() for _ in range(3)]
        assert len({id(one._context) for one in (runner, *contexts)}) == 4
        assert {id(one._engine) for one in contexts} == {id(runner._engine)}

        def work(index):
            for _ in range(20):
                found[index] = contexts[index].run(IMAGES[: index + 1])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, given in found.items():
        torch.testing.assert_close(given, MEANS[: index + 1])
    # The first is closed; the others go on.
    torch.testing.assert_close(contexts[0].run(IMAGES[:1]), MEANS[:1])
    with pytest.raises(ConfigError, match="this runner is closed"):
        runner.run(IMAGES)


def test_an_engine_that_carries_its_plugin_opens_without_the_library(engine, monkeypatch):
    path = engine("on")
    monkeypatch.setenv("VITSLIM_CACHE", "/nowhere")
    with target_of(path).load(path, Opening()) as runner:
        torch.testing.assert_close(runner.run(IMAGES), MEANS)


def test_an_engine_whose_plugin_lies_outside_opens_with_the_library_only(engine, library, monkeypatch):
    path = engine("external")
    monkeypatch.setenv("VITSLIM_CACHE", "/nowhere")
    with pytest.raises(MissingDependencyError, match="whose library is not here"):
        target_of(path).load(path, Opening())
    monkeypatch.setenv("VITSLIM_PLUGIN_LIBRARY", str(library))
    with target_of(path).load(path, Opening()) as runner:
        torch.testing.assert_close(runner.run(IMAGES), MEANS)


def test_what_tensorrt_says_of_an_engine_it_cannot_load_is_passed_on(engine, monkeypatch):
    path = engine("external")
    monkeypatch.setattr(trt_runner, "require_plugins", lambda *_: None)
    older = stub.HERE.model_copy(update={"driver": "550.2"})
    monkeypatch.setattr(trt_runner, "this_machine", lambda *_: older)
    message = r"cannot load model\.engine: plugin creator not found \(it was built with driver 580\.1, here is 550\.2\)"
    with pytest.raises(CheckpointError, match=message):
        TrtRunner(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [("set_input_shape", r"model refused \(2, 3, 4, 4\)"), ("execute_async_v3", "model failed to run")],
)
def test_a_call_that_tensorrt_refuses_is_an_error(engine, monkeypatch, call, message):
    with TrtRunner(engine()) as runner:
        monkeypatch.setattr(runner._context, call, lambda *_: False)
        with pytest.raises(CheckFailedError, match=message):
            runner.run(IMAGES[:2])


def test_an_engine_that_fits_is_the_first_choice_of_a_folder(engine, tmp_path):
    path = engine()
    folder = tmp_path / "out" / "export"
    folder.mkdir(parents=True)
    for file in (path, path.with_name("model.engine.json")):
        file.rename(folder / file.name)
    with open_runner(folder.parent) as runner:
        assert runner.backend == "tensorrt"
        torch.testing.assert_close(runner(IMAGES), MEANS)
