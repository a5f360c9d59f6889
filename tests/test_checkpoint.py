import copy
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.kills import killed_at
from tests.variants import ALL, NOT_DESCRIBABLE, SIZE, dense, images_for
from vitslim import checkpoint
from vitslim.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load, load_config, save
from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json, write_json, write_tensors
from vitslim.methods import convert
from vitslim.models import BaseModel, preprocessing
from vitslim.models.base_model import remember_base
from vitslim.opening import open_model
from vitslim.trunk import trunk_of

DESCRIBABLE = [name for name in ALL if name not in NOT_DESCRIBABLE]
SOME = ["vit_four_registers", "eva_mixed_rotary", "beit_both_biases"]


def assert_same_model(first: nn.Module, second: nn.Module, images: torch.Tensor) -> None:
    assert type(first) is type(second)
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name
    assert preprocessing(first) == preprocessing(second)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """Shared between tests: never change it."""
    return convert(dense("vit_plain"), "skipat", layers=[1, 2])


@pytest.fixture(scope="module")
def saved_once(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(original, tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def student(original: nn.Module) -> nn.Module:
    return copy.deepcopy(original)


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_once, tmp_path / "out"))


# --- what is saved comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESCRIBABLE)
def test_a_dense_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = dense(name)
    assert_same_model(load(save(model, tmp_path / "out")), model, images_for(model))


@pytest.mark.parametrize("name", SOME)
def test_a_converted_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = convert(dense(name), "skipat", layers=[1, 2], expansion=0.5)
    loaded = load(save(model, tmp_path / "out"))
    assert_same_model(loaded, model, images_for(model))
    assert loaded.blocks.history == model.blocks.history


def test_a_model_of_two_conversions_comes_back_as_it_was(tmp_path: Path) -> None:
    model = convert(convert(dense("vit_plain"), "skipat", layers=[1]), "evo_vit")
    loaded = load(save(model, tmp_path / "out"))
    assert_same_model(loaded, model, images_for(model))
    assert [entry.method for entry in loaded.blocks.history] == ["skipat", "evo_vit"]


def test_a_timm_model_comes_back_with_its_overrides(tmp_path: Path) -> None:
    model = open_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=7, depth=2, drop_path_rate=0.2
    )
    loaded = load(save(model, tmp_path / "out"))
    assert_same_model(loaded, model, images_for(model))
    assert read_json(tmp_path / "out" / CONFIG_FILE)["base"]["architecture"] == "vit_tiny_patch16_224"
    assert loaded.blocks[1].drop_path1.drop_prob == pytest.approx(0.2)


def test_a_model_that_timm_built_comes_back(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    assert_same_model(load(save(model, tmp_path / "out")), model, images_for(model))


def test_a_new_classifier_comes_back(tmp_path: Path, student: nn.Module) -> None:
    student.reset_classifier(3)
    assert load(save(student, tmp_path / "out"))(images_for(student)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "dtype"), [("eva_rotary", torch.float16), ("beit_both_biases", torch.bfloat16)], ids=str
)
def test_a_half_model_comes_back_in_its_own_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = convert(dense(name), "skipat", layers=[1]).to(dtype)
    assert_same_model(load(save(model, tmp_path / "out")), model, images_for(model).to(dtype))


def test_parts_of_another_precision_stay_so(tmp_path: Path, student: nn.Module) -> None:
    student.half().head.float()
    loaded = load(save(student, tmp_path / "out"))
    assert loaded.head.weight.dtype == torch.float32
    assert loaded.blocks.state_dict()["0.mlp.fc1.weight"].dtype == torch.float16


def test_a_loaded_model_is_in_eval_mode_and_trainable(saved: Path) -> None:
    loaded = load(saved)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_loaded_model_does_not_look_into_the_file_any_more(saved: Path) -> None:
    loaded = load(saved)
    before = loaded.head.weight.detach().clone()
    (saved / WEIGHTS_FILE).write_bytes(b"\0" * (saved / WEIGHTS_FILE).stat().st_size)
    assert torch.equal(loaded.head.weight, before)


