import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.kills import content_of, killed_at
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, DataError
from vitslim.files import read_json, write_json, write_text
from vitslim.pipeline.folder import STAGES_FILE, RunFolder
from vitslim.pipeline.staging import replacing


def run(path: Path, **inputs: int) -> list[str]:
    """Enter three stages whose inputs are given, finish those that must run, and name them."""
    folder = RunFolder(path)
    ran: list[str] = []
    for stage in ("first", "second", "third"):
        if folder.enter(stage, inputs.get(stage, 0), f"{stage}.txt"):
            ran.append(stage)
            (path / f"{stage}.txt").write_text("made")
            folder.finish(stage)
    return ran


def make(path: Path, recipe: str, *, fail: bool = False) -> list[str]:
    """A run as the pipeline makes one, whose second stage takes away what was measured on the old student."""
    folder = RunFolder(path)
    folder.begin(recipe, overwrite=True)
    ran: list[str] = []
    with folder:
        for stage, name in (("convert", "model.bin"), ("export", "export/model.onnx")):
            if folder.enter(stage, recipe, name):
                ran.append(stage)
                folder.discard("export", "bench.json")
                write_text(folder.path / name, f"{stage} of {recipe}")
                folder.finish(stage)
            if fail:
                raise CheckFailedError("the loss is not finite")
    return ran


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a finished run, with what other commands and the user put there."""
    folder = tmp_path / "runs" / "out"
    make(folder, "a\n")
    write_text(folder / "bench.json", "measured")
    write_text(folder / "export" / "mine" / "notes.txt", "years of work")
    (folder / "link").symlink_to("nowhere")
    return folder


def siblings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_every_stage_runs_the_first_time_and_none_the_second(tmp_path: Path) -> None:
    assert run(tmp_path) == ["first", "second", "third"]
    assert run(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "ran"),
    [("first", ["first", "second", "third"]), ("second", ["second", "third"]), ("third", ["third"])],
)
def test_a_change_makes_that_stage_and_all_after_it_run(tmp_path: Path, changed: str, ran: list[str]) -> None:
    run(tmp_path)
    assert run(tmp_path, **{changed: 1}) == ran


def test_a_stage_whose_file_is_gone_runs_again(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "second.txt").unlink()
    assert run(tmp_path) == ["second", "third"]


def test_going_back_to_old_inputs_does_not_find_old_results(tmp_path: Path) -> None:
    # The files of the first run were replaced by the second.
    run(tmp_path)
    run(tmp_path, first=1)
    assert run(tmp_path) == ["first", "second", "third"]


def test_a_run_that_was_cut_off_does_not_leave_later_stages_marked_as_done(tmp_path: Path) -> None:
    run(tmp_path)
    cut_off = RunFolder(tmp_path)
    assert cut_off.enter("first", 1, "first.txt")
    (tmp_path / "first.txt").write_text("of the other run")
    assert run(tmp_path) == ["first", "second", "third"]


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
    make(tmp_path / "out", "seed: 0\n")
    with pytest.raises(ConfigError, match="holds the run of another recipe; pass --overwrite or another folder"):
        RunFolder(tmp_path / "out").begin("seed: 1\n", overwrite=False)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "seed: 0\n"
    RunFolder(tmp_path / "out").begin("seed: 1\n", overwrite=True)


def test_a_new_recipe_replaces_the_old_run_at_the_end(old: Path) -> None:
    before = content_of(old)
    folder = RunFolder(old)
    folder.begin("b\n", overwrite=True)
    with folder:
        assert folder.path.name == "out"
        assert folder.enter("convert", "b", "model.bin")
        folder.discard("export", "bench.json")
        write_text(folder.path / "model.bin", "new")
        folder.finish("convert")
        assert content_of(old) == before
        (old / "thesis.tex").write_text("written meanwhile")
    assert folder.path == old
    expected = {"model.bin": b"new", "recipe.yaml": b"b\n", "thesis.tex": b"written meanwhile"}
    found = content_of(old)
    assert {name: found[name] for name in expected} == expected
    assert sorted(found) == sorted([*expected, "stages.json"])
    assert (old / "link").is_symlink()
    assert siblings(old) == ["out"]


@pytest.mark.parametrize("recipe", ["b\n", "a\n"])
def test_a_failure_leaves_every_old_byte_and_the_same_command_goes_on(recipe: str, old: Path) -> None:
    if recipe == "a\n":
        (old / "model.bin").unlink()  # so that the finished stage runs again, over the old exports
    before = content_of(old)
    with pytest.raises(CheckFailedError):
        make(old, recipe, fail=True)
    assert content_of(old) == before
    assert siblings(old) == [".out.next", "out"]
    assert make(old, recipe) == ["export"]
    assert (old / "export" / "model.onnx").read_text() == f"export of {recipe}"
    assert siblings(old) == ["out"]


def test_another_command_starts_from_the_old_run_and_not_from_what_failed(old: Path) -> None:
    with pytest.raises(CheckFailedError):
        make(old, "b\n", fail=True)
    assert make(old, "c\n") == ["convert", "export"]
    assert siblings(old) == ["out"]


def test_a_run_that_finds_all_done_changes_no_result(old: Path) -> None:
    before = content_of(old)
    assert make(old, "a\n") == []
    assert content_of(old) == before


RENAMES = ("replace", "rename")
ALL_CHANGES = (*RENAMES, "link", "unlink", "rmdir", "mkdir")


@pytest.mark.parametrize("writes", [RENAMES, pytest.param(ALL_CHANGES, marks=pytest.mark.slow)], ids=("few", "all"))
def test_a_run_killed_anywhere_leaves_the_old_run_or_gives_the_new_one(
    writes: tuple[str, ...], tmp_path: Path, old: Path
) -> None:
    before = content_of(old)
    copied = tmp_path / "copied"
    shutil.copytree(old, copied, symlinks=True)
    make(copied, "b\n")
    after = content_of(copied)
    points = 0
    while True:
        place = tmp_path / str(points) / "out"
        shutil.copytree(old, place, symlinks=True)
        if not killed_at(points + 1, lambda place=place: make(place, "b\n"), writes):
            break
        points += 1
        if content_of(place) != before:
            RunFolder(place).check("b\n", overwrite=True)  # what every start does first
            assert content_of(place) == after, points
        make(place, "b\n")
        assert content_of(place) == after, points
        assert siblings(place) == ["out"], points
    assert points > 10


def test_a_folder_whose_parent_cannot_be_written_is_replaced_from_within(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != old.parent and access(path, mode))
    before = content_of(old)
    with pytest.raises(CheckFailedError):
        make(old, "b\n", fail=True)
    assert siblings(old) == ["out"]
    assert {name: data for name, data in content_of(old).items() if not name.startswith(".out.next")} == before
    assert make(old, "b\n") == ["export"]
    assert not (old / ".out.next").exists()
    assert (old / "model.bin").read_text() == "convert of b\n"


def test_files_are_copied_where_there_are_no_hard_links(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    before = content_of(old)
    with pytest.raises(CheckFailedError):
        make(old, "b\n", fail=True)
    assert content_of(old) == before
    make(old, "b\n")
    assert (old / "model.bin").read_text() == "convert of b\n"


@pytest.mark.parametrize("name", ["../thesis.tex", "/thesis.tex", "away/thesis.tex"])
def test_names_that_lead_outside_are_not_followed(name: str, old: Path) -> None:
    # As in a folder that somebody sent.
    (old.parent / "thesis.tex").write_text("years of work")
    (old / "away").symlink_to("..")
    (old.parent / ".out.next" / "ready").mkdir(parents=True)
    write_json(old.parent / ".out.next" / "origin.json", {name: [13, 0]})
    with pytest.raises(CheckpointError, match="outside of"):
        RunFolder(old).begin("b\n", overwrite=True)
    assert (old.parent / "thesis.tex").exists()


def test_two_runs_over_one_folder_do_not_meet(old: Path) -> None:
    first = RunFolder(old)
    first.begin("b\n", overwrite=True)
    with first:
        with pytest.raises(ConfigError, match=r"another process is working on .*out"):
            RunFolder(old).begin("c\n", overwrite=True)
        assert first.enter("convert", 0)
    make(old, "c\n")


def test_a_run_that_was_refused_before_its_first_result_needs_no_overwrite(tmp_path: Path, old: Path) -> None:
    with pytest.raises(DataError), begun(tmp_path / "out", "a\n"):
        raise DataError("no images there")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["recipe.yaml", "stages.json"]
    RunFolder(tmp_path / "out").begin("b\n", overwrite=False)
    with pytest.raises(DataError), begun(old, "b\n"):
        raise DataError("no images there")
    assert siblings(old) == ["out"]


def begun(path: Path, recipe: str) -> RunFolder:
    folder = RunFolder(path)
    folder.begin(recipe, overwrite=True)
    return folder


def test_a_recipe_of_the_users_own_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="pass --overwrite"):
        RunFolder(tmp_path).begin("seed: 0\n", overwrite=False)


def test_a_training_over_a_folder_takes_its_place_at_the_end(old: Path) -> None:
    before = content_of(old)

    def train(*, resume: bool, fails: bool) -> None:
        with replacing(old, resume=resume, without=("export",)) as place:
            assert (place / "state.bin").exists() == resume
            write_text(place / "state.bin", "step 3")
            if fails:
                raise DataError("unreadable")
            write_text(place / "model.bin", "trained")

    with pytest.raises(DataError):
        train(resume=False, fails=True)
    assert content_of(old) == before
    train(resume=True, fails=False)
    found = content_of(old)
    assert (found["model.bin"], found["state.bin"]) == (b"trained", b"step 3")
    assert not (old / "export").exists()
    assert siblings(old) == ["out"]
    with replacing(old, resume=True) as place:
        assert place == old


def test_a_folder_of_a_run_that_converted_nothing_is_taken_by_another_recipe(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin("seed: 0\n", overwrite=False)
    RunFolder(tmp_path).enter("analyze", 0, "analysis.json")
    (tmp_path / "analysis.json").write_text("{}")
    RunFolder(tmp_path).begin("seed: 1\n", overwrite=False)
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 1\n"


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
