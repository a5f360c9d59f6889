import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitslim.analysis import AnalysisReport, analyze, linear_cka
from vitslim.errors import ConfigError, DataError, UnsupportedModelError
from vitslim.files import read_json, write_json
from vitslim.models import trace
from vitslim.progress import Progress
from vitslim.trunk import build, plan_of

FAMILIES = ("vit", "vit_layer_scale", "vit_no_class_token", "eva", "eva_post_norm", "beit")
Batches = Callable[..., list[Any]]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_gives_the_full_batch_figures(
    build: Callable[[str], nn.Module], batches: Batches, family: str
) -> None:
    model, loader = build(family), batches(16)
    report = analyze(model, loader)
    dense = trace(model, loader[0].images, attention=True)
    sites = {"z": dense.z, "cls_attention": dense.class_attention, "block": dense.block_outputs}
    for name, layers in sites.items():
        table = getattr(report.cka, name)
        for a in range(4):
            for b in range(4):
                exact = linear_cka(layers[a].flatten(1).double(), layers[b].flatten(1).double())
                assert table[a][b] == pytest.approx(exact, abs=1e-4)  # float32 products against float64
    for layer in range(1, 4):
        assert report.linear_r2[layer] == pytest.approx(slow_r2(dense.z[layer - 1], dense.z[layer]), abs=1e-6)


