"""bench suite, bench accuracy, and that `bench MODEL."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Command
from vitslim.bench.suite import Case, CaseResult
from vitslim.files import read_json
from vitslim.pipeline.suite import Suite, process, runner
from vitslim.pipeline.suite.process import attempt

PRESET: dict[str, Any] = {
    "rounds": 5,
    "warmup": 1,
    "models": {
        "tiny": {"name": "builtin", "options": {"depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 4}},
    },
    "competitors": {"evo-vit": {"convert": [{"method": "evo_vit"}]}},
    "groups": [
        {"models": ["tiny"], "sizes": [32], "competitors": ["evo-vit", "depth-drop"], "quick": True},
        {"models": ["tiny"], "sizes": [64], "backends": ["tensorrt"]},
    ],
}


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(PRESET))
    return path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a case does in a process of its own is done here, for what is not about processes."""
    monkeypatch.setattr(runner, "run_in_child", attempt)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole suite. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "own.yaml").write_text(yaml.safe_dump(PRESET))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_in_child", process.attempt)
        Suite("suite", folder / "out", preset=str(folder / "own.yaml")).run()
    return folder / "out"


@pytest.fixture
def measured(suite: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(suite, tmp_path / "out"))


def test_models_are_measured_with_and_without_the_word(student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--backend", "torch", "--batch", 1, "--rounds", 5, "--out", tmp_path / "b.json")
    for before in ((), ("models",)):
        outcome = vitslim("bench", *before, student, *words)
        assert outcome.code == 0, outcome.err
        assert {row["model"] for row in read_json(tmp_path / "b.json")["rows"]} == {"dense", "student"}
    assert vitslim("bench", *words[:2], student, *words[2:]).code == 0  # options first


def test_bench_alone_asks_for_a_model_and_its_help_names_the_other_commands(vitslim: Command) -> None:
    assert "Missing argument 'MODEL...'" in vitslim("bench").error
    shown = vitslim("bench", "--help")
    assert shown.code == 0
    assert all(word in shown.out for word in ("models", "suite", "accuracy"))


def test_the_suite_is_shown_and_gone_on_with(measured: Path, preset: Path, vitslim: Command) -> None:
    words = ("bench", "suite", "--preset", preset, "--out", measured)
    outcome = vitslim(*words)
    assert outcome.code == 0, outcome.err
    assert "deit" not in outcome.out
    assert "tiny, torch fp32:" in outcome.out
    assert "32 px, b1" in outcome.out
    assert "begun" not in outcome.err
    assert "`vitslim bench suite --preset own.yaml`" in outcome.out
    assert f"wrote {measured}/suite.html" in outcome.err
    assert str(measured.parent) not in (measured / "suite.json").read_text()
    assert vitslim(*words, "--json").document == read_json(measured / "suite.json")


@pytest.mark.usefixtures("in_this_process")
def test_the_recorded_command_is_one_that_runs_as_it_stands(
    preset: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out", "suite-own-quick")
    first = vitslim("bench", "suite", "--preset", preset, "--quick", "--out", out)
    assert "begun" in first.err
    document = read_json(out / "suite.json")
    assert {row["model"] for row in document["cases"][0]["rows"]} == {"dense", "evo-vit", "depth-drop"}
    assert document["command"] == "vitslim bench suite --preset own.yaml --quick"
    again = vitslim(*shlex.split(document["command"])[1:])
    assert again.code == 0, again.err
    assert "wrote out/suite-own-quick/suite.html" in again.err


def test_what_is_done_and_left_is_listed_without_measuring(
    measured: Path, preset: Path, tmp_path: Path, vitslim: Command
) -> None:
    words = ("bench", "suite", "--preset", preset, "--list", "--out")
    shown = vitslim(*words, tmp_path / "none")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[-1] == "0 of 2 cases are done, 2 are left"
    assert not (tmp_path / "none").exists()
    (measured / "cases" / "tiny-64-fp32-tensorrt-b1.json").unlink()
    assert vitslim(*words, measured, "--json").document == {
        "cases": {"tiny-32-fp32-torch-b1": "measured"},
        "left": ["tiny-64-fp32-tensorrt-b1"],
    }


def test_a_list_is_asked_for_alone(preset: Path, tmp_path: Path, vitslim: Command) -> None:
    for option in (("--again",), ("--minutes", "1")):
        refused = vitslim("bench", "suite", "--preset", preset, "--out", tmp_path / "out", "--list", *option)
        assert refused.code == 2
        assert "--list measures nothing; leave out" in refused.err


def test_the_gpu_preset_can_be_listed_where_there_is_no_gpu(
    vitslim: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = vitslim("bench", "suite", "--preset", "gpu", "--list")
    assert shown.code == 0, shown.err
    assert ["deit_small-224-bf16-compiled-graph-b256", "left"] in [line.split() for line in shown.out.splitlines()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (None, "0 of 1 cases are done, 1 are left; run the same command again"),
        ("too long", "0 of 1 cases are done, 1 are left; each needs a larger --minutes"),
    ],
)
def test_what_is_left_says_what_to_do(
    status: Any, sentence: str, preset: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Suite("suite", tmp_path / "out", preset=str(preset), quick=True).report()
    stopped = [CaseResult(case=Case(), digest="0", status=status, seconds=9.0)] if status else []
    left = [one.case.name for one in stopped] or held.left
    report = held.model_copy(update={"cases": stopped, "left": left})
    monkeypatch.setattr(Suite, "run", lambda *_, **__: report)
    outcome = vitslim("bench", "suite", "--preset", preset, "--quick", "--out", tmp_path / "out")
    assert sentence in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("suite", "--preset", "gpus", "--out", "o"),
            "unknown preset 'gpus'; wanted cpu, gpu, headline or a YAML file",
        ),
        (("accuracy", "--preset", "gpus", "--out", "o"), "unknown preset 'gpus'"),
        (("accuracy", "--out", "o", "--set", "training.budget.stepps=1"), "training.budget.stepps"),
        (("accuracy", "--out", "o", "--minutes", "0"), "--minutes"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], message: str, vitslim: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = vitslim("bench", *words)
    assert (outcome.code, message in outcome.error) == (2, True), outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["suite", "accuracy"])
def test_without_its_gpu_a_preset_is_refused_and_nothing_written(
    command: str, vitslim: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = vitslim("bench", command, "--preset", "gpu", "--out", tmp_path / "out")
    assert (outcome.code, "no usable GPU is there" in outcome.error) == (3, True), outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("in_this_process")
def test_a_suite_of_what_is_not_here_ends_with_an_error(vitslim: Command, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(PRESET | {"groups": [{"models": ["tiny"], "backends": ["compiled-graph"]}]}))
    outcome = vitslim("bench", "suite", "--preset", path, "--out", tmp_path / "out")
    assert outcome.code == 3
    assert outcome.error.startswith("nothing could be measured: ")
    assert outcome.error.endswith("compiled-graph runs on a GPU, this preset measures the CPU")
    assert read_json(tmp_path / "out" / "suite.json")["cases"][0]["status"] == "unavailable"


@pytest.mark.usefixtures("in_this_process")
def test_accuracy_that_is_stopped_says_what_is_left(tmp_path: Path, vitslim: Command) -> None:
    settings = (
        "models.teacher.options={depth: 4, embed_dim: 48, num_heads: 3, patch_size: 8}",
        "training.batch_size=4",
    )
    words = [word for one in settings for word in ("--set", one)]
    outcome = vitslim("bench", "accuracy", "--quick", "--out", tmp_path / "out", "--minutes", 0.05, *words)
    assert outcome.code == 0, outcome.err
    assert "run the same command again" in " ".join(outcome.err.split())
    document = read_json(tmp_path / "out" / "suite.json")
    assert {"teacher", "dense-finetuned", "teacher-32-fp32-torch-b1"} <= {*document["left"]}
    assert document["command"].startswith("vitslim bench accuracy --preset cpu --quick --set ")
    assert [word for word in shlex.split(document["command"]) if "=" in word] == [*settings]
