"""A folder appears whole, or the old one stays."""

from pathlib import Path

import pytest

from tests.kills import content_of, killed_at
from vitslim.errors import CheckpointError
from vitslim.files import atomic_folder


def give_up_half_way(scratch: Path, target: Path) -> None:
    (scratch / "a").write_text("a")
    assert not target.exists()
    raise ValueError("half way")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with pytest.raises(ValueError, match="half way"), atomic_folder(target) as scratch:
        give_up_half_way(scratch, target)
    assert not list(target.parent.iterdir())
    with atomic_folder(target) as scratch:
        (scratch / "a").write_text("a")
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert target.stat().st_mode & 0o700 == 0o700


def test_an_old_folder_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(CheckpointError, match="cannot be written"), atomic_folder(target):
        raise OSError(28, "No space left on device")
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_folder(target) as scratch:
        (scratch / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("point", range(1, 5))
def test_a_kill_leaves_the_old_folder_or_the_new_one_at_the_next_start(tmp_path: Path, point: int) -> None:
    def write(text: str) -> None:
        with atomic_folder(tmp_path / "folder") as scratch:
            (scratch / "text").write_text(text)

    write("old")
    was_killed = killed_at(point, lambda: write("new"), ("rename", "rmdir"))
    assert was_killed == (point < 5)
    with pytest.raises(ValueError, match="nothing is written"), atomic_folder(tmp_path / "folder"):
        raise ValueError("nothing is written")
    assert content_of(tmp_path) in ({"folder/text": b"old"}, {"folder/text": b"new"})
    write("next")
    assert content_of(tmp_path) == {"folder/text": b"next"}


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"), atomic_folder(tmp_path / "file" / "folder"):
        pass
