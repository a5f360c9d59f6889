import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

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
