import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitslim.data import DataConfig, open_data
from vitslim.models import preprocessing
from vitslim.models.init import init_from_scratch_, sine_positions
from vitslim.opening import open_model
from vitslim.train import DistillConfig, Phase, PretrainConfig, evaluate, pretrain

DATA = DataConfig(source="fractals:classes=4,image_size=64,train_per_class=8,val_per_class=4")


def config() -> PretrainConfig:
    settings: dict[str, Any] = {"ce_weight": 1.0, "kd_weight": 0.0, "steps": 2, "lr": 1e-3, "tensorboard": False}
    phases = (Phase(image_size=size, batch_size=8, train=DistillConfig(**settings)) for size in (32, 64))
    return PretrainConfig(data=DATA, phases=tuple(phases))


def test_the_weights_in_the_file_are_the_ones_that_were_measured(tmp_path: Path) -> None:
    result = pretrain(config(), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model = open_model("builtin", weights=tmp_path / "model.safetensors")
    held_out = open_data(DATA, split="val", preprocessing=preprocessing(model), batch_size=8)
    assert evaluate(model, held_out) == result.held_out
    assert [phase.steps for phase in result.phases] == [2, 2]
    assert json.loads((tmp_path / "pretrain.json").read_text())["held_out"]["images"] == 16
    again = pretrain(config(), tmp_path, resume=True)
    assert again.held_out == result.held_out


def test_start_values_keep_the_size_of_the_stream_and_depend_on_the_seed_alone() -> None:
    models = [init_from_scratch_(open_model("builtin", pretrained=False), seed) for seed in (0, 0, 1)]
    first, again, other = (model.get_parameter("blocks.3.attn.qkv.weight") for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(128**-0.5, rel=0.02)  # one deviation per √fan_in


def test_near_places_have_nearer_positions_than_far_ones() -> None:
    positions = sine_positions((4, 4), 32)
    distances = torch.cdist(positions, positions)
    assert distances[0, 1] < distances[0, 3]
    assert distances[0, 4] < distances[0, 12]
    torch.testing.assert_close(distances[0, 1], distances[0, 4])
