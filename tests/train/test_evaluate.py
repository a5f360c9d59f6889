from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vitslim.data import FractalConfig, Loader
from vitslim.errors import CheckFailedError, ConfigError, DataError
from vitslim.train import evaluate

Build = Callable[..., nn.Module]
OpenLoader = Callable[..., Loader]


class Oracle(nn.Module):
    """Gives the logits that it was given, row after row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.place = 0

    def forward(self, images: Tensor) -> Tensor:
        self.place += len(images)
        return self.logits[self.place - len(images) : self.place]


def test_shares_equal_a_plain_count(open_loader: OpenLoader) -> None:
    loader = open_loader("val", batch_size=6, images=FractalConfig(classes=8, image_size=32, val_per_class=5), limit=20)
    labels = torch.cat([batch.labels for batch in loader if batch.labels is not None])
    logits = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    teacher_logits = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    found = evaluate(Oracle(logits), loader, teacher=Oracle(teacher_logits))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.images == 20
    assert found.top1 == pytest.approx(float((ranks == 0).float().mean()))
    assert found.top5 == pytest.approx(float((ranks < 5).float().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert found.agreement == pytest.approx(float((logits.argmax(1) == teacher_logits.argmax(1)).float().mean()))
    p, q = teacher_logits.softmax(1), logits.softmax(1)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_with_fewer_than_five_classes_all_are_among_the_best(build: Build, open_loader: OpenLoader) -> None:
    found = evaluate(build(), open_loader("val"))
    assert found.top5 == 1.0
    assert 0 <= (found.top1 or 0) <= 1
    assert found.agreement is found.kl is None


def test_a_model_agrees_with_itself(build: Build, open_loader: OpenLoader) -> None:
    found = evaluate(build(), open_loader("val"), teacher=build())
    assert found.agreement == 1.0
    assert found.kl == pytest.approx(0.0, abs=1e-6)


def test_without_labels_only_the_comparison_is_left(build: Build, open_loader: OpenLoader) -> None:
    found = evaluate(build(), open_loader("val", labels="ignore"), teacher=build(seed=1))
    assert found.top1 is found.top5 is found.loss is None
    assert found.agreement is not None


def test_modes_and_gradients_stay_as_they_were(build: Build, open_loader: OpenLoader) -> None:
    model = build().train()
    model.get_submodule("norm").eval()
    evaluate(model, open_loader("val"))
    assert model.training
    assert not model.get_submodule("norm").training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_of_other_classes_is_refused(build: Build, open_loader: OpenLoader) -> None:
    with pytest.raises(ConfigError, match="4 outputs and the teacher 10"):
        evaluate(build(), open_loader("val"), teacher=build(num_classes=10))


def test_progress_reaches_the_number_of_images(build: Build, open_loader: OpenLoader) -> None:
    reports: list[SimpleNamespace] = []
    evaluate(build(), open_loader("val"), progress=lambda one: reports.append(SimpleNamespace(**vars(one))))
    assert (reports[-1].done, reports[-1].total) == (20, 20)


def test_data_of_other_classes_is_refused(build: Build, open_loader: OpenLoader) -> None:
    with pytest.raises(DataError, match="given 4 classes, model has 10 outputs"):
        evaluate(build(num_classes=10), open_loader("val"))


def test_scores_that_are_no_numbers_are_no_result(build: Build, open_loader: OpenLoader) -> None:
    model = build()
    for name in ("blocks.1.norm1.weight", "blocks.3.mlp.fc1.weight"):
        model.get_parameter(name).data[0] = torch.nan
    named = r"blocks.1.norm1.weight, blocks.3.mlp.fc1.weight hold NaN"
    with pytest.raises(CheckFailedError, match=rf"^model: the class scores of 20 of 20 images are NaN.*{named}"):
        evaluate(model, open_loader("val"))
    with pytest.raises(CheckFailedError, match=rf"^teacher: the class scores of 20 of 20 .*the teacher's {named}"):
        evaluate(build(), open_loader("val"), teacher=model)
    logits = torch.zeros(20, 4)
    logits[3, 2] = torch.inf
    with pytest.raises(CheckFailedError, match=r"1 of 20 images are NaN or infinite; the model's logits holds"):
        evaluate(Oracle(logits), open_loader("val"))


def test_weights_that_are_finite_are_not_blamed_for_scores_that_are_not(build: Build, open_loader: OpenLoader) -> None:
    model = build()
    model.get_parameter("head.weight").data.fill_(1e38)
    with pytest.raises(CheckFailedError, match="all of its weights are finite, so the numbers grow too large"):
        evaluate(model, open_loader("val"))


def test_a_teacher_of_another_image_size_is_refused_with_both_sizes(build: Build, open_loader: OpenLoader) -> None:
    with pytest.raises(ConfigError, match=r"teacher takes images of 3x64x64 .*prepared as 3x32x32; .*img_size=32"):
        evaluate(build(), open_loader("val"), teacher=build(img_size=64))
