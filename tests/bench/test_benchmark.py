import copy
import json
from pathlib import Path

import onnx
import pytest
import torch

from vitslim.bench import BenchReport, benchmark, caption
from vitslim.errors import ConfigError
from vitslim.methods import convert

FAST = {"rounds": 5, "warmup": 1}


def write_mean(target, request):
    """A stand-in for the exporter: a graph of one node, whatever the model."""
    if request.precision != "fp32":
        raise ConfigError(f"no {request.precision} here")
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 32, 32])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    node = onnx.helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = onnx.helper.make_graph([node], "mean", [images], [logits], [axes])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, request.path)


@pytest.fixture(scope="module")
def report(dense, shallow) -> BenchReport:
    models = {"dense": dense, "shallow": shallow}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitslim.targets.onnx.target.OnnxTarget.write", write_mean)
        return benchmark(models, baseline="dense", precisions=("fp32", "bf16"), batches=(1, 2), **FAST)


def test_the_real_exporter_fits(shallow):
    report = benchmark({"dense": shallow}, baseline="dense", backends=("ort",), batches=(1,), **FAST)
    assert report.skipped == []
    (row,) = report.rows
    # The file is the weights with a graph around them.
    assert row.weights_mib == row.params * 4 / 2**20
    assert row.weights_mib < row.file_mib < 1.5 * row.weights_mib


def test_what_torch_runs_itself_has_no_file(report):
    assert {row.backend for row in report.rows if row.file_mib is None} == {"torch"}


def test_there_is_a_row_for_every_model_backend_precision_and_batch(report):
    rows = {(row.model, row.backend, row.precision, row.batch) for row in report.rows}
    models, batches = ("dense", "shallow"), (1, 2)
    assert rows == {
        (model, backend, precision, batch)
        for model in models
        for batch in batches
        for backend, precision in (("torch", "fp32"), ("torch", "bf16"), ("ort", "fp32"))
    }


def test_the_baseline_is_exactly_as_fast_as_itself_and_half_the_blocks_are_faster(report):
    for row in report.rows:
        assert row.latency_ms_p50 <= row.latency_ms_p90 <= row.latency_ms_p99
        assert row.throughput_img_s == pytest.approx(row.batch / row.latency_ms_p50 * 1e3)
        if row.model == "dense":
            assert row.speedup_vs_dense == row.speedup_p10 == row.speedup_p90 == 1.0
        else:
            assert row.speedup_p10 <= row.speedup_p90
    shallow = {row.model: row for row in report.rows}["shallow"]
    dense = {row.model: row for row in report.rows}["dense"]
    assert shallow.macs < 0.6 * dense.macs
    assert shallow.params < dense.params
    assert shallow.peak_memory_mib is None
    assert any("peak_memory_mib" in note for note in report.notes)


def test_what_cannot_run_is_named_and_the_others_go_on(report):
    (skip,) = report.skipped
    assert (skip.backend, skip.precision, skip.model) == ("ort", "bf16", None)
    assert skip.reason == "ConfigError: no bf16 here"


def test_a_precision_that_a_backend_has_not_is_named(dense):
    found = benchmark({"dense": dense}, baseline="dense", backends=("torch",), precisions=("int8",), **FAST)
    assert not found.rows
    assert found.skipped[0].reason == (
        "ConfigError: backend torch has no int8; wanted one of fp32, fp16, bf16, or another backend"
    )


def test_the_report_survives_json_and_carries_its_environment(report):
    text = json.dumps(report.model_dump(mode="json"), allow_nan=False)
    assert BenchReport.model_validate(json.loads(text)) == report
    assert report.environment["torch_threads"] == 1
    assert report.settings["rounds"] == 5
    assert str(Path.cwd()) not in text


def test_threads_are_put_back_and_models_are_untouched(dense, shallow):
    threads, seen = torch.get_num_threads(), []
    state = copy.deepcopy(dense.state_dict())
    benchmark(
        {"dense": dense}, baseline="dense", backends=("torch",), batches=(1,), progress=seen.append, threads=2, **FAST
    )
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("bench", 1, 1)


