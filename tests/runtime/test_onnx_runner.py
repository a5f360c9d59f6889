import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitslim
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime import OrtRunner, Runner
from vitslim.targets import target_of

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def write_mean(path, *, batch="batch", element="FLOAT", properties=None):
    """A graph whose logits are the channel means: an ONNX file without an exporter."""
    kind = getattr(onnx.TensorProto, element)
    images = onnx.helper.make_tensor_value_info("images", kind, [batch, 3, 4, 4])
    logits = onnx.helper.make_tensor_value_info("logits", kind, [batch, 3])
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    node = onnx.helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = onnx.helper.make_graph([node], "mean", [images], [logits], [axes])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, properties or {})
    onnx.save(model, path)
    return path


def test_it_runs_any_batch_and_reads_what_the_file_declares(tmp_path):
    path = write_mean(tmp_path / "mean.onnx", properties={"precision": "fp16", "producer": "vitslim"})
    images = torch.randn(5, 3, 4, 4)
    with OrtRunner(path, threads=1) as runner:
        assert isinstance(runner, Runner)
        assert isinstance(runner, OrtRunner)
        assert (runner.name, runner.backend, runner.precision) == ("mean", "ort", "fp16")
        assert runner.inputs[0].shape == (None, 3, 4, 4)
        assert runner.metadata["producer"] == "vitslim"
        torch.testing.assert_close(runner.run(images), images.mean((2, 3)))
        torch.testing.assert_close(runner.run(images[:1]), images[:1].mean((2, 3)))


def test_half_inputs_are_fed_as_half_and_come_back_as_float32(tmp_path):
    with OrtRunner(write_mean(tmp_path / "half.onnx", element="FLOAT16")) as runner:
        assert runner.precision == "fp16"
        assert runner.run(torch.ones(1, 3, 4, 4)).dtype == torch.float32


def test_images_that_do_not_fit_are_refused_with_both_shapes(tmp_path):
    with OrtRunner(write_mean(tmp_path / "two.onnx", batch=2)) as runner:
        assert runner.inputs[0].batch == 2
        with pytest.raises(ConfigError, match=r"takes 2x3x4x4, given 3x3x4x4"):
            runner.run(torch.zeros(3, 3, 4, 4))


def test_a_missing_file_and_a_broken_file_are_distinguished(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        OrtRunner(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not onnx")
    with pytest.raises(CheckpointError, match=r"cannot load broken\.onnx"):
        OrtRunner(tmp_path / "broken.onnx")


def test_a_suffix_that_no_backend_reads_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no target writes such files; wanted one that ends in"):
        target_of(tmp_path / "model.pt")


def test_a_closed_runner_says_so(tmp_path):
    runner = OrtRunner(write_mean(tmp_path / "mean.onnx"))
    runner.close()
    with pytest.raises(ConfigError, match="closed"):
        runner.run(torch.zeros(1, 3, 4, 4))


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_missing_provider_names_the_package(tmp_path):
    with pytest.raises(MissingDependencyError, match="onnxruntime-gpu"):
        OrtRunner(write_mean(tmp_path / "mean.onnx"), provider="cuda")


def test_a_missing_onnxruntime_names_the_extra(tmp_path, monkeypatch):
    path = write_mean(tmp_path / "mean.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"vitslim\[onnx\]"):
        OrtRunner(path)


def write_transposed_half(path):
    """float16 rows that are transposed right before a MatMul, as torch writes ``tokens[:, order]``; weights 1 and 2."""
    onnx.save(
        onnx.parser.parse_model("""
            <ir_version: 10, opset_import: ["": 20]>
            turned (float[batch, 1, 2, 2] images) => (float[batch, 4, 2] logits)
            <float16[1, 2] weight = {15360, 16384}, int64[4, 1] order = {3, 1, 0, 2}, int64[3] rows = {0, 4, 1}>
            {
                half = Cast <to = 10> (images)
                tokens = Reshape (half, rows)
                front = Transpose <perm = [1, 0, 2]> (tokens)
                picked = GatherND <batch_dims = 0> (front, order)
                back = Transpose <perm = [1, 0, 2]> (picked)
                mapped = MatMul (back, weight)
                logits = Cast <to = 1> (mapped)
            }
        """),
        path,
    )


def test_a_half_precision_file_does_not_take_the_process_down(tmp_path):
    write_transposed_half(tmp_path / "turned.onnx")
    # In a process of its own: ONNX Runtime with all its optimisations reads a null pointer on such a file.
    script = (
        "import torch; from vitslim.runtime import OrtRunner; runner = OrtRunner('turned.onnx', threads=1); "
        "print(runner.run(torch.arange(8.0).view(2, 1, 2, 2))[1, :, 1].tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, f"exit code {ran.returncode}: {ran.stderr}"
    assert ran.stdout == "[14.0, 10.0, 8.0, 12.0]\n"


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(vitslim.__file__).parents[1])}


def changed(path, change):
    """The same file after somebody changed its graph."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_without_an_output_is_refused_when_it_is_opened(tmp_path):
    path = changed(write_mean(tmp_path / "mean.onnx"), lambda model: model.graph.ClearField("output"))
    with pytest.raises(CheckpointError, match="no input or no output"):
        OrtRunner(path)


def test_a_name_that_is_no_text_is_refused_when_it_is_opened(tmp_path):
    path = write_mean(tmp_path / "mean.onnx", properties={"labels": "abcdefgh"})
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(CheckpointError, match=r"mean\.onnx"):
        OrtRunner(path)


def test_a_graph_that_cannot_be_computed_is_refused_when_it_is_run(tmp_path):
    def demand_another_axis(model):
        model.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3]))
        model.graph.node[0].op_type = "Reshape"
        del model.graph.node[0].attribute[:]

    path = changed(write_mean(tmp_path / "mean.onnx"), demand_another_axis)
    with OrtRunner(path) as runner, pytest.raises(CheckpointError, match="onnxruntime cannot run mean"):
        runner.run(torch.zeros(1, 3, 4, 4))
