"""A method of another package, found by its entry point: every command takes it as its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TINY = ["--no-pretrained", "--img-size", "32", "--num-classes", "4", "--set", "export={}"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as pip leaves it: the module, and metadata with an entry point."""
    place = tmp_path / "site"
    info = place / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(HERE / "toy_method.py", place)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vitslim.methods]\ntoy_mean = toy_method\n")
    return place


def vitslim(package: Path, *words: str) -> str:
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "vitslim", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_shorter_than_sixty_lines() -> None:
    assert len((HERE / "toy_method.py").read_text().splitlines()) < 60


def test_a_method_from_outside_converts_composes_exports_and_is_reported(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = vitslim(package, "convert", "builtin", "--method", "toy_mean", *TINY, "--out", str(out), "--json")
    plan = json.loads(made)["plan"]
    assert plan["steps"][1]["attention"] == {"kind": "mean"}
    parity = json.loads((out / "export" / "parity.json").read_text())
    assert parity["passed"]
    assert "mean token" in (out / "report.html").read_text()
    pairs = json.loads(vitslim(package, "list", "pairs", "--json"))
    joined = {row["first"]: row["supported"] for row in pairs if row["second"] == "toy_mean" and row["family"] == "ViT"}
    assert joined["evo_vit"]
