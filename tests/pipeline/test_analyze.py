"""The function `analyze` over a real loader, which is read several times."""

import torch

import vitslim
from vitslim.analysis import AnalysisReport
from vitslim.opening import open_model
from vitslim.progress import Progress


def test_every_replacement_is_measured_on_a_loader_that_is_cut_short() -> None:
    model = open_model("builtin", pretrained=False, img_size=32, num_classes=4)
    data = "fractals:classes=4,image_size=32,train_per_class=24,val_per_class=1"
    report = vitslim.analyze(model, data, images=64, replacement_images=8, batch_size=16)
    assert report.images == 64
    assert len(report.replacement) == 2 * 11
    assert all(row.kl is not None and row.top1_agreement is not None for row in report.replacement)
    assert report.recommended.layers


def test_the_function_and_the_cache_give_the_same_report() -> None:
    torch.manual_seed(0)
    model = open_model("builtin", pretrained=False, img_size=32, num_classes=4, depth=3, embed_dim=48, num_heads=3)
    stages: list[str] = []

    def note(one: Progress) -> None:
        stages.append(f"{one.stage} {one.unit}")

    def analyze(cache: bool) -> AnalysisReport:
        data = "fractals:classes=4,image_size=32,train_per_class=8,val_per_class=1"
        return vitslim.analyze(model, data, images=32, replacement_images=4, cache=cache, progress=note)

    first = analyze(cache=True)
    stages.clear()
    assert analyze(cache=True) == first
    assert stages == ["analyze done before"]
    assert analyze(cache=False) == first
    assert "replace img" in stages
