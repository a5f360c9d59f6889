"""The card of every method: its Python runs, its commands are taken, its options and figures are those of the code."""

import re
from importlib import resources

import pytest
import torch

from tests.cli.conftest import Command, vitslim  # noqa: F401  the fixture
from tests.pages import ROOT, blocks, check_commands, commands, run_python
from vitslim.methods import describe_method, planned, read_method
from vitslim.names import METHOD_NAMES
from vitslim.opening import open_model
from vitslim.plans import ModelPlan, cost
from vitslim.trunk import plan_of


@pytest.fixture(scope="module")
def deit_small() -> ModelPlan:
    with torch.device("meta"):
        return plan_of(open_model("deit_small", pretrained=False))


def card(method: str) -> str:
    return (resources.files("vitslim") / "methods" / f"{method}.md").read_text()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_program_of_a_card_runs(method: str) -> None:
    ((_, program),) = blocks(card(method), "python")
    run_python(program)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_commands_of_a_card_are_taken(
    method: str,
    vitslim: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    ((_, content),) = blocks(card(method), "bash")
    check_commands(content, vitslim, monkeypatch)
    assert ["--method", method] in [words[2:4] for words in commands(content)]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_card_names_every_option_and_no_other(method: str) -> None:
    rows = re.findall(r"^\| (`.*?) \|", card(method), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    options = {option.name for option in describe_method(method).options}
    assert named <= options
    assert options <= named | set(re.findall(r"`(\w+)`", card(method)))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_card_counts_what_the_plan_costs(method: str, deit_small: ModelPlan) -> None:
    found = cost(deit_small), cost(planned(*read_method(method, {}), deit_small))
    macs = " → ".join(f"{one.macs / 1e9:.3f}" for one in found)
    parameters = " → ".join(f"{one.parameters / 1e6:.2f}" for one in found)
    assert f"{macs} GMAC" in card(method).replace(" (160 px)", "")
    assert f"{parameters} M parameters" in card(method)
