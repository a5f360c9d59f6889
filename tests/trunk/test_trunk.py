"""How timm meets a trunk, and what else can be asked of it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inline_snapshot import snapshot
from timm.layers import set_reentrant_ckpt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.variants import SIZE, dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.plans import ModelPlan, StepPlan, dense_plan
from vitslim.trunk import DroppedPart, build, is_converted, plan_of, trunk_of


@pytest.fixture
def model() -> nn.Module:
    return convert(dense("vit_plain"), "skipat", layers=(1, 2))


def test_a_dense_model_has_no_trunk() -> None:
    assert not is_converted(dense("vit_plain"))
    assert not is_converted(nn.Linear(2, 2))
    with pytest.raises(ConfigError) as caught:
        trunk_of(dense("vit_plain"))
    assert str(caught.value) == snapshot("this VisionTransformer is dense; convert it first (vitslim.convert)")


def test_the_dense_plan_is_every_block_once_in_order() -> None:
    plan = plan_of(dense("vit_plain"))
    assert plan == dense_plan(plan.model)
    assert [step.block for step in plan.steps] == [0, 1, 2, 3]
    assert all(step.is_dense for step in plan.steps)
    assert (plan.depth, plan.model.width, plan.grid) == (4, 48, (4, 4))


@torch.no_grad()
def test_a_plan_may_run_a_block_more_than_once() -> None:
    source = dense("vit_plain")
    plan = plan_of(source)
    steps = tuple(StepPlan(block=block) for block in (0, 0, 1, 2))
    model, images = build(plan.model_copy(update={"steps": steps}), source), images_for(source)
    tokens = source._pos_embed(source.patch_embed(images))
    for index in (0, 0, 1, 2):
        tokens = source.blocks[index](tokens)
    assert torch.equal(model.forward_features(images), source.norm(tokens))
    assert not [name for name in model.state_dict() if name.startswith("blocks.3.")]
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


@torch.no_grad()
def test_what_a_new_plan_leaves_alone_keeps_its_weights() -> None:
    model = lively_(convert(dense("vit_plain"), "skipat", layers=(1, 2)))
    plan = plan_of(model)
    other: ModelPlan = plan.with_steps({2: plan.steps[2].but(attention=plan.steps[2].attention.model_copy())})
    images = images_for(model)
    assert torch.equal(build(other, model)(images), model(images))
    # Another choice is made anew, and the given model stays as it is.
    before = model(images)
    identity = plan.steps[2].attention.model_copy(update={"identity": True})
    changed = build(plan.with_steps({2: plan.steps[2].but(attention=identity)}), model)
    assert {name for name in model.state_dict() if name not in changed.state_dict()} == {
        name for name in model.state_dict() if name.startswith("blocks.steps.2.")
    }
    assert torch.equal(model(images), before)


def test_dropped_parts_refuse_to_run(model: nn.Module) -> None:
    assert isinstance(model.blocks[1].attn, DroppedPart)
    assert isinstance(model.blocks[1].norm1, DroppedPart)
    assert not list(model.blocks[1].attn.parameters())
    with pytest.raises(ConfigError) as caught:
        model.blocks[1](torch.zeros(1, 17, 48))
    assert str(caught.value) == snapshot(
        "this part was dropped by the conversion, since no step uses it; run the whole model instead"
    )


def test_post_norm_blocks_keep_the_norm_that_follows_the_attention() -> None:
    model = convert(dense("vit_post_norm"), "skipat", layers=(1,))
    assert isinstance(model.blocks[1].attn, DroppedPart)
    assert isinstance(model.blocks[1].norm1, nn.LayerNorm)


def test_a_number_gives_the_block_and_a_slice_the_front(model: nn.Module) -> None:
    trunk = trunk_of(model)
    assert trunk[0] is trunk.get_submodule("0")
    assert trunk[-1] is trunk.get_submodule("3")
    front = trunk[:2]
    assert (type(front), len(front), len(trunk)) == (type(trunk), 2, 4)
    assert front[1] is trunk[1]
    assert [name for name, _ in front.named_children()] == ["0", "1", "steps"]
    assert len(trunk[:-1]) == 3
    with pytest.raises(IndexError):
        trunk[4]


@pytest.mark.parametrize("cut", [slice(1, None), slice(None, None, 2), slice(1, 3)])
def test_a_trunk_can_only_be_cut_at_its_end(model: nn.Module, cut: slice) -> None:
    with pytest.raises(ConfigError, match="a trunk can only be cut at its end"):
        trunk_of(model)[cut]


def test_the_front_of_a_trunk_changes_nothing_in_the_whole(model: nn.Module) -> None:
    images, names = images_for(model), set(model.state_dict())
    logits = model(images)
    model.train()
    assert len(trunk_of(model)[:2]) == 2
    model.eval()
    assert torch.equal(model(images), logits)
    assert set(model.state_dict()) == names


def test_step_calls_show_the_block_behind_them(model: nn.Module) -> None:
    step = next(iter(model.blocks))
    assert step.mlp is model.blocks[0].mlp
    with pytest.raises(AttributeError):
        _ = step.nothing_of_this_name
    # Copying and pickling probe for private names, which must not reach the block.
    with pytest.raises(AttributeError):
        _ = step._private


def test_each_loop_over_the_blocks_starts_anew(model: nn.Module) -> None:
    tokens = torch.randn(1, 17, 48)
    ends = []
    for _ in range(2):
        stepped = tokens
        for step in model.blocks:
            stepped = step(stepped)
        ends.append(stepped)
    assert torch.equal(*ends)
    assert torch.equal(ends[0], model.blocks(tokens))


def test_two_loops_at_the_same_time_do_not_mix(model: nn.Module) -> None:
    one, other = torch.randn(1, 17, 48), torch.randn(1, 17, 48)
    expected = model.blocks(one), model.blocks(other)
    for step, step_of_other in zip(model.blocks, model.blocks, strict=True):
        one, other = step(one), step_of_other(other)
    assert torch.equal(one, expected[0])
    assert torch.equal(other, expected[1])


def test_reentrant_checkpointing_is_refused_rather_than_wrong(model: nn.Module) -> None:
    # It runs the forward without gradient, so that the reused attention output would be cut from the graph.
    model.train().set_grad_checkpointing(True)
    set_reentrant_ckpt(True)
    try:
        with pytest.raises(ConfigError):
            model(images_for(model).requires_grad_()).sum().backward()
    finally:
        set_reentrant_ckpt(False)


def dynamic(img_size: tuple[int, int] = (32, 32)) -> nn.Module:
    source = VisionTransformer(**{**SIZE, "img_size": img_size}, dynamic_img_size=True).eval()
    # Φ starts as the identity, to which the grid makes no difference.
    return lively_(convert(source, "skipat", layers=(1, 2)))


def sized(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The same model built for one size, which tells the grid without looking at an image."""
    copied = copy.deepcopy(model)
    copied.set_input_size(size)
    return copied


