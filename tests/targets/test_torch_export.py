"""The torch.export program: loaded back, without vitslim, and refused rather than wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.targets.serving import small
from vitslim.errors import CheckFailedError, ConfigError
from vitslim.targets import torch_export as program
from vitslim.targets.torch_export import METADATA_FILE, write_program

STRANGER = """
import sys, torch
kept = {name: "" for name in [sys.argv[3]]}
program = torch.export.load(sys.argv[1], extra_files=kept).module()
images = torch.load(sys.argv[2])
torch.save({"outputs": [program(images[:batch]) for batch in (1, 4)], "told": kept}, sys.argv[2])
assert "vitslim" not in sys.modules and "timm" not in sys.modules
"""


@pytest.mark.parametrize(
    ("method", "options", "spelled_out"),
    [("sparsifiner", {"granularity": "query"}, True), ("skipat", {"layers": (1,)}, False)],
)
def test_a_program_runs_where_there_is_no_vitslim(
    method: str, options: dict[str, Any], spelled_out: bool, tmp_path: Path
) -> None:
    model = small(method, **options)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    written = write_program(model, tmp_path / "model.pt2", images)
    assert (written.spelled_out > 0) is spelled_out
    assert [check.batch for check in written.comparisons] == [1, 3]
    torch.save(images, tmp_path / "data.pt")
    words = [sys.executable, "-I", "-c", STRANGER, tmp_path / "model.pt2", tmp_path / "data.pt", METADATA_FILE]
    subprocess.run(words, check=True, capture_output=True)
    answer = torch.load(tmp_path / "data.pt")
    with torch.no_grad():
        expected = model(images)
    for outputs, batch in zip(answer["outputs"], (1, 4), strict=True):
        torch.testing.assert_close(outputs, expected[:batch], rtol=1e-4, atol=1e-5)  # the order of float32 sums
    assert json.loads(json.loads(answer["told"][METADATA_FILE])["image_size"]) == [32, 32]


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
    with pytest.raises(CheckFailedError, match=r"model\.pt2 was not written: batch 1: the file differs"):
        write_program(small(), tmp_path / "model.pt2", torch.randn(3, 3, 32, 32))
    assert (tmp_path / "model.pt2").read_bytes() == b"the last good one"


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 images were given for a batch of 3"):
        write_program(small(), tmp_path / "model.pt2", torch.randn(1, 3, 32, 32))
    assert not list(tmp_path.iterdir())
