"""Registries, and what packages outside of vitslim add to them."""

import sys
from pathlib import Path

import pytest

from vitslim.errors import ConfigError, VitslimWarning
from vitslim.registry import Registry

GROUP = "vitslim.test_shapes"


@pytest.fixture
def shapes() -> Registry[int]:
    sys.modules["shapes_registry"] = registry = Registry[int]("shape", GROUP)  # type: ignore[assignment]
    registry.register("triangle", 3)
    return registry


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """A distribution of one module per entry point, as pip leaves one behind."""
    points = "".join(f"{name} = shape_{name}\n" for name in modules)
    (folder / "shapes-1.dist-info").mkdir()
    (folder / "shapes-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes\nVersion: 1\n")
    (folder / "shapes-1.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    for name, text in modules.items():
        (folder / f"shape_{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"shape_{name}", raising=False)
    monkeypatch.syspath_prepend(folder)


def test_an_unknown_name_is_answered_with_the_nearest(shapes: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"^unknown shape 'triangel'; did you mean 'triangle'\?$"):
        shapes.get("triangel")
    with pytest.raises(ConfigError, match="known: triangle"):
        shapes.get("zzz")


def test_another_name_of_an_entry_finds_it_and_is_not_listed() -> None:
    registry = Registry[int]("shape", GROUP, aliases={"three-sided": "triangle"})
    registry.register("triangle", 3)
    assert registry.get("three-sided") == 3
    assert registry.names() == ["triangle"]


def test_a_name_is_given_once(shapes: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="'triangle' is registered already"):
        shapes.register("triangle", 4)
    assert shapes.items() == [("triangle", 3)]


def test_an_entry_point_is_imported_only_when_its_name_is_not_known(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, square="import shapes_registry; shapes_registry.register('square', 4)")
    assert shapes.get("triangle") == 3
    assert "shape_square" not in sys.modules
    assert shapes.get("square") == 4
    assert shapes.names() == ["triangle", "square"]


def test_a_broken_entry_point_is_named_once_and_breaks_nothing_else(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = "import shapes_registry; shapes_registry.register('half', 1); raise RuntimeError('no half shapes')"
    install(tmp_path, monkeypatch, half=half, square="import shapes_registry; shapes_registry.register('square', 4)")
    with pytest.warns(VitslimWarning, match="entry point 'half' of vitslim.test_shapes is left out: RuntimeError: no"):
        assert shapes.names() == ["triangle", "square"]
    assert shapes.names() == ["triangle", "square"]
