"""What is refused before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from tests.cli.conftest import Command
from vitslim.cli.early import check_model, model_names
from vitslim.errors import ConfigError

CONVERT = ("convert", "builtin", "--method", "skipat", "--out", "OUT")
REFUSED = {
    "a command": (("covert",), "Did you mean 'convert'?"),
    "an option": ((*CONVERT, "--devise", "cpu"), "No such option: --devise"),
    "an alias": (("convert", "deit_bsae", *CONVERT[2:]), "unknown model 'deit_bsae'; did you mean 'deit_base'"),
    "a timm model": (("inspect", "vit_tiny_patch61_224"), "did you mean 'vit_tiny_patch16_224'"),
    "a teacher": ((*CONVERT, "--teacher", "deit_smal"), "unknown model 'deit_smal'"),
    "a benched model": (("bench", "deit_small", "deit_smal"), "unknown model 'deit_smal'"),
    "a method": (("convert", "builtin", "--method", "skipatt", "--out", "OUT"), "did you mean 'skipat'?"),
    "a listed method": (("list", "methods", "evovit"), "did you mean 'evo_vit'?"),
    "a device": ((*CONVERT, "--device", "gpu"), "device 'gpu' is not one; wanted cpu, cuda or cuda:N"),
    "a method's option": ((*CONVERT, "-O", "layers"), "-O 'layers': wanted key=value"),
    "images": ((*CONVERT, "--data", "/nowhere"), "/nowhere does not exist; give a folder of images"),
    "weights": ((*CONVERT, "--weights", "/nowhere.pth"), "/nowhere.pth does not exist"),
    "a recipe": (("run", "/nowhere.yaml", "--out", "OUT"), "/nowhere.yaml does not exist"),
    "a full folder": (("analyze", "builtin", "--data", "fractals", "--out", "FULL"), "is not empty; pass --overwrite"),
    "a file": (("convert", "builtin", "--method", "skipat", "--out", "FULL/file"), "is a file; name a folder"),
}

ALL_AT_ONCE = """
import json, sys
from vitslim.cli.main import main

for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as leaving:
        print(leaving.code, flush=True)
print([name for name in ("torch", "timm", "numpy", "yaml") if name in sys.modules])
"""


def test_nothing_heavy_is_imported_for_what_is_refused_early_nor_for_help(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    places = {"OUT": str(tmp_path / "out"), "FULL": str(full), "FULL/file": str(full / "file")}
    lines = [[places.get(word, word) for word in words] for words, _ in REFUSED.values()]
    asked = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE],
        input=json.dumps([*lines, ["--version"], ["convert", "--help"]]),
        capture_output=True,
        text=True,
        check=True,
    )
    errors = asked.stderr.splitlines()
    assert len(errors) == len(REFUSED)
    for (what, (_, message)), error in zip(REFUSED.items(), errors, strict=True):
        assert message in error, what
    *_, loaded = asked.stdout.splitlines()
    assert loaded == "[]"
    assert [line for line in asked.stdout.splitlines() if line.isdigit()] == ["2"] * len(REFUSED) + ["0", "0"]
    assert not (tmp_path / "out").exists()


def test_every_name_of_timm_passes_the_early_check() -> None:
    known = set(model_names())
    assert set(timm.list_models()) <= known
    # Each look reads all sources of timm: only names that are not its own functions' need one.
    further = [name for name in timm.list_pretrained() if name.partition(".")[0] not in known]
    for name in (*further, "vit_tiny_patch16_224.augreg_in21k", "vit_small_patch16_224_in21k", "hf-hub:some/model"):
        check_model(name)


def test_what_lies_on_the_disk_is_not_taken_for_a_misspelt_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown model 'student'"):
        check_model("student")
    (tmp_path / "student").mkdir()
    check_model("student")


def test_a_killed_runs_leftovers_do_not_fill_a_folder(student: Path, tmp_path: Path, vitslim: Command) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".model.part").write_text("")
    outcome = vitslim("analyze", student, "--data", "/nowhere", "--out", tmp_path / "out")
    assert outcome.error.startswith("/nowhere does not exist")


def test_a_folder_without_rights_is_refused(tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # A test that runs as root could write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    outcome = vitslim("convert", "builtin", "--method", "skipat", "--out", tmp_path / "deep" / "out")
    assert (outcome.code, outcome.error) == (
        2,
        f"output {tmp_path}/deep/out: no right to write in {tmp_path}; name another place",
    )
