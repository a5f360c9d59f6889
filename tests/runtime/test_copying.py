import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitslim.methods import convert
from vitslim.runtime import working_copy


def test_a_working_copy_computes_the_same_on_tensors_of_its_own(model, images):
    copy = working_copy(model)
    with torch.no_grad():
        assert torch.equal(copy(images), model(images))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in copy.parameters()}


def test_a_working_copy_leaves_mode_gradients_and_hooks_of_the_original(model):
    calls: list[str] = []
    model.train()
    handle = model.blocks[0].register_forward_hook(lambda *_: calls.append("seen"))
    try:
        copy = working_copy(model)
        copy(torch.zeros(1, 3, 32, 32))
        assert calls == []
        assert not copy.training
        assert model.training
        assert len(model.blocks[0]._forward_hooks) == 1
        assert all(parameter.requires_grad for parameter in model.parameters())
    finally:
        handle.remove()
        model.eval()


def test_a_working_copy_of_a_compiled_model_is_the_module_itself(model):
    assert type(working_copy(torch.compile(model))) is type(model)


def test_hooks_of_vitslim_itself_stay_because_they_are_part_of_the_model(images):
    flexible = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10, dynamic_img_size=True
    )
    converted = convert(flexible.eval(), "skipat", layers=range(1, 3))
    assert isinstance(converted.patch_embed, nn.Module)
    assert len(working_copy(converted).patch_embed._forward_hooks) == 1