@pytest.mark.parametrize(
    ("static", "size"),
    [((32, 32), (24, 24)), ((32, 32), (56, 24)), ((32, 32), (16, 64)), ((16, 64), (32, 32)), ((16, 64), (64, 16))],
    ids=["square", "oblong", "as many patches", "square with as many patches", "upright with as many patches"],
)
def test_images_of_any_shape_are_taken_where_the_model_is_dynamic(
    static: tuple[int, int], size: tuple[int, int]
) -> None:
    model, images = dynamic(static), torch.randn(2, 3, *size)
    expected = sized(model, size)(images)
    torch.testing.assert_close(model(images), expected)
    # A loop over the steps, and the front of the trunk, find the grid too.
    features, parts = model.forward_intermediates(images)
    torch.testing.assert_close(model.forward_head(features), expected)
    early = model.forward_intermediates(images, indices=[2], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], parts[2])
    model.train().set_grad_checkpointing(True)
    torch.testing.assert_close(model(images), expected)


def test_the_grid_of_one_forward_is_not_that_of_the_next() -> None:
    model = dynamic()
    other, tokens = copy.deepcopy(model), torch.randn(1, 17, 48)
    expected = model.blocks(tokens)
    model.patch_embed(torch.randn(1, 3, 16, 64))
    # Another model's run leaves the note where it is, and takes only its own.
    torch.testing.assert_close(other.blocks(tokens), expected)
    assert not torch.allclose(model.blocks(tokens), expected)
    torch.testing.assert_close(model.blocks(tokens), expected)


def test_forwards_in_two_threads_do_not_mix() -> None:
    model, sizes = dynamic(), [(16, 64), (64, 16)]
    images = [torch.randn(1, 3, *size) for size in sizes]
    expected = [sized(model, size)(image) for size, image in zip(sizes, images, strict=True)]
    barrier = threading.Barrier(2, timeout=60)

    def wait(*_: object) -> None:
        barrier.wait()

    # Both have noted their grid before either trunk takes one.
    model.pos_drop.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(model, images))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_dynamic_model_traces_without_weights() -> None:
    assert dynamic().to("meta")(torch.empty(2, 3, 16, 64, device="meta")).shape == (2, 10)


@pytest.mark.compiled
def test_a_dynamic_model_is_one_graph_at_every_shape() -> None:
    torch.compiler.reset()
    model = dynamic()
    for dynamic_shapes in (False, None):
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic_shapes)
        for size in ((32, 32), (16, 64), (24, 40)):
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(images), model(images))


def test_tokens_that_fit_no_grid_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError) as caught:
        model.blocks(torch.randn(1, 1 + 7, 48))
    assert str(caught.value) == snapshot("8 tokens do not fit a grid of (4, 4) with 1 prefix tokens, nor a square")


def test_a_rotary_model_of_dynamic_size_takes_oblong_images() -> None:
    source = dense("eva_dinov3")
    model = convert(source, "skipat", layers=(1, 2))
    same = convert(source, "skipat", layers=())
    images = torch.randn(1, 3, 48, 24)
    with torch.no_grad():
        assert torch.equal(same(images), source(images))
    assert model(images).isfinite().all()


def test_the_trunk_follows_its_model_when_the_input_size_changes(model: nn.Module) -> None:
    trunk = trunk_of(model)
    assert (trunk.layout.grid, trunk.layout.tokens) == ((4, 4), 17)
    model.set_input_size((16, 40))
    assert (trunk.layout.grid, trunk.layout.tokens) == ((2, 5), 11)


def test_new_parameters_carry_their_names_within_the_trunk(model: nn.Module) -> None:
    trunk, names = trunk_of(model), dict(model.named_parameters())
    new = trunk.new_parameters()
    assert {name.split(".")[1] for name in new} == {"1", "2"}
    assert all(names[f"blocks.{name}"] is parameter for name, parameter in new.items())


def test_a_state_dict_goes_round(model: nn.Module) -> None:
    copied = convert(dense("vit_plain"), "skipat", layers=(1, 2))
    lively_(copied, seed=4)
    copied.load_state_dict(model.state_dict())
    images = images_for(model)
    assert torch.equal(copied(images), model(images))


def test_hooks_on_the_trunk_see_all_tokens(model: nn.Module) -> None:
    caught: list[Tensor] = []
    model.blocks.register_forward_hook(lambda trunk, args, output: caught.extend([args[0], output]))
    model(images_for(model))
    assert [tuple(tokens.shape) for tokens in caught] == [(2, 17, 48), (2, 17, 48)]
