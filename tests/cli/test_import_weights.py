"""import."""

from pathlib import Path

import torch

from tests.authors import states
from tests.cli.conftest import Command
from vitslim import checkpoint

PYRAMID = [
    word
    for name, value in states.PYRAMID.items()
    if name not in ("img_size", "num_classes")
    for word in ("-O", f"{name}={list(value)}")
]


def test_a_checkpoint_becomes_a_saved_folder(tmp_path: Path, vitslim: Command) -> None:
    torch.save({"model": states.sret_state()}, tmp_path / "SReT_T.pth")
    words = ("--from", "sret", "--base", "vitslim_sret_tiny", "--img-size", 64, *PYRAMID, "--out", tmp_path / "out")
    outcome = vitslim("import", tmp_path / "SReT_T.pth", *words)
    assert outcome.code == 0, outcome.err
    assert "the same parameter as transformers.0.blocks.0" in outcome.out
    assert f"wrote {tmp_path / 'out'}" in outcome.err
    assert checkpoint.load(tmp_path / "out").num_classes == 10


def test_the_document_accounts_for_every_tensor(tmp_path: Path, vitslim: Command) -> None:
    torch.save(states.sret_state(), tmp_path / "SReT_T.pth")
    words = ("--from", "sret", "--base", "vitslim_sret_tiny", "--img-size", 64, *PYRAMID, "--out", tmp_path / "out")
    found = vitslim("import", tmp_path / "SReT_T.pth", *words, "--json").document
    assert {*found["used"], *found["dropped"]} == set(states.sret_state())
    assert found["source"] == "sret"


def test_a_wrong_base_leaves_no_folder(tmp_path: Path, vitslim: Command) -> None:
    torch.save(states.skipat_state(), tmp_path / "skipat.t7")
    words = ("--from", "skipat", "--base", "builtin", "--out", tmp_path / "out")
    outcome = vitslim("import", tmp_path / "skipat.t7", *words)
    assert outcome.code == 2
    assert "have another shape" in outcome.error
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_a_usage_error(tmp_path: Path, vitslim: Command) -> None:
    torch.save(states.skipat_state(), tmp_path / "skipat.t7")
    outcome = vitslim(
        "import", tmp_path / "skipat.t7", "--from", "skip", "--base", "builtin", "--out", tmp_path / "out"
    )
    assert outcome.code == 2
    assert "did you mean 'skipat'" in outcome.error