def slow_r2(source: Tensor, target: Tensor) -> float:
    x, y = source.flatten(0, 1).double(), target.flatten(0, 1).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    residual = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    return float(1 - residual.square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("family", ["vit", "eva", "beit"])
def test_replacement_equals_a_slow_full_computation(
    build: Callable[[str], nn.Module], batches: Batches, family: str
) -> None:
    model, loader = build(family), batches(12, 12)
    report = analyze(model, loader, replacement_images=24)
    images = torch.cat([batch.images for batch in loader])
    dense = trace(model, images)
    for effect in report.replacement:
        source, target = dense.z[effect.layer - 1], dense.z[effect.layer]
        z = source
        if effect.kind == "linear":
            x = torch.cat([source.flatten(0, 1), torch.ones(source.shape[0] * source.shape[1], 1)], dim=1).double()
            solution = torch.linalg.lstsq(x, target.flatten(0, 1).double(), driver="gelsd").solution
            z = (x @ solution).float().reshape(source.shape)
        handle = model.blocks[effect.layer].attn.register_forward_hook(lambda *_, z=z: z)
        with torch.no_grad():
            logits = model(images)
        handle.remove()
        kl = F.kl_div(logits.log_softmax(1), dense.logits.log_softmax(1), reduction="batchmean", log_target=True)
        assert effect.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
        assert effect.top1_agreement == pytest.approx(
            float((logits.argmax(1) == dense.logits.argmax(1)).float().mean())
        )


def test_attention_rows_are_the_class_row_of_a_slow_softmax(vit: nn.Module, batches: Batches) -> None:
    images = batches(4)[0].images
    dense = trace(vit, images, attention=True)
    for block, row, read in zip(vit.blocks, dense.class_attention, dense.attention_inputs, strict=True):
        qkv = block.attn.qkv(read).reshape(4, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
        slow = (qkv[0] @ qkv[1].transpose(-1, -2) / 4).softmax(-1)[:, :, 0]  # head width 16
        torch.testing.assert_close(row, slow.detach(), rtol=1e-5, atol=1e-6)


def test_fused_attention_stays_on(vit: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = F.scaled_dot_product_attention

    def counted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(query))
        return fused(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    seen: list[tuple[str, int]] = []
    analyze(vit, batches(16, 16), progress=lambda report: seen.append((report.stage, len(calls))))
    # one call for each of four blocks in each of two batches
    assert [count for stage, count in seen if stage == "analyze"] == [4, 8]


def test_report_is_plain_json_and_comes_back(vit: nn.Module, batches: Batches, tmp_path: Any) -> None:
    report = analyze(vit, batches(16))
    write_json(tmp_path / "analysis.json", report.model_dump(mode="json"))
    assert AnalysisReport.model_validate(read_json(tmp_path / "analysis.json")) == report
    assert (report.model, report.images, report.replacement_images) == ("VisionTransformer", 16, 16)
    assert report.layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert report.linear_tokens == 16 * 17
    assert [(effect.layer, effect.kind) for effect in report.replacement] == [
        (layer, kind) for layer in (1, 2, 3) for kind in ("identity", "linear")
    ]
    assert len(report.recommended.layers) == 2


def test_an_undefined_figure_is_null(vit: nn.Module, batches: Batches) -> None:
    with torch.no_grad():
        vit.blocks[1].attn.proj.weight.zero_()
    report = analyze(vit, batches(16))
    assert report.cka.z[1] == [None] * 4
    assert report.cka.z[0][2] is not None
    assert report.linear_r2[1] is None
    assert report.linear_r2[2] == pytest.approx(0, abs=1e-6)
    assert any("before block 2" in note for note in report.notes)
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_a_model_without_classifier_is_measured_by_its_features(vit: nn.Module, batches: Batches) -> None:
    vit.reset_classifier(0)
    report = analyze(vit, batches(16))
    assert report.output_measure == "feature_change"
    assert all(effect.kl is None and effect.feature_change is not None for effect in report.replacement)
    assert any("no classifier" in note for note in report.notes)


def test_the_recommended_set_is_measured_as_one(vit: nn.Module, batches: Batches) -> None:
    loader = batches(16)
    report = analyze(vit, loader, max_layers=1)
    (layer,) = report.recommended.layers
    alone = {effect.kind: effect.kl for effect in report.replacement if effect.layer == layer}
    assert {effect.kind: effect.kl for effect in report.recommended.measured} == pytest.approx(alone)
    assert "Replaced together, before any training: " in report.recommended.reason
    assert f"{alone['linear']:.3g} nats" in report.recommended.reason


def test_a_small_last_batch_joins_the_one_before(vit: nn.Module, batches: Batches) -> None:
    split, whole = batches(16, 2), batches(16, 2)
    whole[0].images = torch.cat([batch.images for batch in whole])
    joined = analyze(vit, split)
    assert joined.images == 18
    assert joined.notes[0] == "The last 2 images joined the batch before them, being too few for one of their own."
    # the two forwards differ by nothing: the joined batch is run as one
    assert joined.cka == analyze(vit, whole[:1]).cka


def test_only_the_images_asked_for_are_used(vit: nn.Module, batches: Batches) -> None:
    loader = batches(12, 12, 12)
    report = analyze(vit, loader, images=20, replacement_images=6)
    loader[1].images = loader[1].images[:8]
    assert report.cka == analyze(vit, loader[:2]).cka
    assert (report.images, report.replacement_images) == (20, 6)


def test_progress_counts_images_per_stage(vit: nn.Module, batches: Batches) -> None:
    seen: list[Progress] = []
    analyze(vit, batches(12, 12), images=20, replacement_images=12, progress=seen.append)
    assert [(report.stage, report.done, report.total) for report in seen] == [
        ("analyze", 12, 20),
        ("analyze", 20, 20),
        ("replace", 12, 12),
        ("replace together", 12, 12),
        ("widths", 12, 12),
        ("drop order", 1, 2),
        ("drop order", 2, 2),
    ]


def hooks_and_parts(model: nn.Module) -> list[tuple[str, int, int, int]]:
    return [
        (name, id(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


@dataclass
class Breaking:
    """Images that go wrong in the given round of the loader."""

    good: list[Any]
    wrong_round: int
    rounds: int = 0

    def __iter__(self) -> Iterator[Any]:
        self.rounds += 1
        for batch in self.good:
            yield batch
            if self.rounds == self.wrong_round:
                raise OSError("disk is gone")


@pytest.mark.parametrize("wrong_round", [1, 2, 3, 99])
def test_the_model_is_left_as_it_was(vit: nn.Module, batches: Batches, wrong_round: int) -> None:
    before = hooks_and_parts(vit)
    weights = {name: value.clone() for name, value in vit.state_dict().items()}
    # iter() once more: _check asks for an iterator, which does not start the generator
    loader = Breaking(batches(12, 12), wrong_round)
    if wrong_round < 99:
        with pytest.raises(OSError, match="disk is gone"):
            analyze(vit, loader)
    else:
        analyze(vit, loader)
    assert hooks_and_parts(vit) == before
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_a_block_that_fails_in_the_middle_leaves_no_hooks(vit: nn.Module, batches: Batches) -> None:
    before = hooks_and_parts(vit)
    loader = batches(12)
    loader[0].images = loader[0].images[:, :1]
    with pytest.raises((RuntimeError, AssertionError)):
        analyze(vit, loader)
    assert hooks_and_parts(vit) == before


def test_few_tokens_warn_and_are_noted(vit: nn.Module, batches: Batches) -> None:
    with pytest.warns(UserWarning, match="R² and the linear maps come from 136 tokens for 48 channels"):
        report = analyze(vit, batches(8))
    assert any("136 tokens" in note for note in report.notes)


def test_enough_tokens_in_large_batches_leave_no_note(vit: nn.Module, batches: Batches) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert analyze(vit, batches(32)).notes == []


@pytest.mark.parametrize("sizes", [(2,), (3, 3, 3), (8, 2, 8)])
def test_batches_below_four_are_refused(vit: nn.Module, batches: Batches, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="needs at least 4"):
        analyze(vit, batches(*sizes))


def test_all_errors_of_a_call_are_reported_at_once(vit: nn.Module, batches: Batches) -> None:
    with pytest.raises(ConfigError) as caught:
        analyze(vit.train(), iter(batches(8)), images=2, replacement_images=0)
    for part in ("model.eval()", "one-shot iterator", "images=2", "replacement_images=0"):
        assert part in str(caught.value)


def test_a_converted_model_is_refused(vit: nn.Module, batches: Batches) -> None:
    with pytest.raises(ConfigError, match="converted already: analyze the dense model that it was made from"):
        analyze(build(plan_of(vit), vit), batches(8))


def test_no_images_and_images_that_break_the_model_are_data_errors(vit: nn.Module, batches: Batches) -> None:
    with pytest.raises(DataError, match="no images"):
        analyze(vit, [])
    loader = batches(8)
    loader[0].images[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        analyze(vit, loader)


def test_an_unknown_model_is_refused_by_its_adapter(batches: Batches) -> None:
    with pytest.raises(UnsupportedModelError):
        analyze(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval(), batches(8))


@pytest.mark.parametrize(("pool", "said"), [("token", True), ("avg", False)])
def test_a_class_readout_is_distinguished_from_one_that_reads_patches(pool: Any, said: bool, batches: Batches) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = VisionTransformer(**sizes, num_classes=5, global_pool=pool).eval()
    found = analyze(model, batches(8, 8), max_layers=3).recommended
    assert found.layers == [1, 2, 3]
    assert ("behind block 0 no patch reaches it" in found.reason) is said