def test_a_loaded_model_can_be_converted_and_saved_again(saved: Path, tmp_path: Path) -> None:
    model = convert(load(saved), "evo_vit")
    assert_same_model(load(save(model, tmp_path / "again")), model, images_for(model))


def test_saving_a_loaded_model_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    again = save(load(saved), tmp_path / "again")
    for name in (CONFIG_FILE, "README.md"):
        assert (again / name).read_text() == (saved / name).read_text()
    first, second = load_file(saved / WEIGHTS_FILE), load_file(again / WEIGHTS_FILE)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# --- how images are prepared ----------------------------------------------------------------------------------------

PREPARED: dict[str, Any] = {
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bilinear",
    "crop_pct": 0.95,
}


def test_preprocessing_of_a_hand_built_model_survives(tmp_path: Path) -> None:
    model = VisionTransformer(**SIZE)
    model.pretrained_cfg = {**PREPARED, "input_size": (3, 32, 32)}
    loaded = load(save(convert(model, "skipat", layers=[1]), tmp_path / "out"))
    found = preprocessing(loaded)
    assert {name: getattr(found, name) for name in PREPARED} == PREPARED
    assert found.image_size == (32, 32)


def test_preprocessing_that_was_changed_by_hand_survives(tmp_path: Path) -> None:
    model = open_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1)
    model.pretrained_cfg = {**model.pretrained_cfg, **PREPARED}
    assert preprocessing(load(save(model, tmp_path / "out"))) == preprocessing(model)


def test_preprocessing_of_the_tag_survives(tmp_path: Path) -> None:
    model = open_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False, img_size=32, depth=1)
    loaded = load(save(model, tmp_path / "out"))
    assert preprocessing(loaded).mean == (0.5, 0.5, 0.5)
    assert loaded.pretrained_cfg["tag"] == "augreg_in21k_ft_in1k"


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_holds_a_description_the_weights_and_a_card(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]


def test_the_weights_file_alone_is_enough(saved: Path, student: nn.Module, tmp_path: Path) -> None:
    shutil.copy(saved / WEIGHTS_FILE, tmp_path / "alone.safetensors")
    assert_same_model(load(tmp_path / "alone.safetensors"), student, images_for(student))


def test_the_description_inside_the_weights_is_the_one_beside_them(saved: Path) -> None:
    with safe_open(saved / WEIGHTS_FILE, framework="pt") as tensors:
        assert json.loads(tensors.metadata()["vitslim"]) == read_json(saved / CONFIG_FILE)


def test_no_pickle_is_written(saved: Path) -> None:
    # A pickle starts with its protocol, a torch file is a zip.
    heads = {path.read_bytes()[:2] for path in saved.rglob("*") if path.is_file()}
    assert not heads & {b"\x80\x02", b"\x80\x04", b"PK"}


