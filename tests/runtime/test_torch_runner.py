import pytest
import torch

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.runtime import Runner, TorchRunner, working_copy


def test_the_eager_runner_is_the_model(model, images):
    with TorchRunner(model, name="dense") as runner, torch.no_grad():
        assert isinstance(runner, Runner)
        assert (runner.name, runner.backend, runner.precision) == ("dense", "torch", "fp32")
        assert torch.equal(runner.run(images), model(images))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_takes_and_gives_float32_and_leaves_the_model_in_float32(model, images, precision):
    with TorchRunner(model, precision=precision) as runner, torch.no_grad():
        logits = runner.run(images)
        assert logits.dtype == torch.float32
        assert runner.inputs[0].dtype in (torch.bfloat16, torch.float16)
        expected = model(images)
    # bf16 rounds at 4e-3; four blocks stay within ten roundings of the scale.
    assert (logits - expected).abs().max() < 4e-2 * expected.abs().max()
    assert next(model.parameters()).dtype == torch.float32


def test_a_model_without_a_classifier_gives_features(model):
    headless = working_copy(model)
    headless.reset_classifier(0)
    with TorchRunner(headless) as runner:
        assert runner.outputs[0].name == "features"


def test_a_closed_runner_says_so(model, images):
    runner = TorchRunner(model)
    runner.close()
    with pytest.raises(ConfigError, match="closed"):
        runner.run(images)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named(model):
    with pytest.raises(MissingDependencyError, match="no CUDA GPU"):
        TorchRunner(model, device="cuda")


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, while it builds its C++ wrapper
def test_the_compiled_runner_agrees_with_the_eager_one(model, images):
    with TorchRunner(model, compiled=True) as compiled, TorchRunner(model) as eager:
        assert compiled.backend == "compiled"
        torch.testing.assert_close(compiled.run(images), eager.run(images), rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to pack weights for")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_a_cpu_every_matrix_is_packed_when_it_is_compiled_and_never_again(model, images):
    with TorchRunner(model, compiled=True) as runner:
        runner.run(images)
        with torch.profiler.profile() as seen:
            runner.run(images)
    calls = {event.key: event.count for event in seen.key_averages()}
    # qkv, proj, fc1, fc2 in each block, and the head.
    assert calls["mkl::_mkl_linear"] == 4 * len(model.blocks) + 1
    assert "aten::addmm" not in calls
    assert sum(count for key, count in calls.items() if key.startswith("Torch-Compiled Region")) == 1
