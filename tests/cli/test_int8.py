"""INT8: kept where it loses little and gains time, else kept aside with the reason."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cli.conftest import Command
from tests.targets.serving import small
from vitslim import checkpoint
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.pipeline import export, int8, verify
from vitslim.pipeline.gate import Judged, QuantizedExport
from vitslim.runtime import OpenVinoRunner
from vitslim.targets.base import Judge
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.graph import choosing_products
from vitslim.targets.onnx.int8 import export_int8
from vitslim.targets.openvino import quantization
from vitslim.targets.openvino.target import write_ir
from vitslim.targets.sensitivity import block_of, least_kept

pytest.importorskip("openvino")
pytest.importorskip("nncf")

DATA = "fractals:classes=10,train_per_class=2,val_per_class=4,image_size=32"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(small("evo_vit"), tmp_path_factory.mktemp("int8") / "student")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the clock is going to say."""
    found = {"fp32": 3.0, "bf16": 2.0, "int8": 1.0}
    monkeypatch.setattr(int8, "latencies_ms", lambda *_: {1: found})
    return found


def exported(folder: Path, out: Path, **options: Any) -> QuantizedExport:
    to = "onnx" if out.suffix == ".onnx" else "openvino"
    options = {"max_drop": 100.0, **options}
    return export(folder, out, to=to, precision="int8", data=DATA, **options)


@pytest.mark.parametrize("name", ["model-int8.xml", "model-int8.onnx"])
def test_a_file_that_gains_is_kept_and_verified(
    saved: Path, tmp_path: Path, timed: dict[str, float], name: str
) -> None:
    found = exported(saved, tmp_path / name)
    assert not found.failures
    assert found.path == str(tmp_path / name)
    assert found.file is not None
    assert found.file.images == found.model.images == 40
    assert found.loss == pytest.approx(100 * ((found.model.top1 or 0) - (found.file.top1 or 0)))
    assert found.file.kl is not None
    assert found.file.kl > 0  # rounded at all
    assert json.loads((tmp_path / f"{name}.proof.json").read_text())["latency_ms"] == {"1": timed}
    report = verify(saved, found.path, data=DATA)
    assert report.passed
    assert {check.precision for check in report.checks} == {"int8"}
    size = (tmp_path / name.replace(".xml", ".bin")).stat().st_size
    assert size < 0.6 * sum(4 * one.numel() for one in checkpoint.load(saved).parameters())


@pytest.mark.parametrize(
    ("times", "most", "reason"),
    [
        (
            {"fp32": 3.0, "bf16": 2.0, "int8": 2.5},
            100.0,
            "no faster than without INT8 on this machine: 2.50 ms against",
        ),
        ({"fp32": 3.0, "int8": 1.0}, -1.0, "points of accuracy; -1 are allowed"),
    ],
)
def test_a_file_that_does_not_is_kept_aside_and_the_old_one_stays(
    saved: Path, tmp_path: Path, timed: dict[str, float], times: dict[str, float], most: float, reason: str
) -> None:
    old = tmp_path / "model-int8.xml"
    old.write_text("old")
    timed.clear()
    timed.update(times)
    found = exported(saved, old, max_drop=most, overwrite=True)
    assert any(reason in one for one in found.failures)
    assert found.path == str(tmp_path / "rejected" / "model-int8.xml")
    with OpenVinoRunner(found.path) as runner:
        assert runner.precision == "int8"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model-int8.xml", "rejected"]
    assert old.read_text() == "old"


def test_a_file_without_a_rival_in_float_is_kept_with_a_note(
    saved: Path, tmp_path: Path, timed: dict[str, float]
) -> None:
    del timed["fp32"], timed["bf16"]
    found = exported(saved, tmp_path / "model.xml")
    assert not found.failures
    assert found.notes == ["its speed is not proven: nothing in float could be timed beside it"]


def test_the_command_tells_the_times_and_fails_where_nothing_is_gained(
    saved: Path, tmp_path: Path, timed: dict[str, float], vitslim: Command
) -> None:
    out = str(tmp_path / "one" / "model.xml")
    asked = ("export", str(saved), "--to", "openvino", "--precision", "int8", "--data", DATA, "--max-drop", "100")
    done = vitslim(*asked, "--out", out)
    assert done.code == 0, done.err
    assert "points lost on 40 images; 100 are allowed" in done.err
    assert f"wrote {out}" in done.err
    timed["int8"] = 9.0
    done = vitslim(*asked, "--out", str(tmp_path / "two" / "model.xml"))
    assert done.code == 1
    assert "kept aside as" in done.err


