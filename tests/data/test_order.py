"""How many batches a pass has, without making them."""

import itertools

import pytest

from vitslim.data.order import Order


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("repeats", [0, 3])
def test_the_number_of_batches_is_that_of_the_batches(training: bool, repeats: int) -> None:
    for images, batch_size, world in itertools.product((1, 2, 7, 24, 25), (1, 5, 8, 30), (1, 2, 3)):
        for rank in range(world):
            order = Order(images, batch_size, training, repeats=repeats, rank=rank, world=world)
            assert len(order) == len(order.batches(0)), order


def test_a_pass_over_millions_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Order, "batches", None)
    assert len(Order(4_000_000, 256, training=True)) == 15_625
