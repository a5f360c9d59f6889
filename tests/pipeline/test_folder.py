from pathlib import Path

import pytest

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json
from vitslim.pipeline.folder import STAGES_FILE, RunFolder


def walk(path: Path, **inputs: int) -> list[str]:
    """Enter three stages whose inputs are given, finish those that must run, and name them."""
    folder = RunFolder(path)
    ran: list[str] = []
    for stage in ("first", "second", "third"):
        if folder.enter(stage, inputs.get(stage, 0), f"{stage}.txt"):
            ran.append(stage)
            (path / f"{stage}.txt").write_text("made")
            folder.finish(stage)
    return ran


def test_every_stage_runs_the_first_time_and_none_the_second(tmp_path: Path) -> None:
    assert walk(tmp_path) == ["first", "second", "third"]
    assert walk(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "ran"),
    [("first", ["first", "second", "third"]), ("second", ["second", "third"]), ("third", ["third"])],
)
def test_a_change_makes_that_stage_and_all_after_it_run(tmp_path: Path, changed: str, ran: list[str]) -> None:
    walk(tmp_path)
    assert walk(tmp_path, **{changed: 1}) == ran


def test_a_stage_whose_file_is_gone_runs_again(tmp_path: Path) -> None:
    walk(tmp_path)
    (tmp_path / "second.txt").unlink()
    assert walk(tmp_path) == ["second", "third"]


def test_going_back_to_old_inputs_does_not_find_old_results(tmp_path: Path) -> None:
    # The files of the first walk were replaced by the second.
    walk(tmp_path)
    walk(tmp_path, first=1)
    assert walk(tmp_path) == ["first", "second", "third"]


def test_a_run_that_was_cut_off_does_not_leave_later_stages_marked_as_done(tmp_path: Path) -> None:
    walk(tmp_path)
    cut_off = RunFolder(tmp_path)
    assert cut_off.enter("first", 1, "first.txt")
    (tmp_path / "first.txt").write_text("of the other run")
    assert walk(tmp_path) == ["first", "second", "third"]


def test_only_a_stage_that_was_cut_off_with_the_same_inputs_is_continued(tmp_path: Path) -> None:
    for inputs, is_continued in ((1, False), (1, True), (2, False), (2, True)):
        folder = RunFolder(tmp_path)
        assert folder.enter("train", inputs)
        assert folder.is_continued == is_continued
    folder.finish("train")
    later = RunFolder(tmp_path)
    assert later.enter("train", 3)
    assert not later.is_continued


def test_a_finished_stage_whose_file_is_gone_is_not_continued(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.enter("train", 1, "result")
    folder.finish("train")
    again = RunFolder(tmp_path)
    assert again.enter("train", 1, "result")
    assert not again.is_continued


def test_an_unreadable_record_of_stages_is_named(tmp_path: Path) -> None:
    (tmp_path / STAGES_FILE).write_text("[1]")
    with pytest.raises(CheckpointError, match=r"stages\.json is damaged; delete it to run all stages again"):
        RunFolder(tmp_path).enter("first", 0)


def test_a_folder_of_the_same_recipe_is_taken_again(tmp_path: Path) -> None:
    RunFolder(tmp_path / "out").begin("seed: 0\n", overwrite=False)
    RunFolder(tmp_path / "out").begin("seed: 0\n", overwrite=False)


def test_a_folder_of_another_recipe_needs_overwrite(tmp_path: Path) -> None:
    RunFolder(tmp_path / "out").begin("seed: 0\n", overwrite=False)
    (tmp_path / "out" / "model.safetensors").write_text("of the student")
    with pytest.raises(ConfigError, match="holds the run of another recipe; pass --overwrite or another folder"):
        RunFolder(tmp_path / "out").begin("seed: 1\n", overwrite=False)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "seed: 0\n"
    RunFolder(tmp_path / "out").begin("seed: 1\n", overwrite=True)


def test_a_folder_of_a_run_that_converted_nothing_is_taken_by_another_recipe(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin("seed: 0\n", overwrite=False)
    RunFolder(tmp_path).enter("analyze", 0, "analysis.json")
    (tmp_path / "analysis.json").write_text("{}")
    RunFolder(tmp_path).begin("seed: 1\n", overwrite=False)
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 1\n"
    (tmp_path / "recipe.yaml").unlink()
    # An analysis that was asked for by itself is a result.
    with pytest.raises(ConfigError, match="holds files that no run of vitslim wrote"):
        RunFolder(tmp_path).begin("seed: 1\n", overwrite=False)


def test_a_folder_of_foreign_files_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds files that no run of vitslim wrote"):
        RunFolder(tmp_path).begin("seed: 0\n", overwrite=False)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out is a file; name a folder"):
        RunFolder(tmp_path / "out").begin("seed: 0\n", overwrite=True)


def test_checking_a_folder_writes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "out").check("seed: 0\n", overwrite=False)
    assert not (tmp_path / "out").exists()


def test_discarding_takes_files_and_folders_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.onnx").write_text("")
    (tmp_path / "bench.json").write_text("")
    (tmp_path / "mine.txt").write_text("")
    RunFolder(tmp_path).discard("export", "bench.json", "never-there")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_record_names_what_is_done_and_what_was_begun(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.enter("first", 0)
    folder.finish("first")
    folder.enter("second", 0)
    record = read_json(tmp_path / STAGES_FILE)
    assert list(record["finished"]) == ["first"]
    assert list(record["begun"]) == ["second"]
