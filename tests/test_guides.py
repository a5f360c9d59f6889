"""The README and the guides: their commands and programs run, in the order in which they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import vitslim as package
from tests.cli.conftest import Command, vitslim  # noqa: F401  the fixture
from tests.pages import FEW, ROOT, blocks, check_commands, commands, run_python
from tests.pipeline.planned import stand_in
from tests.test_examples import opened
from vitslim.files import read_json
from vitslim.names import BUILTIN
from vitslim.pipeline.checks import check
from vitslim.recipe import read_recipe

measure = opened("measure")

QUICK = {
    "analyze": ["--images", "32", "--replacement-images", "4"],
    "eval": ["--limit", "32"],
    "bench": ["--rounds", "5", "--batch", "1", "--backend", "torch"],
    "train": ["--set", "steps=2", "--set", "tensorboard=false"],
}
"""What shortens a command without changing what it shows."""
SETTINGS = (
    *("distill.steps=2", "warm_start.steps=2", "warm_start.closed_form_batches=1"),
    *("distill.tensorboard=false", "warm_start.tensorboard=false"),
    *("analyze.images=32", "analyze.replacement_images=4", "data.train_limit=64", "data.val_limit=32"),
)
QUICK_RUN = [word for setting in SETTINGS for word in ("--set", setting)]
LITTLE = {"fractals": FEW, "digits": "few"}
"""Images in place of those of a page."""


def shortened(words: list[str]) -> list[str]:
    """A command with two steps of training and few images."""
    if words[0] == "convert" and "--data" in words:
        words = [*words, *QUICK_RUN]
    if "--epochs" in words:
        place = words.index("--epochs")
        words = words[:place] + words[place + 2 :]
    return [*(LITTLE.get(word, word) for word in words), *QUICK.get(words[0], [])]


@pytest.mark.parametrize("name", ["analyze", "benchmark", "compose", "deploy_cpu", "fine_tune", "plan"])
def test_a_guide_runs_from_its_first_command_to_its_last(
    name: str,
    vitslim: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch)
    found = blocks((measure.GUIDES / f"{name}.md").read_text())
    assert {"bash"} <= {language for language, _ in found}
    for language, content in found:
        if language == "python":
            run_python(content)
        for words in commands(content):
            done = vitslim(*shortened(words))
            assert done.code == 0, (words, done.err)
        if language == "yaml":
            assert check(read_recipe(yaml.safe_load(content))).outline.model == BUILTIN


@pytest.mark.parametrize("page", ["README.md", "examples/guides/deploy_gpu.md"])
def test_commands_that_need_more_than_a_test_has_are_taken(
    page: str,
    vitslim: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [content for language, content in blocks((ROOT / page).read_text()) if language != "python"]
    assert any(commands(content) for content in found)
    for content in found:
        check_commands(content, vitslim, monkeypatch)


def test_the_program_of_the_readme_runs_on_the_builtin_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, program),) = blocks(measure.README.read_text(), "python")
    quick = {
        '"path/to/images")  # labels are not needed': f'"{FEW}", images=32, replacement_images=4)',
        "path/to/images": FEW,
        '"deit_base"': '"builtin"',
        "epochs=3": "steps=2",
        'baseline="builtin"': 'baseline="builtin", backends=("torch",), batches=(1,), rounds=5',
    }
    for words, others in quick.items():
        assert words in program
        program = program.replace(words, others)
    run_python(program)
    assert package.plan_of(package.load("out")).depth == 8


@pytest.mark.parametrize("page", [measure.README, ROOT / "CONTRIBUTING.md", *sorted(measure.GUIDES.glob("*.md"))])
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


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
    first, *others = measure.commands(measure.OWN_MODEL.read_text())
    assert first == "python examples/train_digits.py"
    own = opened("train_digits").main(epochs=1)
    shutil.copytree("digits", "few", ignore=every_tenth)
    for line in others:
        program, *words = shlex.split(line)
        assert program == "vitslim"
        # The accuracy that vitslim finds has to be that of the script, on the same images.
        done = vitslim(*words, "--json") if words[0] == "eval" else vitslim(*shortened(words))
        assert done.code == 0, (line, done.err)
        if words[0] == "eval":
            assert done.document["top1"] == pytest.approx(own, abs=0.003)
    page = Path("students", "compare.html").read_text()
    assert all(name in page for name in ("skipat", "evo-vit", "skipat-evo-vit", "dense finetuned"))
    assert read_json(Path("teacher", "config.json"))["input"]["assumed"] == []
