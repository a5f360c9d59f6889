import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitslim.train.losses import ce_loss, kd_loss, matching_depths, step_loss, token_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kd_loss_is_the_divergence_from_teacher_to_student() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    p, q = teacher.softmax(1), student.softmax(1)
    plain = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(kd_loss(student, teacher), plain)
    torch.testing.assert_close(kd_loss(teacher, teacher, 3.0), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """At high temperature the gradient nears that of half the squared difference of centred logits, over classes."""
    teacher = draw(6, 5, seed=1)
    student = draw(6, 5).requires_grad_()
    kd_loss(student, teacher, 100.0).backward()
    assert student.grad is not None
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(1, keepdim=True)) / 5 / 6
    torch.testing.assert_close(student.grad, expected, atol=1e-3, rtol=0.05)  # the limit is reached as 1 / T


def test_ce_loss_takes_class_numbers_or_shares() -> None:
    logits, labels = draw(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(ce_loss(logits, F.one_hot(labels, 5).float()), ce_loss(logits, labels))
    spread = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    torch.testing.assert_close(ce_loss(logits, spread), ce_loss(logits, labels, smoothing=0.1))


def test_losses_of_bf16_outputs_are_computed_in_float32() -> None:
    logits, tokens = draw(4, 5).bfloat16(), draw(4, 3, 6).bfloat16()
    for loss in (
        ce_loss(logits, torch.zeros(4, dtype=torch.int64)),
        kd_loss(logits, logits),
        token_loss(tokens, tokens),
        token_loss(tokens, tokens, "cosine"),
        step_loss([tokens], [tokens]),
    ):
        assert loss.dtype == torch.float32


def test_token_loss_is_zero_for_equal_tokens_and_cosine_ignores_their_length() -> None:
    tokens, others = draw(2, 3, 8), draw(2, 3, 8, seed=1)
    assert token_loss(tokens, tokens) == 0
    torch.testing.assert_close(token_loss(5 * tokens, others, "cosine"), token_loss(tokens, others, "cosine"))
    torch.testing.assert_close(token_loss(tokens, others), (tokens - others).square().mean())


def test_step_loss_weighs_all_depths_alike() -> None:
    teacher = [draw(2, 3, 8, seed=1), 100 * draw(2, 3, 8, seed=2)]
    student = [1.1 * tokens for tokens in teacher]
    torch.testing.assert_close(step_loss(student, teacher), torch.tensor(0.01))


@given(st.integers(1, 30), st.integers(1, 30))
def test_depths_are_matched_in_order_and_end_with_the_last(steps: int, blocks: int) -> None:
    depths = matching_depths(steps, blocks)
    assert len(depths) == steps
    assert depths == sorted(depths)
    assert depths[-1] == blocks - 1
    if steps == blocks:
        assert depths == list(range(blocks))
    if steps <= blocks:
        assert len(set(depths)) == steps
        assert depths[0] >= 0


def test_half_the_steps_match_every_second_block() -> None:
    assert matching_depths(6, 12) == [1, 3, 5, 7, 9, 11]
    assert matching_depths(3, 2) == pytest.approx([0, 0, 1])
