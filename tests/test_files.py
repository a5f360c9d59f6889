import errno
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tests.kills import content_of, killed_at
from vitslim import files
from vitslim.errors import CheckpointError


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_written_file_holds_the_text_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    files.write_text(tmp_path / "deep" / "note.txt", "é\n")
    assert (tmp_path / "deep" / "note.txt").read_text("utf-8") == "é\n"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["note.txt"]


def test_a_written_file_has_the_rights_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "note.txt", "new")
        assert stat.S_IMODE((tmp_path / "note.txt").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027  # reading the mask left it as it was
    finally:
        os.umask(before)


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    document = {"a": [1, 2.5, None], "b": {"c": "é"}}
    files.write_json(tmp_path / "a.json", document)
    assert files.read_json(tmp_path / "a.json") == document


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path: Path, figure: float) -> None:
    files.write_json(tmp_path / "a.json", {"kl": 1.0})
    with pytest.raises(CheckpointError, match=r"a\.json cannot be written: a figure is NaN or infinite"):
        files.write_json(tmp_path / "a.json", {"kl": figure})
    assert files.read_json(tmp_path / "a.json") == {"kl": 1.0}


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "\x00\x01"])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json is not readable JSON"):
        files.read_json(tmp_path / "a.json")


def test_json_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"a\.json is not readable JSON"):
        files.read_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json does not exist"):
        files.read_json(tmp_path / "a.json")


def test_a_failure_inside_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    files.write_text(tmp_path / "note.txt", "old")

    def write_half() -> None:
        with files.atomic_path(tmp_path / "note.txt") as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "note.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_is_said_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    files.write_text(tmp_path / "note.txt", "old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(CheckpointError, match=r"note\.txt cannot be written \(No space left on device\)"):
        files.write_text(tmp_path / "note.txt", "new")
    assert (tmp_path / "note.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_full_disk_while_tensors_are_written_is_said_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    files.write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {})
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be written .*No space left"):
        files.write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {})
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [1.0, 1.0]


def test_a_file_where_a_folder_is_wanted_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match=r"out/note\.txt cannot be written"):
        files.write_text(tmp_path / "out" / "note.txt", "new")


def test_a_folder_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "note.txt").mkdir()
    with pytest.raises(CheckpointError, match=r"note\.txt cannot be written"):
        files.write_text(tmp_path / "note.txt", "new")


def test_tensors_come_back_with_their_notes(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {"w": torch.arange(3.0)}, {"who": json.dumps({"a": 1})})
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [0.0, 1.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_tensors_and_notes_give_the_same_bytes(tmp_path: Path) -> None:
    # The library's order of notes is another one for each file; odd characters are as long sorted as unsorted.
    notes = {"z": 'a"b\n\x01é\\/\x7f\u2028', "format": "pt", "é": "", "vitslim": "{}", "a": "1"}
    for number in range(8):
        shuffled = dict(sorted(notes.items(), key=lambda entry: hash((entry[0], number))))
        files.write_tensors(tmp_path / str(number), {"b": torch.arange(3.0), "é": torch.ones(2).bfloat16()}, shuffled)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == notes
        assert file.get_tensor("b").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("text", ['{"a": NaN}', "-Infinity", "[" * 10**6, "9" * 5000])
def test_json_that_no_standard_reader_takes_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json is not readable JSON"):
        files.read_json(tmp_path / "a.json")


def test_a_pipe_in_place_of_json_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"a\.json is not a file"):
        files.read_json(tmp_path / "a.json")


# --- what killed processes leave ------------------------------------------------------------------------------------


def write_pair(folder: Path, text: str) -> None:
    with files.atomic_paths(folder / "a.bin", folder / "b.bin") as scratches:
        for scratch in scratches:
            scratch.write_text(text)


@pytest.mark.parametrize(("point", "left"), [(1, "old old"), (2, "new old")])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, point: int, left: str) -> None:
    write_pair(tmp_path, "old")
    assert killed_at(point, lambda: write_pair(tmp_path, "new"), ("replace",))
    assert len(list(tmp_path.iterdir())) == 3
    assert f"{(tmp_path / 'a.bin').read_text()} {(tmp_path / 'b.bin').read_text()}" == left
    files.write_text(tmp_path / "other.txt", "x")
    assert sorted(content_of(tmp_path)) == ["a.bin", "b.bin", "other.txt"]


def test_a_folder_of_a_write_that_was_killed_counts_as_vacant(tmp_path: Path) -> None:
    assert killed_at(1, lambda: files.write_text(tmp_path / "note.txt", "x"), ("replace",))
    assert list(tmp_path.iterdir())
    assert files.is_vacant(tmp_path)
    (tmp_path / "mine.part").write_text("")
    assert not files.is_vacant(tmp_path)


def test_what_somebody_writes_at_and_what_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".movie.mkv.part").write_text("half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_text("years of work")
    (tmp_path / ".x.vitslim-abcdefgh.part").symlink_to("elsewhere")
    with files.atomic_path(tmp_path / "slow.bin") as scratch:
        scratch.write_text("half")
        files.write_text(tmp_path / "quick.txt", "x")
        assert scratch.read_text() == "half"
    assert (tmp_path / "slow.bin").read_text() == "half"
    assert (tmp_path / ".movie.mkv.part").exists()
    assert (tmp_path / "elsewhere" / "thesis.tex").exists()


@pytest.mark.parametrize("point", [1, 2])
def test_files_that_belong_together_are_replaced_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    write_pair(tmp_path, "old")
    calls, rename = itertools.count(1), os.replace
    monkeypatch.setattr(os, "replace", lambda *args: full_disk() if next(calls) == point else rename(*args))
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_pair(tmp_path, "new")
    assert content_of(tmp_path) == {"a.bin": b"old", "b.bin": b"old"}
    fresh = tmp_path / "fresh"
    calls = itertools.count(1)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_pair(fresh, "new")
    assert content_of(fresh) == {}


# --- where nothing can be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [files.require_writable, lambda path: files.write_text(path, "x")])
@pytest.mark.parametrize("name", ["pipe", "link", "/dev/null", "/dev/stdout", "folder"])
def test_devices_pipes_and_folders_are_refused_and_stay(check: Any, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    target = tmp_path / name
    kind = stat.S_IFMT(target.lstat().st_mode)
    with pytest.raises(CheckpointError, match=r"cannot be written \((it is a device|a folder has|Is a dir)"):
        check(target)
    assert stat.S_IFMT(target.lstat().st_mode) == kind
    assert len(list(tmp_path.iterdir())) == 3


def test_a_place_without_permission_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.require_writable(tmp_path / "deep" / "a.json")
    assert not (tmp_path / "deep").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match=r"a\.json cannot be written \(no permission to write in "):
        files.require_writable(tmp_path / "deep" / "a.json")


def test_text_that_utf8_cannot_hold_is_spelled(tmp_path: Path) -> None:
    files.write_text(tmp_path / "report.html", "a \ud800 name")
    assert (tmp_path / "report.html").read_text() == "a \\ud800 name"


@pytest.mark.parametrize("number", ["1" + 400 * "0", "-9223372036854775808", str(2**63)])
def test_integers_beyond_64_bits_are_no_json_of_ours(number: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(f'{{"macs": {number}}}')
    with pytest.raises(CheckpointError, match="is no count or size"):
        files.read_json(tmp_path / "cost.json")
