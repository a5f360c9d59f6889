"""The torch.export program: loaded back, without vitslim, and refused rather than wrong."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.targets.serving import small
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError
from vitslim.pipeline import open_runner
from vitslim.targets import torch_export as program
from vitslim.targets import verify
from vitslim.targets.torch_export import METADATA_FILE, write_program

STRANGER = """
import sys, torch
kept = {name: "" for name in [sys.argv[3]]}
program = torch.export.load(sys.argv[1], extra_files=kept).module()
images = torch.load(sys.argv[2])
torch.save({"outputs": [program(images[:batch]) for batch in (1, 4)], "metadata": kept}, sys.argv[2])
assert "vitslim" not in sys.modules and "timm" not in sys.modules
"""


def test_a_program_runs_where_there_is_no_vitslim(tmp_path: Path) -> None:
    model = small("sparsifiner", granularity="query")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    written = write_program(model, tmp_path / "model.pt2", images)
    assert written.spelled_out > 0
    assert [check.batch for check in written.comparisons] == [1, 3]
    torch.save(images, tmp_path / "data.pt")
    words = [sys.executable, "-I", "-c", STRANGER, tmp_path / "model.pt2", tmp_path / "data.pt", METADATA_FILE]
    subprocess.run(words, check=True, capture_output=True)
    answer = torch.load(tmp_path / "data.pt")
    with torch.no_grad():
        expected = model(images)
    for outputs, batch in zip(answer["outputs"], (1, 4), strict=True):
        torch.testing.assert_close(outputs, expected[:batch], rtol=1e-4, atol=1e-5)  # the order of float32 sums
    assert json.loads(json.loads(answer["metadata"][METADATA_FILE])["image_size"]) == [32, 32]


def test_low_precision_keeps_float32_at_both_ends(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    written = write_program(small(), tmp_path / "model.pt2", images, precision="bf16")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert {value.dtype for name, value in loaded.state_dict.items() if "weight" in name} == {torch.bfloat16}
    assert loaded.module()(images).dtype == torch.float32
    assert written.comparisons[0].max_abs > 0


def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = program.traced_program
    (tmp_path / "model.pt2").write_bytes(b"the last good one")

    def shifted(model: torch.nn.Module, *rest: object) -> object:
        other = small()
        other.head.bias.data += 1
        return real(other, *rest)

    monkeypatch.setattr(program, "traced_program", shifted)
    with pytest.raises(CheckFailedError, match=r"model\.pt2 was not written: model.pt2, batch 1.*: largest difference"):
        write_program(small(), tmp_path / "model.pt2", torch.randn(3, 3, 32, 32))
    assert (tmp_path / "model.pt2").read_bytes() == b"the last good one"


def test_a_program_is_run_and_compared_like_every_other_file(tmp_path: Path) -> None:
    model, path = small("skipat", layers=(1,)), tmp_path / "model.pt2"
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert write_program(model, path, images).spelled_out == 0
    with open_runner(path) as runner, torch.no_grad():
        assert (runner.backend, runner.precision) == ("torch-export", "fp32")
        torch.testing.assert_close(runner(images), model(images), rtol=1e-4, atol=1e-5)
        with pytest.raises(ConfigError, match="input 'images' takes anyx3x32x32"):
            runner(images[:, :, :16])
    assert verify(model, path, images).passed
    model.head.bias.data += 1
    assert not verify(model, path, images).passed


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_nothing_in_a_program_is_unpickled(tmp_path: Path) -> None:
    write_program(small(), tmp_path / "model.pt2", torch.randn(3, 3, 32, 32))
    content = io.BytesIO()
    torch.save((Canary(tmp_path / "ran"),), content)
    with zipfile.ZipFile(tmp_path / "model.pt2") as good, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        pickles = [name for name in good.namelist() if name.endswith(".pt")]
        assert pickles
        for name in good.namelist():
            bad.writestr(name, content.getvalue() if name in pickles else good.read(name))
    with pytest.raises(CheckpointError, match="torch cannot load bad"):
        open_runner(tmp_path / "bad.pt2")
    assert not (tmp_path / "ran").exists()
