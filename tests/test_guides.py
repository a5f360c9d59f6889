"""The guides in examples/guides: every command in them runs, in the order in which they stand there."""

import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command, vitslim  # noqa: F401  the fixture
from tests.test_examples import opened
from vitslim.files import read_json

measure = opened("measure")

QUICK = {
    "convert": ["--set", "distill.steps=2", "--set", "warm_start.steps=2"],
    "bench": ["--rounds", "5", "--batch", "1", "--backend", "torch"],
}
"""What shortens a command without changing what it shows."""


def shortened(words: list[str]) -> list[str]:
    """A command with two steps of training and a tenth of the images; only ``eval`` keeps all."""
    if words[0] == "eval":
        return [*words, "--json"]
    if "--epochs" in words:
        place = words.index("--epochs")
        words = words[:place] + words[place + 2 :]
    return [*("few" if word == "digits" else word for word in words), *QUICK.get(words[0], [])]


def every_tenth(_: str, names: list[str]) -> list[str]:
    """The files that are not copied."""
    return [name for number, name in enumerate(sorted(names)) if name.endswith(".png") and number % 10]


def test_a_model_of_ones_own_goes_from_its_file_to_the_comparison(
    vitslim: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path / "cache"))
    first, *others = measure.commands(measure.GUIDE.read_text())
    assert first == "python examples/train_digits.py"
    own = opened("train_digits").main(epochs=1)
    shutil.copytree("digits", "few", ignore=every_tenth)
    for line in others:
        program, *words = shlex.split(line)
        assert program == "vitslim"
        done = vitslim(*shortened(words))
        assert done.code == 0, (line, done.err)
        if words[0] == "eval":
            assert done.document["top1"] == pytest.approx(own, abs=0.003)
    page = Path("students", "compare.html").read_text()
    assert all(name in page for name in ("skipat", "evo-vit", "skipat-evo-vit", "dense control"))
    assert read_json(Path("teacher", "config.json"))["input"]["assumed"] == []
