"""The verb `analyze` over a real loader, which is walked through several times."""

import vitslim
from vitslim.models import open_model


def test_every_replacement_is_measured_on_a_loader_that_is_cut_short() -> None:
    model = open_model("builtin", pretrained=False, img_size=32, num_classes=4)
    data = "fractals:classes=4,image_size=32,train_per_class=24,val_per_class=1"
    report = vitslim.analyze(model, data, images=64, replacement_images=8, batch_size=16)
    assert report.images == 64
    assert len(report.replacement) == 2 * 11
    assert all(row.kl is not None and row.top1_agreement is not None for row in report.replacement)
    assert report.recommended.layers
