"""OpenVINO's files: as the model computes, in the precision that is asked for, and nothing else under their name."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.targets.serving import small
from vitslim.bench import benchmark
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime import OpenVinoRunner, openvino_runner
from vitslim.targets import TARGETS, verify
from vitslim.targets.base import Opening
from vitslim.targets.openvino import target as openvino_target
from vitslim.targets.openvino.target import write_ir
from vitslim.targets.parity.choices import Choices
from vitslim.targets.record import export_record_path

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, dense: nn.Module, noise: Tensor) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    write_ir(dense, path, noise)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("method", [None, "evo_vit", "skipat", "sparsifiner", "merge"])
def test_a_file_computes_what_its_model_computes(
    method: str | None, precision: str, noise: Tensor, tmp_path: Path
) -> None:
    model = small(method)
    record = write_ir(model, tmp_path / "model.xml", noise, precision=precision)
    assert (
        record.settings["INFERENCE_PRECISION_HINT"]
        in {"fp32": ["f32"], "fp16": ["f16", "f32"], "bf16": ["bf16"]}[precision]
    )
    report = verify(model, tmp_path / "model.xml", noise)
    assert report.passed
    assert {check.precision for check in report.checks} == {precision}


@pytest.mark.parametrize("method", ["evo_vit", "sparsifiner", "merge", "prune"])
def test_a_file_tells_its_choices_in_the_order_of_its_model(method: str, noise: Tensor, tmp_path: Path) -> None:
    model = small(method)
    write_ir(model, tmp_path / "model.xml", noise, precision="bf16")
    ((_, runner, telling),) = TARGETS.get("openvino").forms(tmp_path / "model.xml", None)
    assert telling is not None
    with runner as plain, telling as tell:
        logits, imposed = tell(noise)
        torch.testing.assert_close(logits, plain.run(noise), rtol=0.05, atol=0.05)
    with torch.no_grad(), Choices(imposed) as choices:
        met = model(noise)
    choices.require_all_taken()
    assert choices.excess is not None
    assert choices.excess.max() < 0.08
    torch.testing.assert_close(met, logits, rtol=0.05, atol=0.05)


def test_any_batch_is_taken_and_other_images_are_refused(written: Path, dense: nn.Module, noise: Tensor) -> None:
    with OpenVinoRunner(written, threads=1) as runner:
        assert runner.settings["INFERENCE_NUM_THREADS"] == "1"
        for count in (1, 4):
            with torch.no_grad():
                torch.testing.assert_close(runner.run(noise[:count]), dense(noise[:count]), rtol=1e-4, atol=1e-5)
        with pytest.raises(ConfigError, match="takes anyx3x32x32, given 1x3x16x16"):
            runner.run(torch.zeros(1, 3, 16, 16))
        other = runner.share()
        torch.testing.assert_close(other.run(noise), runner.run(noise))
    assert other.run(noise).shape == (4, 10)
    with pytest.raises(ConfigError, match="closed"):
        runner.run(noise)


def test_for_throughput_a_batch_is_dealt_out(written: Path, dense: nn.Module, noise: Tensor) -> None:
    with OpenVinoRunner(written, threads=2, splits=True) as runner:
        assert runner.settings["PERFORMANCE_HINT"].endswith("THROUGHPUT")
        for count in (1, 3, 4):
            with torch.no_grad():
                torch.testing.assert_close(runner.run(noise[:count]), dense(noise[:count]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(runner.share().run(noise), runner.run(noise))
    target = TARGETS.get("openvino")
    with target.load(written, Opening("openvino-throughput")) as opened:
        assert opened.settings["PERFORMANCE_HINT"].endswith("THROUGHPUT")


def test_what_was_compiled_is_kept_for_the_next_start(
    written: Path, noise: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runner, "cache_root", lambda: tmp_path)
    with OpenVinoRunner(written) as runner:
        expected = runner.run(noise)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        with TARGETS.get("openvino").load(written, Opening(keeps_compiled=True)) as runner:
            torch.testing.assert_close(runner.run(noise), expected)
        (kept,) = (tmp_path / "openvino").glob("*.blob")
        kept.stat()


@pytest.mark.parametrize("form", ["uint8-nchw", "uint8-nhwc"])
def test_bytes_are_normalised_inside(form: str, dense: nn.Module, noise: Tensor, tmp_path: Path) -> None:
    write_ir(dense, tmp_path / "model.xml", noise, input_format=form)
    with OpenVinoRunner(tmp_path / "model.xml") as runner:
        assert runner.inputs[0].dtype == torch.uint8
        assert runner.inputs[0].shape == ((None, 3, 32, 32) if form == "uint8-nchw" else (None, 32, 32, 3))
    assert verify(dense, tmp_path / "model.xml", noise).passed


def test_the_weights_of_another_file_are_refused(
    written: Path, dense: nn.Module, noise: Tensor, tmp_path: Path
) -> None:
    other = tmp_path / "model.xml"
    write_ir(dense, other, noise)
    content = bytearray(other.with_suffix(".bin").read_bytes())
    content[-1] ^= 1
    other.with_suffix(".bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.bin holds other weights than model\.xml"):
        OpenVinoRunner(other)
    other.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin does not exist"):
        OpenVinoRunner(other)


def test_what_a_file_says_of_itself_decides_nothing(dense: nn.Module, noise: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    write_ir(dense, path, noise)
    text = path.read_text()
    assert text.count("&quot;precision&quot;: &quot;fp32&quot;") == 1
    path.write_text(text.replace("&quot;precision&quot;: &quot;fp32&quot;", "&quot;precision&quot;: &quot;bf16&quot;"))
    report = verify(dense, path, noise)
    assert not report.passed
    assert any("it says bf16 of itself, exported was fp32" in line for line in report.failures())
    export_record_path(path).unlink()
    assert {check.precision for check in verify(dense, path, noise).checks} == {"fp32"}


def test_files_that_compute_something_else_replace_nothing(
    written: Path, dense: nn.Module, noise: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.xml"
    write_ir(dense, path, noise)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = openvino_target._converted
    monkeypatch.setattr(openvino_target, "_converted", lambda model: real(small("skipat")))
    with pytest.raises(CheckFailedError, match=r"model\.xml was not written"):
        write_ir(dense, path, noise)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_it_is_timed_beside_other_backends(dense: nn.Module) -> None:
    report = benchmark({"dense": dense}, baseline="dense", backends=("openvino",), batches=(1, 2), rounds=5, warmup=1)
    assert [(row.backend, row.batch) for row in report.rows] == [("openvino", 1), ("openvino", 2)]
    weights = sum(parameter.numel() * 4 for parameter in dense.parameters()) / 2**20
    assert report.rows[0].file_mib == pytest.approx(weights, rel=0.1)


def test_a_saved_folder_is_run_by_it(saved: Path, noise: Tensor) -> None:
    target = TARGETS.get("openvino")
    path = target.default_path(saved, "bf16", {})
    assert path == saved / "export" / "model-bf16.xml"


def test_without_openvino_it_says_what_to_install(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[openvino\]'"):
        OpenVinoRunner(written)


@pytest.mark.parametrize(
    ("there", "precision", "hint"),
    [
        ([], "fp16", "f32"),
        (["BF16"], "fp16", "f32"),  # OpenVINO would take bfloat16, with eight bits, for what was promised eleven
        (["FP16", "BF16"], "fp16", "f16"),
        (["BF16"], "int8", "bf16"),
        ([], "int8", "f32"),
        (["BF16"], "fp32", "f32"),
    ],
)
def test_a_file_is_never_computed_more_coarsely_than_it_says(there: list[str], precision: str, hint: str) -> None:
    core = SimpleNamespace(get_property=lambda device, name: there)
    assert openvino_runner.precision_hint(core, precision) == hint