def test_a_folder_that_is_not_empty_needs_overwrite(tmp_path: Path, student: nn.Module) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not empty; pass --overwrite \(overwrite=True\) or another folder"):
        save(student, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    save(student, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, student: nn.Module) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out is a file; name a folder"):
        save(student, tmp_path / "out", overwrite=True)


def test_a_model_on_the_meta_device_is_refused(tmp_path: Path, student: nn.Module) -> None:
    with pytest.raises(ConfigError, match="meta device has no weights"):
        save(student.to("meta"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_name_describes_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pass base=BaseModel\("):
        save(dense("vit_post_norm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_given_base_is_believed(tmp_path: Path) -> None:
    model = dense("vit_plain")
    options = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    save(model, tmp_path / "out", base=BaseModel(architecture="vit_tiny_patch16_224", options=options))
    assert torch.equal(load(tmp_path / "out")(images_for(model)), model(images_for(model)))


def test_two_saves_give_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    # Files of one process may lie in another order of notes each; tests/test_files.py has more of them.
    for number in range(2):
        again = save(load(saved), tmp_path / str(number))
        for name in (CONFIG_FILE, WEIGHTS_FILE, "README.md"):
            assert (again / name).read_bytes() == (saved / name).read_bytes(), name
    document = read_json(saved / CONFIG_FILE)
    assert list(document) == sorted(document)
    assert list(document["base"]["options"]) == sorted(document["base"]["options"])


def test_a_model_that_came_from_the_hub_is_saved_without_the_hub(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    remember_base(model, BaseModel(architecture="hf-hub:someone/something"))
    loaded = load(save(convert(model, "skipat", layers=[1]), tmp_path / "out"))
    assert trunk_of(loaded).base.architecture.startswith("vit_tiny_patch16_224")


def test_names_for_another_number_of_classes_are_refused(tmp_path: Path, student: nn.Module) -> None:
    with pytest.raises(ConfigError, match="2 class names were given for a model of 10 classes"):
        save(student, tmp_path / "out", class_names=["cat", "dog"])
    assert not (tmp_path / "out").exists()


# --- a write that is cut off ----------------------------------------------------------------------------------------


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", ["killed", "disk full"])
def test_a_write_that_is_cut_off_leaves_the_old_model(
    saved: Path, student: nn.Module, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = convert(dense("vit_plain"), "skipat", layers=[3])

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed if failure == "killed" else no_space)
    expected = KeyboardInterrupt if failure == "killed" else CheckpointError
    with pytest.raises(expected, match=None if failure == "killed" else r"model\.safetensors cannot be written"):
        save(other, saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert torch.equal(load(saved)(images_for(student)), student(images_for(student)))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_save_that_is_killed_is_old_or_new_or_noticed(call: int, saved: Path, student: nn.Module) -> None:
    other = convert(dense("vit_plain"), "skipat", layers=[3])
    assert killed_at(call, lambda: save(other, saved, overwrite=True), ("replace",))
    if call == 2:  # between weights and description
        with pytest.raises(
            CheckpointError, match=r"not saved together: conversions, .* model\.safetensors is the newer"
        ):
            load(saved)
    else:
        assert_same_model(load(saved), student if call == 1 else other, images_for(student))
    assert_same_model(load(saved / WEIGHTS_FILE), student if call == 1 else other, images_for(student))
    save(other, saved, overwrite=True)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]


def test_a_kill_inside_the_first_save_does_not_occupy_the_folder(tmp_path: Path, student: nn.Module) -> None:
    assert killed_at(1, lambda: save(student, tmp_path / "out"), ("replace",))
    assert list((tmp_path / "out").iterdir())
    assert_same_model(load(save(student, tmp_path / "out")), student, images_for(student))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_save_that_fails_leaves_all_old_files(call: int, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    calls, rename = itertools.count(1), os.replace
    monkeypatch.setattr(os, "replace", lambda *args: no_space() if next(calls) == call else rename(*args))
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(convert(dense("vit_plain"), "skipat", layers=[3]), saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_description_of_another_save_is_noticed(saved: Path, tmp_path: Path, student: nn.Module) -> None:
    other = save(convert(dense("vit_plain"), "skipat", layers=[3]), tmp_path / "other")
    shutil.copy(other / CONFIG_FILE, saved / CONFIG_FILE)
    with pytest.raises(CheckpointError, match=r"were not saved together: conversions, .*config\.json is the newer one"):
        load(saved)


# --- what is broken is named ----------------------------------------------------------------------------------------


def describe_as(folder: Path, document: Any) -> None:
    """Give a saved folder another description, in both places where it stands."""
    write_json(folder / CONFIG_FILE, document)
    state = load_file(folder / WEIGHTS_FILE)
    write_tensors(folder / WEIGHTS_FILE, state, {"vitslim": json.dumps(document)})


def change(**values: Any) -> Callable[[Path], None]:
    return lambda folder: describe_as(folder, {**read_json(folder / CONFIG_FILE), **values})


def option(**values: Any) -> Callable[[Path], None]:
    """Change options of the base model."""

    def apply(folder: Path) -> None:
        document = read_json(folder / CONFIG_FILE)
        document["base"]["options"].update(values)
        describe_as(folder, document)

    return apply


def step_with(axis: str, choice: Any) -> Callable[[Path], None]:
    """Another choice in the second step of the plan."""

    def apply(folder: Path) -> None:
        document = read_json(folder / CONFIG_FILE)
        document["plan"]["steps"][1][axis] = choice
        describe_as(folder, document)

    return apply


def without(key: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = read_json(folder / CONFIG_FILE)
        del document[key]
        describe_as(folder, document)

    return apply


def write_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / CONFIG_FILE).write_text(text) and None


def tensors(apply: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change_file(folder: Path) -> None:
        state = load_file(folder / WEIGHTS_FILE)
        apply(state)
        save_file(state, folder / WEIGHTS_FILE)

    return change_file


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def pipe(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    os.mkfifo(folder / CONFIG_FILE)


DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]

BASE = {"architecture": ":VisionTransformer", "options": {}}

BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "other format": (change(format="peft"), r"config\.json is not a vitslim description"),
    "later version": (change(format_version=99), r"format version 99; this vitslim reads 1: update it"),
    "not JSON": (write_config("{"), r"config\.json is not readable JSON .*truncated"),
    "not an object": (write_config("[1]"), r"is not a vitslim description"),
    "missing key": (without("base"), r"config\.json is damaged: base: Field required"),
    "unknown key": (change(colour="red"), r"is damaged: colour: Extra inputs"),
    "input without mean": (change(input={"image_size": [32, 32]}), r"is damaged: input\.mean"),
    "unknown choice": (
        step_with("attention", {"kind": "reues"}),
        r"cannot be rebuilt: the plan in config\.json: .*unknown attention choice 'reues'; did you mean 'reuse'\?",
    ),
    "unknown field": (step_with("attention", {"kind": "reuse", "depth": 3}), "unknown key 'depth'"),
    "a plan that cannot be": (step_with("mlp", {"kind": "narrow", "neurons": 10**6}), "the MLP of block 1 has 192"),
    "unknown class": (change(base={"architecture": ":Swin"}), r"base model class 'Swin' is not one of"),
    "unknown model": (change(base={"architecture": "vit_tinny"}), r"cannot be rebuilt: unknown model 'vit_tinny'"),
    "bad constructor": (change(base={**BASE, "options": {"depth": "x"}}), r"cannot be rebuilt"),
    "impossible heads": (change(base={**BASE, "options": {"embed_dim": 48, "num_heads": 5}}), r"cannot be rebuilt"),
    "unknown dtype": (change(dtype="int4"), r"dtype 'int4' is not one of float32, float16, bfloat16"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), r"model\.safetensors is missing, corrupt"),
    "truncated weights": (truncate, r"model\.safetensors is missing, corrupt or truncated"),
    "empty weights": (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"") and None, r"corrupt or truncated"),
    "missing tensors": (
        tensors(lambda state: state.pop("head.bias")),
        r"does not fit .*: 1 tensors are missing, first 'head\.bias'",
    ),
    "extra tensors": (
        tensors(lambda state: state.update({"head.wieght": torch.zeros(1)})),
        r"1 are unknown, first 'head\.wieght' \(nearest known: 'head\.weight'\)",
    ),
    "another shape": (
        tensors(lambda state: state.update({"head.weight": torch.zeros(3, 48)})),
        r"head\.weight has shape \(3, 48\), the model that config\.json describes wants \(10, 48\)",
    ),
    "no array of numbers": (write_config('{"input": NaN}'), r"config\.json is not readable JSON \(NaN is no JSON\)"),
    "great depth": (write_config("[" * 10**6), r"config\.json is not readable JSON \(it is nested too deeply\)"),
    "some depth": (write_config('{"format":' * 900 + "1" + "}" * 900), "is not a vitslim description"),
    "deep options": (step_with("attention", {"kind": "reuse", "expansion": DEEP}), "cannot be rebuilt"),
    "a pipe": (pipe, r"config\.json"),
    "names that are no text": (change(class_names=[1] * 10), r"is damaged: class_names\.0"),
    "too few names": (change(class_names=["cat", "dog"]), "has 2 class names for 10 classes"),
    "integers": (
        tensors(lambda state: state.update({"head.bias": torch.zeros(10, dtype=torch.int64)})),
        r"head\.bias is I64, wanted a torch\.float32",
    ),
    "doubles": (tensors(lambda state: state.update({"head.bias": torch.zeros(10).double()})), r"head\.bias is F64"),
    "a million blocks": (option(depth=10**6), "depth=1000000; wanted 1 to 1000"),
    "a wide model": (option(embed_dim=3 * 10**7), "for another model .*width 48, this one's 30000000"),
    "many classes": (option(num_classes=10**10), r"head\.weight has shape \(10, 48\)"),
    "large images": (option(img_size=8 * 10**5), "its plan is for images of .* its base model for"),
    "a wide layer": (option(mlp_ratio=1e9), "for another model .*other blocks"),
    "many registers": (option(reg_tokens=10**9), "for another model .*prefix 1"),
    "a wide choice": (step_with("attention", {"kind": "reuse", "expansion": 1e9}), "expansion=1000000000"),
    "from the hub": (change(base={"architecture": "hf-hub:timm/vit"}), "leads to the network or to other files"),
    "from a folder": (change(base={"architecture": "local-dir:/etc"}), "leads to the network or to other files"),
    "pretrained": (option(pretrained=True), r"leads to .* by its options \['pretrained'\]"),
    "other weights": (change(base={"architecture": "builtin", "options": {"weights": "/etc/passwd"}}), "leads to"),
    "a checkpoint": (
        change(base={"architecture": "vit_tiny_patch16_224", "options": {"checkpoint_path": "/etc/passwd"}}),
        "leads to the network or to other files by its options",
    ),
    "a source": (option(pretrained_cfg={"url": "http://localhost/x"}), "leads to the network or to other files"),
    "another plan": (change(plan=None), r"does not fit the model that config\.json describes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_for_what_is_broken(case: str, saved: Path) -> None:
    damage, message = BROKEN[case]
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_a_folder_without_a_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json; wanted a folder that vitslim\.save wrote"):
        load(tmp_path)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing-here does not exist; wanted a folder"):
        load(tmp_path / "nothing-here")


def test_a_weights_file_of_someone_else_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="carries no vitslim description"):
        load(tmp_path / "other.safetensors")


def test_a_weights_file_with_a_broken_description_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors", {"vitslim": "{"})
    with pytest.raises(CheckpointError, match="the description inside is not JSON"):
        load(tmp_path / "other.safetensors")


def test_a_description_is_read_without_the_weights(saved: Path) -> None:
    (saved / WEIGHTS_FILE).unlink()
    config = load_config(saved)
    assert [entry.method for entry in config.conversions] == ["skipat"]
    assert config.input.image_size == (32, 32)


def test_only_what_save_wrote_looks_like_a_saved_model(saved: Path, tmp_path: Path) -> None:
    assert checkpoint.is_saved_model(saved)
    assert checkpoint.is_saved_model(saved / WEIGHTS_FILE)
    assert not checkpoint.is_saved_model(tmp_path)
    assert not checkpoint.is_saved_model("deit_base")


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_made_and_how(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("# VisionTransformer, dense → skipat\n")
    assert "| skipat | layers=[1, 2] |" in card
    assert "| image size | 32 × 32 px |" in card
    assert "No accuracy was measured" in card


def test_the_card_shows_the_metrics_as_shares(tmp_path: Path, student: nn.Module) -> None:
    metrics = {
        "teacher": {"images": 50, "top1": 0.9, "top5": 0.98, "agreement": None},
        "dense_finetuned": {"images": 50, "top1": 0.91, "top5": 0.99, "agreement": 0.97},
    }
    card = (save(student, tmp_path / "out", metrics=metrics) / "README.md").read_text()
    assert "| teacher | 90.00 % | 98.00 % | - | 50 |" in card
    assert "| dense finetuned | 91.00 % | 99.00 % | 97.00 % | 50 |" in card
    assert "No accuracy" not in card


def test_class_names_are_kept(tmp_path: Path, student: nn.Module) -> None:
    names = [f"class {index}" for index in range(10)]
    assert load_config(save(student, tmp_path / "out", class_names=names)).class_names == names
