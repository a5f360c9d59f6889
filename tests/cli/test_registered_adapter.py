"""A model class of another package, which an entry point brings, from its name to an ONNX file."""

import copy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.models import _registry

from tests.cli.conftest import Command
from vitslim.checkpoint import load
from vitslim.errors import ConfigError
from vitslim.models import create_model, families
from vitslim.models.catalog import isotropic_names, model_info

SOURCE = Path(__file__).with_name("toy_vit.py")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip leaves it behind, not imported by anybody yet."""
    described = tmp_path / "site" / "toy_vit-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-vit\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[vitslim.adapters]\ntoy = toy_vit\n")
    shutil.copy(SOURCE, tmp_path / "site")
    monkeypatch.setattr(families.ADAPTERS, "_entries", dict(families.ADAPTERS._entries))
    monkeypatch.setattr(families.ADAPTERS, "_is_complete", False)
    for name in ("_model_entrypoints", "_model_to_module", "_module_to_models"):  # so that timm forgets it again
        monkeypatch.setattr(_registry, name, copy.copy(getattr(_registry, name)))
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    sys.modules.pop("toy_vit", None)


def test_a_model_of_another_package_is_listed_converted_and_exported(
    installed: None, tmp_path: Path, vitslim: Command
) -> None:
    pytest.importorskip("onnxscript")
    assert len(SOURCE.read_text().splitlines()) < 60
    folder = tmp_path / "out"
    words = ("--no-pretrained", "--method", "skipat", "-O", "layers=2-3", "--out", folder)
    assert vitslim("convert", "toy_vit", *words).code == 0
    assert "toy_vit" in isotropic_names()
    assert (model_info("toy_vit").family, model_info("toy_vit").supported) == ("ToyVit", True)
    student, dense = load(folder), create_model("toy_vit", pretrained=False)
    assert student(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    # Before the first changed block the student is the toy itself, gains included.
    torch.nn.init.normal_(dense.blocks[1].gains)
    student.load_state_dict(dense.state_dict(), strict=False)
    tokens = torch.randn(1, 17, 48)
    torch.testing.assert_close(student.blocks[:2](tokens), dense.blocks[:2](tokens))
    assert vitslim("export", folder).code == 0
    assert vitslim("verify", folder).code == 0


def test_a_second_adapter_for_the_same_classes_is_refused(installed: None) -> None:
    kind = families.ADAPTERS.get("VisionTransformer.Block")
    with pytest.raises(ConfigError, match=r"'VisionTransformer\.Block' is registered already"):
        families.register_adapter(kind.model, block=kind.block, attention=kind.attention)(kind.adapter)