def test_what_each_block_loses_is_told(
    saved: Path, tmp_path: Path, timed: dict[str, float], vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [5.0, 0.75, 0.5]  # in INT8, with the first block in float, with the second
    monkeypatch.setattr(Judged, "loss", lambda *_: losses.pop(0) if losses else 0.5)
    asked = ("export", str(saved), "--to", "openvino", "--precision", "int8", "--data", DATA)
    done = vitslim(*asked, "--max-drop", "1", "--out", str(tmp_path / "model.xml"))
    assert "all blocks in INT8 lose 5.00 points; with one block in float: 1 (0.50), 0 (0.75)" in " ".join(
        done.err.split()
    )
    assert "blocks 1 stayed in float: 0.50 points lost" in done.err


def test_without_images_of_the_task_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images of the task"):
        export(saved, tmp_path / "model.xml", to="openvino", precision="int8")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="pass data"):
        write_ir(small(), tmp_path / "model.xml", torch.randn(2, 3, 32, 32), precision="int8")
    with pytest.raises(ConfigError, match="is not written in int8"):
        export(saved, tmp_path / "model.pt2", to="torch-export", precision="int8", data=DATA)


def test_images_of_other_classes_judge_by_agreement(
    saved: Path, tmp_path: Path, timed: dict[str, float], vitslim: Command
) -> None:
    data = "fractals:classes=4,train_per_class=2,val_per_class=4,image_size=32"
    words = ("export", saved, "--precision", "int8", "--data", data, "--out", tmp_path / "model.onnx")
    refused = vitslim(*words)
    assert refused.code == 2
    assert "given 4 classes, model has 10 outputs" in refused.error
    assert "leave them out (data.labels=ignore" in refused.error
    found = vitslim(*words, "--set", "data.labels=ignore", "--max-drop", 100, "--json").document
    assert found["model"]["top1"] is None
    assert found["loss"] == pytest.approx(100 * (1 - found["file"]["agreement"]))


def test_without_nncf_nothing_is_begun(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.targets.base.find_spec", lambda name: None if name == "nncf" else find_spec(name))
    with pytest.raises(
        MissingDependencyError, match=r"target 'openvino' needs nncf: pip install 'vitslim\[openvino\]'"
    ):
        export(saved, tmp_path / "model.xml", to="openvino", precision="int8")  # without data, which is asked for later
    assert not list(tmp_path.iterdir())


def test_without_nncf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(MissingDependencyError, match=r"vitslim\[openvino\]"):
        quantization.quantized(None, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("method", ["evo_vit", "sparsifiner", "merge"])
def test_products_that_choose_stay_in_float(method: str, tmp_path: Path) -> None:
    import openvino

    images: Tensor = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.xml"
    write_ir(small(method), path, images, precision="int8", calibration=images)
    model = openvino.Core().read_model(path)
    chosen = set(quantization.choosing_products(model))
    assert chosen
    rounded = 0
    for one in model.get_ordered_ops():
        if one.get_type_name() == "MatMul":
            makers = [value.get_node().get_type_name() for value in one.input_values()]
            assert "FakeQuantize" not in makers or one.get_friendly_name() not in chosen
            rounded += "FakeQuantize" in makers
    assert rounded


@pytest.mark.parametrize("method", ["evo_vit", "sparsifiner", "merge"])
def test_products_that_choose_and_blocks_that_lose_stay_in_float_in_onnx(method: str, tmp_path: Path) -> None:
    import onnx

    given: list[int] = []

    def loss(runner: Any) -> float:
        given.append(int(runner.run(torch.randn(2, 3, 32, 32)).shape[0]))
        return 0.0 if len(given) > 3 else 5.0 - len(given)  # all, each block without the other, the last one without

    plain = export_onnx(small(method), tmp_path / "plain.onnx", inline=True)
    assert plain.sensitivity is None
    found = export_int8(small(method), tmp_path / "model.onnx", judge=Judge(loss, 1.0))
    assert found.sensitivity is not None
    assert found.sensitivity.kept == [1]
    graph = onnx.load(tmp_path / "model.onnx")
    chosen = choosing_products(onnx.load(tmp_path / "plain.onnx"))
    rounded = {node.name.removesuffix("_quant") for node in graph.graph.node if node.op_type == "MatMulInteger"}
    assert chosen
    assert rounded
    assert not rounded & {*chosen}
    assert {block_of(name) for name in rounded} <= {0, None}
    assert {node.name for node in graph.graph.node if node.op_type == "MatMul"} >= {*chosen}


def test_what_int8_in_onnx_is_not_written_with_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opset: int8 takes input_format, batch alone; leave it out"):
        exported(saved, tmp_path / "model.onnx", opset=21)
    assert not list(tmp_path.iterdir())


def test_blocks_that_int8_harms_most_stay_in_float_until_enough_is_kept() -> None:
    harm = {0: 0.5, 1: 4.0, 2: 0.1, 3: 2.0}

    def loss_with(kept: Any) -> float:
        return sum(value for block, value in harm.items() if block not in kept)

    found = least_kept(list(harm), loss_with, 1.0)
    assert found.kept == [1, 3]
    assert found.last == pytest.approx(0.6)
    assert found.without[1] == pytest.approx(2.6)
    assert "blocks 1, 3 stayed in float: 0.60 points lost" in found.lines()[1]
    assert least_kept(list(harm), loss_with, 10.0).without == {}
    assert least_kept(list(harm), loss_with, 0.0).kept == [1, 3]  # half of them at most