def test_a_converted_model_runs_next_to_its_dense_one(dense):
    models = {"dense": dense, "skipat": convert(dense, "skipat", layers=range(1, 3), expansion=0.25)}
    report = benchmark(models, baseline="dense", backends=("torch",), batches=(1,), **FAST)
    dense_row, skipat_row = report.rows
    assert skipat_row.macs < dense_row.macs


def test_backends_are_those_of_the_registered_targets(dense):
    with pytest.raises(ConfigError, match=r"backends.0='otr': unknown backend 'otr'; did you mean 'ort'"):
        benchmark({"dense": dense}, baseline="dense", backends=("otr",), **FAST)


def test_one_broken_model_does_not_end_the_session_and_its_paths_stay_private(dense, shallow):
    broken = copy.deepcopy(shallow)

    def refuse(images):
        if images.is_meta:
            return images
        raise ValueError("/home/someone/models/vit.py cannot run\nsecond line")

    broken.forward_head = refuse
    models = {"dense": dense, "broken": broken}
    report = benchmark(models, baseline="dense", backends=("torch",), batches=(1,), **FAST)
    assert [row.model for row in report.rows] == ["dense"]
    (skip,) = report.skipped
    assert (skip.model, skip.batch, skip.reason) == ("broken", 1, "ValueError: vit.py cannot run")


def test_a_broken_baseline_takes_its_rows_with_it(dense, shallow):
    broken = copy.deepcopy(dense)
    broken.forward_head = lambda images: images if images.is_meta else torch.zeros(1) @ torch.zeros(2)
    models = {"broken": broken, "shallow": shallow}
    report = benchmark(models, baseline="broken", backends=("torch",), batches=(1,), **FAST)
    assert report.rows == []
    assert (report.skipped[0].model, report.skipped[0].batch) == (None, 1)


def test_the_baseline_must_be_there_dense_and_fused(dense):
    with pytest.raises(ConfigError, match="did you mean 'dense'"):
        benchmark({"dense": dense}, baseline="dens")
    converted = convert(dense, "skipat", layers=range(1, 3))
    with pytest.raises(ConfigError, match="baseline 'student' is converted"):
        benchmark({"student": converted}, baseline="student")
    unfused = copy.deepcopy(dense)
    unfused.blocks[1].attn.fused_attn = False
    with pytest.raises(ConfigError, match=r"1 attention modules unfused \(first: blocks\.1\.attn\)"):
        benchmark({"dense": unfused}, baseline="dense")


def test_an_unknown_option_is_named_with_the_known_ones(dense):
    with pytest.raises(ConfigError, match="unknown key 'round'; did you mean 'rounds'"):
        benchmark({"dense": dense}, baseline="dense", round=3)


def test_every_row_says_what_the_whole_session_knows(report):
    for row in report.rows:
        assert (row.verdict is None) == (row.model == "dense")
        dense = next(
            one
            for one in report.rows
            if (one.model, one.backend, one.precision) == ("dense", "torch", "fp32") and one.batch == row.batch
        )
        assert row.speedup_vs_dense_torch == dense.latency_ms_p50 / row.latency_ms_p50
        assert not row.other_image_size
    assert BenchReport(**json.loads(report.model_dump_json())) == report


def test_a_model_of_another_input_size_is_flagged(dense):
    larger = copy.deepcopy(dense)
    larger.set_input_size(img_size=64)
    found = benchmark({"dense": dense, "larger": larger}, baseline="dense", backends=("torch",), batches=(1,), **FAST)
    assert {row.model: row.other_image_size for row in found.rows} == {"dense": False, "larger": True}
    assert "models marked * at another resolution than the baseline" in caption(found)


def test_processor_time_is_of_one_thread(dense):
    options = {"baseline": "dense", "backends": ("torch",), "batches": (1,), "rounds": 5, "clock": "processor"}
    assert benchmark({"dense": dense}, **options).rows[0].latency_ms_p10 > 0
    with pytest.raises(ConfigError, match="wanted threads=1 and device=cpu, given threads=2"):
        benchmark({"dense": dense}, **options, threads=2)
