"""Authors' checkpoints: every tensor accounted for, and the outputs of a slow plain form of the authors' network."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_snapshot import snapshot
from torch import nn

import vitslim
from tests.authors import states
from tests.authors.states import State
from vitslim import checkpoint
from vitslim.authors import SOURCES, import_checkpoint
from vitslim.errors import CheckpointError, ConfigError

CASES: dict[str, tuple[Callable[[], State], Callable[[], nn.Module]]] = {
    "skipat": (states.skipat_state, states.vit),
    "evo_vit": (states.evo_vit_state, states.vit),
    "sparsifiner": (states.sparsifiner_state, states.vit),
    "sret": (states.sret_state, states.pyramid),
}


def case(source: str) -> tuple[State, nn.Module]:
    state, base = CASES[source]
    return state(), base()


def images(count: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_every_source_has_a_case() -> None:
    assert set(CASES) == set(SOURCES.names())


@pytest.mark.parametrize("source", CASES)
def test_every_given_tensor_is_used_or_dropped_and_every_own_one_filled(source: str) -> None:
    state, base = case(source)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model, report = import_checkpoint(state, source, base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert {*report.used, *report.dropped} == set(state)
    assert not {*report.used} & {*report.dropped}
    assert set(report.used.values()) == set(model.state_dict())
    assert all(report.dropped.values())
    assert not model.training
    for theirs, own in report.used.items():
        if state[theirs].shape == model.state_dict()[own].shape:
            assert torch.equal(state[theirs], model.state_dict()[own]), own


@pytest.mark.parametrize("source", CASES)
def test_what_is_missing_and_what_is_left_over_are_counted_and_the_first_is_named(source: str) -> None:
    state, base = case(source)
    state |= {"first_odd.weight": torch.zeros(1), "second_odd.weight": torch.zeros(1)}
    state = {name: value for name, value in state.items() if not name.startswith("norm.")}
    wanted = r"2 tensors are missing, first 'norm\.weight'; 2 are unexpected, first 'first_odd\.weight'"
    with pytest.raises(CheckpointError, match=wanted):
        import_checkpoint(state, source, base)
    with pytest.raises(CheckpointError, match=rf"no checkpoint of {source}: it has no tensor '.*'; its first is"):
        import_checkpoint(states.dense_state(), source, base)


# A pyramid that was built by hand has no name to build it from again; see the test by name.
@pytest.mark.parametrize("source", [source for source in CASES if source != "sret"])
def test_an_imported_model_is_saved_and_loaded(source: str, tmp_path: Path) -> None:
    state, base = case(source)
    model = import_checkpoint(state, source, base).model
    loaded = vitslim.load(checkpoint.save(model, tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(2)), model(images(2)), rtol=0, atol=0)


@torch.no_grad()
def test_skipat_computes_what_the_authors_compute() -> None:
    state = states.skipat_state()
    model = import_checkpoint(state, "skipat", states.vit()).model
    # float32, another order of sums through twelve blocks: 4e-6 seen
    torch.testing.assert_close(model(images(2)), states.skipat_forward(state, images(2)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_evo_vit_computes_what_the_authors_compute() -> None:
    state = states.evo_vit_state()
    model = import_checkpoint(state, "evo_vit", states.vit()).model
    for image in images(3).split(1):
        torch.testing.assert_close(model(image), states.evo_vit_forward(state, image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sparsifiner_computes_what_the_authors_compute() -> None:
    state = states.sparsifiner_state()
    model, report = import_checkpoint(state, "sparsifiner", states.vit())
    assert report.options["prefix_keys"] == "chosen"
    torch.testing.assert_close(model(images(2)), states.sparsifiner_forward(state, images(2)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_class_key_of_sparsifiner_is_kept_where_that_is_asked_for() -> None:
    state = states.sparsifiner_state()
    theirs, ours = (states.sparsifiner_forward(state, images(2), always=always) for always in (0, 1))
    model = import_checkpoint(state, "sparsifiner", states.vit(), prefix_keys="kept").model
    torch.testing.assert_close(model(images(2)), ours, rtol=1e-4, atol=1e-4)
    assert (ours - theirs).abs().max() > 0.1 * theirs.std()


@torch.no_grad()
def test_sret_computes_what_the_authors_compute_without_slices() -> None:
    state = states.sret_state()
    model = import_checkpoint(state, "sret", states.pyramid(sliced=False)).model
    torch.testing.assert_close(model(images(2, 64)), states.sret_forward(state, images(2, 64)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("expansion", "kernel_size"), [(1, 3), (3, 7)])
def test_the_form_of_phi_is_read_off_the_tensors(expansion: int, kernel_size: int) -> None:
    state = states.skipat_state(expansion, kernel_size)
    options = import_checkpoint(state, "skipat", states.vit()).report.options
    assert (options["expansion"], options["kernel_size"], options["residual"]) == (expansion, kernel_size, False)
    assert options["layers"] == [3, 4, 5, 6, 7, 8]


def test_skipped_blocks_are_read_off_where_their_attention_was_cut_away() -> None:
    state = {name: v for name, v in states.skipat_state().items() if not name.startswith("blocks.5.attn.")}
    state = {name: v for name, v in state.items() if not name.startswith(("blocks.5.norm1.", "blocks.6.attn."))}
    _, report = import_checkpoint(state, "skipat", states.vit())
    assert report.options["layers"] == [5, 6]
    assert "blocks.6.norm1.weight" in report.dropped


def test_skip_functions_beyond_the_skipped_blocks_are_dropped_with_a_reason() -> None:
    _, report = import_checkpoint(states.skipat_state(), "skipat", states.vit(), layers="4-6")
    assert report.dropped["param_4.eca.conv.weight"] == "only 3 blocks are skipped; this Φ is never evaluated"
    assert "blocks.3.attn.qkv.weight" in report.used
    assert "blocks.4.attn.qkv.weight" in report.dropped


def test_skipped_blocks_with_a_gap_are_refused() -> None:
    with pytest.raises(CheckpointError, match="only consecutive layers can be imported"):
        import_checkpoint(states.skipat_state(), "skipat", states.vit(), layers=(3, 4, 7))


def test_the_matrices_of_sparsifiner_are_turned() -> None:
    state = states.sparsifiner_state(rows=11)
    model, report = import_checkpoint(state, "sparsifiner", states.vit(), keep_rate=0.5)
    own = model.state_dict()["blocks.steps.7.attention.predictor.basis"]
    assert torch.equal(own, state["blocks.7.attn.mask_predictor.proj_back_n"].T)
    assert (report.options["n_down"], report.options["keep_rate"]) == (11, 0.5)


def test_narrow_keys_of_another_width_are_refused() -> None:
    state = states.sparsifiner_state()
    state["blocks.0.attn.mask_predictor.proj_c_q.weight"] = torch.zeros(4, 16)
    with pytest.raises(CheckpointError, match="reduces heads of 16 to 4"):
        import_checkpoint(state, "sparsifiner", states.vit())


def test_two_applications_of_a_block_that_differ_are_refused() -> None:
    state = states.sret_state()
    state["transformers.1.blocks.2.mlp.fc1.bias"] = state["transformers.1.blocks.2.mlp.fc1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"transformers\.1\.blocks\.2\.mlp\.fc1\.bias differs from"):
        import_checkpoint(state, "sret", states.pyramid())


def test_a_pyramid_is_wanted_for_sret() -> None:
    with pytest.raises(CheckpointError, match="this base is a VisionTransformer; choose vitslim_sret_tiny"):
        import_checkpoint(states.sret_state(), "sret", states.vit())


def test_a_named_pyramid_takes_options_and_is_saved_and_loaded(tmp_path: Path) -> None:
    shape = {name: value for name, value in states.PYRAMID.items() if name not in ("num_classes", "img_size")}
    given: dict[str, Any] = {**shape, "sliced": False}
    imported = import_checkpoint(states.sret_state(), "sret", "vitslim_sret_tiny", img_size=64, **given)
    assert imported.report.options["sliced"] is False
    loaded = vitslim.load(checkpoint.save(imported.model, tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(1, 64)), imported.model(images(1, 64)), rtol=0, atol=0)


def test_a_base_of_another_width_is_refused() -> None:
    with pytest.raises(CheckpointError) as refused:
        import_checkpoint(states.skipat_state(), "skipat", states.vit(embed_dim=96))
    assert str(refused.value) == snapshot(
        "this checkpoint does not fit skipat on this base: 151 tensors have another shape, first cls_token with "
        "(1, 1, 48) where the base wants (1, 1, 96); choose a base of that width, depth, image size and number of "
        "classes"
    )


def test_a_base_of_another_depth_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"14 are unexpected, first 'blocks\.11\.norm2\.weight'"):
        import_checkpoint(states.evo_vit_state(), "evo_vit", states.vit(depth=11))


def test_a_converted_base_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the base was already converted \(skipat\); give the dense model"):
        import_checkpoint(states.evo_vit_state(), "evo_vit", vitslim.convert(states.vit(), "skipat"))


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown source of checkpoints 'evovit'; did you mean 'evo_vit'"):
        import_checkpoint({}, "evovit", states.vit())


def test_options_of_a_base_that_is_built_are_refused() -> None:
    with pytest.raises(ConfigError, match="this module is built and knows its own img_size"):
        import_checkpoint(states.skipat_state(), "skipat", states.vit(), img_size=64)


def test_a_training_checkpoint_gives_its_weights_and_not_their_average(tmp_path: Path) -> None:
    state = states.skipat_state()
    average = {name: torch.zeros_like(value) for name, value in state.items()}
    document = {"model": {f"module.{name}": value for name, value in state.items()}, "model_ema": average}
    # DeiT's training script, which Evo-ViT's descends from, saves its arguments too.
    torch.save({**document, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "skipat-tiny.t7")
    model = import_checkpoint(tmp_path / "skipat-tiny.t7", "skipat", states.vit()).model
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


# What the loaders in the authors' repositories look for, in their order.
CONTAINERS = {
    "skipat": ("model", "state_dict_ema", "state_dict"),
    "evo_vit": ("model",),
    "sret": ("model",),
    "sparsifiner": ("model", "module"),
}
FILES = [(source, order[first:]) for source, order in CONTAINERS.items() for first in range(len(order))]


@pytest.mark.parametrize(("source", "held"), FILES)
def test_of_several_state_dicts_the_one_is_taken_that_the_authors_take(
    source: str, held: tuple[str, ...], tmp_path: Path
) -> None:
    state, base = case(source)
    others = {name: torch.zeros_like(value) for name, value in state.items()}
    document: dict[str, Any] = dict.fromkeys(["model_ema", *reversed(held)], others)
    torch.save({**document, held[0]: state, "epoch": 3}, tmp_path / "file.pth")
    model = import_checkpoint(tmp_path / "file.pth", source, base).model
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


def test_a_bare_state_dict_is_taken_from_a_file_too(tmp_path: Path) -> None:
    state = states.skipat_state()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "file.t7")
    model = import_checkpoint(tmp_path / "file.t7", "skipat", states.vit()).model
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


def test_a_file_whose_state_dict_the_authors_do_not_look_for_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": states.evo_vit_state(), "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="under none of 'model', first 'state_dict'; save the state dict alone"):
        import_checkpoint(tmp_path / "file.pth", "evo_vit", states.vit())


def test_numbers_of_numpy_in_a_training_checkpoint_are_passed_over(tmp_path: Path) -> None:
    state = states.sparsifiner_state()
    # The best accuracies lie beside the weights, and the epoch of the best may be a word.
    numbers = {"best": np.float64(79.8), "best_ema": np.float32(79.9), "epoch": "best", "scaler": {}}
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), **numbers}, tmp_path / "checkpoint-best.pth")
    model = import_checkpoint(tmp_path / "checkpoint-best.pth", "sparsifiner", states.vit()).model
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


def test_a_training_checkpoint_in_memory_is_sent_back() -> None:
    with pytest.raises(CheckpointError, match="'model' holds a dict, not a tensor; pass the state dict itself"):
        import_checkpoint({"model": states.skipat_state()}, "skipat", states.vit())
