"""A narrower stream: the same model in another basis, less the directions that matter least."""

from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.variants import SIZE, lively_
from vitslim import checkpoint
from vitslim.errors import ConfigError
from vitslim.methods import METHODS, convert, planned
from vitslim.models import adapter_for
from vitslim.models.stream_width import basis_of, covariances, narrow_stream_
from vitslim.plans import ModelPlan, cost
from vitslim.train.warm_start import on_stream_of_
from vitslim.trunk import build, plan_of


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def dense(kind: type[nn.Module] = VisionTransformer, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively_(kind(**SIZE | options)).eval()


def narrowed(model: nn.Module, keep: float) -> ModelPlan:
    return planned(METHODS.get("width"), METHODS.get("width").config(keep=keep, align=1), plan_of(model))


VARIANTS = [
    {},
    {"init_values": 0.1},
    {"pre_norm": True},
    {"global_pool": "avg"},
    {"class_token": False, "global_pool": "avg"},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"kind": Eva, "use_rot_pos_emb": True},
    {"kind": Eva, "qkv_fused": False, "init_values": 0.1, "swiglu_mlp": True, "scale_mlp": True},
    {"kind": Eva, "qkv_bias": False, "use_rot_pos_emb": True, "rope_type": "dinov3", "num_reg_tokens": 4},
    {"kind": Eva, "attn_type": "rope", "scale_attn_inner": True, "use_rot_pos_emb": True},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_all_channels_in_another_basis_are_the_same_model(options: dict[str, object], images: Tensor) -> None:
    model = dense(**options)
    other = dense(**options)
    blocks, adapter = dict(enumerate(other.blocks)), adapter_for(other)
    narrow_stream_(other, blocks, adapter, int(model.embed_dim), covariances(model, [images]))
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", VARIANTS)
def test_a_narrower_stream_costs_what_its_plan_says_and_is_near_the_dense_model(
    options: dict[str, object], images: Tensor
) -> None:
    model = dense(**options)
    plan = narrowed(model, 0.75)
    student = build(plan, model, measured=covariances(model, [images])).eval()
    assert (
        sum(one.numel() for one in student.parameters()) == cost(plan).parameters == cost(plan_of(student)).parameters
    )
    assert plan_of(student).width == plan.width == round(0.75 * int(model.embed_dim))
    assert student.forward_features(images).shape == model.forward_features(images).shape
    with torch.no_grad():
        expected = model(images)
        measured, blind = (
            (one(images) - expected).norm() / expected.norm() for one in (student, build(plan, model).eval())
        )
    assert measured < blind


def test_coordinates_sum_to_zero_and_are_orthonormal() -> None:
    tokens = torch.randn(400, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = tokens - tokens.mean(1, keepdim=True)
    basis = basis_of(tokens.T @ tokens, 10)
    torch.testing.assert_close(basis.sum(0), torch.zeros(24, dtype=torch.float64))
    torch.testing.assert_close((tokens @ basis.T).sum(1), torch.zeros(400, dtype=torch.float64))
    kept = torch.linalg.eigvalsh(basis @ basis.T)
    torch.testing.assert_close(kept, torch.tensor([0.0, *[1.0] * 9], dtype=torch.float64))


def test_what_was_saved_is_opened_on_its_stream(images: Tensor, tmp_path: Path) -> None:
    student = convert(dense(), "width", keep=0.5)
    checkpoint.save(student, tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(tmp_path / "student").eval()(images), student.eval()(images))


@pytest.mark.parametrize("other", ["skipat", "sparsifiner", "sret"])
def test_a_model_with_modules_of_its_own_is_narrowed_before_or_at_once(other: str, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"beside its blocks' own, such as blocks\.steps.*; narrow it first"):
        convert(convert(dense(), other), "width")
    plan = plan_of(dense())
    for method in map(METHODS.get, (other, "width")):
        plan = planned(method, method.config(), plan)
    student = build(plan, dense()).eval()
    assert plan.channels < plan.model.width
    assert sum(one.numel() for one in student.parameters()) == cost(plan_of(student)).parameters
    assert student(images).isfinite().all()


def test_it_stands_beside_other_parts_and_once() -> None:
    with pytest.raises(ConfigError, match="already converted with 'width'"):
        convert(convert(dense(), "width"), "width", keep=0.5)
    for other in ("mlp", "heads", "depth", "evo_vit"):
        both = [convert(convert(dense(), first), second) for first, second in ((other, "width"), ("width", other))]
        before, after = (plan_of(one) for one in both)
        assert cost(before) == cost(after)
        assert all(sum(one.numel() for one in model.parameters()) == cost(after).parameters for model in both)


def test_families_whose_stream_nothing_leads_onto_are_refused() -> None:
    with pytest.raises(ConfigError, match="no adapter narrows the stream of this Beit"):
        convert(dense(Beit), "width")
    with pytest.raises(ConfigError, match="no adapter narrows the stream of this VisionTransformer"):
        convert(dense(block_fn=ResPostBlock), "width")


def test_a_student_that_was_trained_is_not_put_onto_a_new_stream(images: Tensor) -> None:
    teacher = dense()
    student = convert(teacher, "width")
    measured = covariances(teacher, [images])
    on_stream_of_(student, teacher, measured)
    on_stream_of_(student, teacher, measured)  # the blocks' weights may differ, for the stream was chosen before
    with torch.no_grad():
        student.head.bias += 0.1
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ConfigError, match=r"head.bias has been trained since the conversion; warm up first"):
        on_stream_of_(student, teacher, measured)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
