import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitslim.errors import CheckpointError
from vitslim.models import read_weights

NAMES = ("state_dict_ema", "model_ema", "state_dict", "model")


def state(value: float) -> dict[str, Tensor]:
    return {"head.weight": torch.full((2, 2), value)}


def value_in(path: Path, **options: Any) -> float:
    return read_weights(path, **options)["head.weight"][0, 0].item()


@pytest.mark.parametrize("first", range(len(NAMES)))
def test_moving_averages_come_first_as_in_timm(tmp_path: Path, first: int) -> None:
    names = NAMES[first:]
    torch.save({name: state(NAMES.index(name)) for name in reversed(names)}, tmp_path / "all.pth")
    assert value_in(tmp_path / "all.pth") == first


def test_the_state_dict_is_taken_from_the_first_container_that_is_asked_for(tmp_path: Path) -> None:
    torch.save({name: state(NAMES.index(name)) for name in NAMES}, tmp_path / "all.pth")
    assert value_in(tmp_path / "all.pth", containers=("module", "state_dict", "model")) == 2


def test_names_lose_what_ddp_and_the_compiler_put_before_them(tmp_path: Path) -> None:
    torch.save({"module._orig_mod.head.weight": torch.ones(2)}, tmp_path / "wrapped.pth")
    assert list(read_weights(tmp_path / "wrapped.pth")) == ["head.weight"]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("damage", ["truncated", "rubbish", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = {"head.weight": torch.randn(64, 64)}
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "rubbish": b"\x07" * 100, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=rf"weights file .*weights\.{suffix} is (corrupt|not readable)"):
        read_weights(path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle was executed",))


def test_a_pickled_object_is_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Trap()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="is not readable as tensors only"):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_what_was_refused_is_named_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"model": state(1.0), "log": np.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"it holds a numpy\.\S+_reconstruct, .* write its state dict alone"):
        read_weights(tmp_path / "weights.pth")


NUMBERS = [np.float64(81.5), np.float32(0.5), np.int64(3), np.bool_(True), np.dtype("float32"), np.complex64(1j)]


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path: Path, zipped: bool) -> None:
    document = {"model": state(2.0), "best": NUMBERS, "args": argparse.Namespace(lr=NUMBERS)}
    torch.save(document, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert value_in(tmp_path / "weights.pth") == 2.0


def test_a_number_of_an_older_numpy_does_no_harm(tmp_path: Path) -> None:
    torch.save(
        {"model": state(2.0), "best": np.float64(81.5)}, tmp_path / "new.pth", _use_new_zipfile_serialization=False
    )
    written = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in written
    (tmp_path / "old.pth").write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert value_in(tmp_path / "old.pth") == 2.0


class Forged:
    """A number whose dtype claims more memory than it has."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (np._core.multiarray.scalar, (np.dtype([("field", "f8", (1000,))]), b"short"))


def test_numpy_never_builds_what_the_file_describes(tmp_path: Path) -> None:
    torch.save({"model": state(2.0), "best": Forged()}, tmp_path / "weights.pth")
    assert value_in(tmp_path / "weights.pth") == 2.0


def test_a_number_of_numpy_among_the_weights_is_refused(tmp_path: Path) -> None:
    torch.save({**state(1.0), "best": np.float64(3.0)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors under none of .*, first 'best'"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("document", "held"),
    [
        ({"epoch": 3, "head.weight": torch.zeros(2, 2)}, "more than tensors under none of 'model', first 'epoch'"),
        ({"model": {"epoch": 3}}, "more than tensors under 'model', first 'epoch'"),
        ([torch.zeros(1)], "a list; wanted tensors by name"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, document: Any, held: str) -> None:
    torch.save(document, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=re.escape(f"state.pth holds {held}")):
        read_weights(tmp_path / "state.pth", containers=("model",))


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_file_without_an_ending_is_known_by_its_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    state = {"head.weight": torch.ones(2, 3)}
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    assert torch.equal(read_weights(path)["head.weight"], state["head.weight"])
    path.write_bytes(b"neither of the two")
    with pytest.raises(CheckpointError, match=r"weights is not readable as tensors only"):
        read_weights(path)
