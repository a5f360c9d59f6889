"""Least squares for the last linear layers of new modules."""

import torch
from timm.models.vision_transformer import VisionTransformer

from vitslim.methods import convert
from vitslim.models import trace
from vitslim.train.closed_form import fit_last_layers_
from vitslim.trunk import trunk_of


def dense_model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=5).eval()


def test_the_solution_is_the_one_of_ordinary_least_squares() -> None:
    model = dense_model()
    trunk = trunk_of(convert(model, "skipat", layers=[1], init="scratch", expansion=0.25))
    traces = [trace(model, torch.randn(16, 3, 32, 32)) for _ in range(3)]
    problems = [trunk.last_linears(one)[0] for one in traces]
    inputs = torch.cat([one.inputs for one in problems]).detach().double()
    targets = torch.cat([one.targets for one in problems]).detach().double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1).double()], dim=1)
    best = (inputs @ torch.linalg.lstsq(inputs, targets).solution - targets).square().mean()
    assert fit_last_layers_(trunk, traces) == 1
    layer = problems[0].layer
    found = (layer(inputs[:, :-1].float()).double() - targets).square().mean()
    # The ridge costs a little on the data that was fitted.
    assert found.item() <= 1.05 * best.item()


def test_the_imitation_loss_falls_and_only_last_layers_change() -> None:
    model = dense_model()
    for options in ({"expansion": 2.0}, {"expansion": 0.5}):
        trunk = trunk_of(convert(model, "skipat", layers=[1, 2], **options))
        before = {name: value.clone() for name, value in trunk.state_dict().items()}
        dense = trace(model, torch.randn(32, 3, 32, 32))
        first = {step: loss.item() for step, loss in trunk.local_loss(dense).items()}
        assert fit_last_layers_(trunk, [dense]) == 2
        assert all(loss.item() < first[step] for step, loss in trunk.local_loss(dense).items())
        changed = {name for name, value in trunk.state_dict().items() if not torch.equal(value, before[name])}
        assert all(".reduce." in name for name in changed)


def test_the_prefix_map_is_solved_beside_the_skip_function() -> None:
    model = dense_model()
    trunk = trunk_of(convert(model, "skipat", layers=[1, 2], prefix="linear"))
    dense = trace(model, torch.randn(64, 3, 32, 32))
    assert fit_last_layers_(trunk, [dense]) == 4
    attention = trunk.steps[2].attention
    source, target = dense.z[1][:, :1], dense.z[2][:, :1]
    left = (attention.prefix_map(source) - target).square().mean()
    assert left < 0.1 * (source - target).square().mean()


def test_a_conversion_without_linear_ends_is_left_as_it_is() -> None:
    model = dense_model()
    trunk = trunk_of(convert(model, "skipat", layers=[2], identity=True))
    assert fit_last_layers_(trunk, [trace(model, torch.randn(8, 3, 32, 32))]) == 0
