import builtins
from pathlib import Path
from typing import Any

import pytest

from vitslim.analysis.colour import heat_colour
from vitslim.analysis.plots import _heat_map, write_plots
from vitslim.analysis.recommend import recommend
from vitslim.analysis.result import AnalysisReport, Replacement, Similarity
from vitslim.errors import MissingDependencyError

NAMES = ["cka_z.png", "cka_cls_attention.png", "cka_block.png", "linear_r2.png", "replacement.png"]


def report(depth: int, *, known: bool = True, classifier: bool = True) -> AnalysisReport:
    table = [[1.0 if a == b else (0.8 ** abs(a - b) if known else None) for b in range(depth)] for a in range(depth)]
    size = 0.1 if known else None
    effect = {"kl": size, "top1_agreement": 0.9} if classifier else {"feature_change": size}
    rows = [Replacement(layer=at, kind=kind, **effect) for at in range(1, depth) for kind in ("identity", "linear")]
    r2 = [None, *[0.7 if known else None] * (depth - 1)]
    return AnalysisReport(
        model="vit",
        images=64,
        layers=[f"blocks.{layer}" for layer in range(depth)],
        cka=Similarity(z=table, cls_attention=table, block=table),
        linear_r2=r2,
        linear_tokens=1088,
        output_measure="kl" if classifier else "feature_change",
        replacement_images=64,
        replacement=rows,
        recommended=recommend(rows, r2, table),
        notes=[],
    )


REPORTS = {
    "numbered": report(4),
    "deep": report(16, classifier=False),
    "nothing known": report(3, known=False),
    "one block": report(1),
}


@pytest.mark.parametrize("found", REPORTS.values(), ids=REPORTS)
def test_every_report_can_be_drawn(found: AnalysisReport, tmp_path: Path) -> None:
    paths = write_plots(found, tmp_path)
    assert [path.name for path in paths] == NAMES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_heat_map_lies_as_the_page_draws_it_and_has_its_colours() -> None:
    from matplotlib.colors import to_hex

    found = report(4)
    (image,) = _heat_map(found, found.cka.z, "title").axes[0].images
    assert image.origin == "upper"
    shares = (0.0, 0.3, 0.5, 1.0)
    assert [to_hex(image.cmap(image.norm(share))) for share in shares] == [heat_colour(share) for share in shares]


def test_without_matplotlib_the_extra_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[report\]'"):
        write_plots(report(4), tmp_path)
    assert list(tmp_path.iterdir()) == []
