"""What presets ask for, and how faulty ones are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer

from tests.kernels.on_kernels import OnKernels, through_ops
from vitslim.bench.suite import GainTarget
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.pipeline.suite import Preset, read_preset
from vitslim.pipeline.suite.preset import PRESETS

TINY: dict[str, Any] = {
    "models": {"tiny": {"name": "builtin"}},
    "groups": [{"models": ["tiny"], "sizes": [32, 64], "batches": [1, 2], "backends": ["torch", "compiled"]}],
}
EVO_VIT = "{convert: [{method: evo_vit}]}"
TARGET = {"what": "t", "at_least": 2, "precision": "fp32", "model": "tiny", "image_size": 32, "backend": "torch"}


@pytest.mark.parametrize("name", PRESETS["suite"])
def test_a_shipped_preset_is_whole_and_quick_is_less(name: str) -> None:
    quick, whole = (read_preset("suite", name, quick=quick) for quick in (True, False))
    assert 0 < len(quick.cases(quick=True)) < len(whole.cases())
    assert quick.rounds < whole.rounds
    if name not in PRESETS["accuracy"]:
        return
    quick, whole = (read_preset("accuracy", name, quick=quick) for quick in (True, False))
    assert quick.training.budget.steps < whole.training.budget.steps
    assert quick.students == whole.students
    assert {*whole.competitors} < {*whole.students}


def test_every_conversion_of_a_preset_is_one_that_works() -> None:
    presets = [read_preset(kind, name) for kind, names in PRESETS.items() for name in names]
    conversions = {repr(one.convert): one.convert for preset in presets for one in preset.competitors.values()}
    dense = VisionTransformer(img_size=32, patch_size=4, embed_dim=24, num_heads=3, num_classes=4, depth=12)
    for several in conversions.values():
        model = dense
        for config in several:  # without the analysis that would say where
            auto = {name: None for name, value in config if value == "auto"}
            model = convert(model, config.model_copy(update=auto))
        assert model is not dense


def test_kernels_of_targets_are_those_that_are_timed() -> None:
    pytest.importorskip("triton")
    import torch

    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    timed = {one.name for build in (kernel_cases, token_cases) for one in build("cpu", torch.float32, 17, 1)}
    assert {one.kernel for one in read_preset("suite", "gpu").targets if one.kernel} <= timed


def test_what_several_groups_ask_for_is_one_case_with_the_competitors_of_all() -> None:
    setting = {"models": ["tiny"], "sizes": [32]}
    groups = [
        setting | {"backends": ["compiled"], "batches": [2], "competitors": ["depth-drop"]},
        setting | {"batches": [4, 2, 4], "competitors": ["depth-drop"]},
        {"kernels": [65, 17]},
        setting | {"backends": ["torch", "compiled"], "batches": [1, 2], "competitors": ["tome", "depth-drop"]},
        {"kernels": [33, 17]},
    ]
    cases = Preset.model_validate(TINY | {"groups": groups}).cases()
    assert [(case.name, case.competitors, case.tokens) for case in cases] == [
        ("tiny-32-fp32-compiled-b2", ("depth-drop", "tome"), ()),
        ("tiny-32-fp32-torch-b4", ("depth-drop",), ()),
        ("tiny-32-fp32-torch-b2", ("depth-drop", "tome"), ()),
        ("kernels-fp32-b1", (), (17, 33, 65)),
        ("tiny-32-fp32-torch-b1", ("tome", "depth-drop"), ()),
        ("tiny-32-fp32-compiled-b1", ("tome", "depth-drop"), ()),
    ]


def test_a_gain_in_a_further_precision_is_one_over_the_first() -> None:
    group: dict[str, Any] = {"models": ["tiny"], "sizes": [32], "competitors": ["depth-drop"]}
    preset = Preset.model_validate(TINY | {"groups": [group, group | {"also": ["int8"]}]})
    plain, mixed = preset.cases()
    target = GainTarget.model_validate(TARGET | {"competitors": ["depth-drop"], "precision": "int8"})
    assert (target.is_measured_by(plain), target.is_measured_by(mixed)) == (False, True)
    target = target.model_copy(update={"precision": "fp32"})
    assert (target.is_measured_by(plain), target.is_measured_by(mixed)) == (True, False)


def test_kernels_of_a_competitor_are_those_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    def refuse(_: object, family: str, __: int) -> bool:
        asked.add(family)
        return False

    through_ops(monkeypatch, refuse)
    dense = VisionTransformer(img_size=64, patch_size=4, embed_dim=24, num_heads=3, num_classes=4, depth=12).eval()
    for name, one in read_preset("suite", "gpu").competitors.items():
        model = dense
        for config in one.convert:
            model = convert(model, config)
        asked.clear()
        with torch.no_grad(), OnKernels():
            model.eval()(torch.zeros(2, 3, 64, 64))
        assert one.kernels == (next(iter(asked)) if len(asked) == 1 else None), name


def test_with_and_without_kernels_is_asked_of_graphs_and_of_what_has_kernels() -> None:
    preset = read_preset("suite", "gpu", overrides=["triton=['0', '1']"])
    cases = preset.cases()
    assert {case.backend for case in cases} == {"compiled-graph"}
    assert {case.triton for case in cases} == {("0", "1")}
    assert all(preset.competitors[name].kernels for case in cases for name in case.competitors)
    assert cases[0].name == "deit_small-224-bf16-compiled-graph-b256-triton01"


def test_a_quick_run_has_the_groups_and_the_changes_for_it(tmp_path: Path) -> None:
    groups = [*TINY["groups"], {"models": ["tiny"], "sizes": [32], "quick": True}]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(TINY | {"groups": groups, "quick": ["rounds=6"]}))
    preset = read_preset("suite", str(path), quick=True, overrides=["warmup=2"])
    assert (preset.rounds, preset.warmup) == (6, 2)
    assert [case.name for case in preset.cases(quick=True)] == ["tiny-32-fp32-torch-b1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [{"models": ["tinny"]}]}, "groups name tinny, which are neither models nor competitors"),
        ({"groups": [{"models": ["tiny"], "competitors": ["evo"]}]}, "groups name evo"),
        ({"competitors": {"a": {"convert": [{"method": "skipatt"}]}}}, "did you mean 'skipat'"),
        ({"competitors": {"a": {"convert": [{"method": "skipat", "expansoin": 1}]}}}, "did you mean 'expansion'"),
        ({"competitors": {"a": {"convert": [{"layers": [1]}]}}}, "wanted {method: NAME, option: value, ...}"),
        ({"competitors": {"a": {"convert": [5]}}}, "wanted {method: NAME, option: value, ...}"),
        ({"competitors": {"tome": {"convert": [{"method": "skipat"}]}}}, "called tome, which are other rows"),
        ({"competitors": {"../a": {"convert": [{"method": "skipat"}]}}}, "pattern"),
        ({"rounds": 2}, "rounds"),
        ({"groups": [{"models": ["tiny"], "backends": ["tensorflow"]}]}, "tensorflow"),
        ({"sizes": [1]}, "sizes"),
        ({"targets": [TARGET | {"image_size": 48}, TARGET | {"what": "u"}]}, "yaml: targets 't', 'u': nothing here"),
        ({"targets": [TARGET | {"kernel": "image", "tokens": 17}]}, "targets 't': nothing here measures"),
        (
            {"targets": [TARGET | {"at_least": None, "of": "memory"}]},
            "at_least is wanted of weights, memory and kernels",
        ),
        ({"groups": [{"sizes": [32]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "kernels": [197]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "also": ["fp32"]}]}, "wanted precisions of models beside fp32"),
        ({"groups": [{"models": ["tiny"], "also": ["int8", "int8"]}]}, "each once, given int8, int8"),
        ({"groups": [{"kernels": [17], "also": ["int8"]}]}, "wanted precisions of models"),
        ({"triton": ["0", "1"]}, "no case of compiled-graph has a competitor with kernels"),
        ({"triton": ["yes"]}, "triton.0='yes'"),
        ({"groups": [{"models": ["tiny"], "sizes": [-32]}]}, "groups.0.sizes.0=-32"),
        ({"groups": [{"models": ["tiny"], "batches": []}]}, "groups.0.batches"),
        ({"quick": {"rounds": 5}}, "quick: Input should be a valid tuple"),
        ({"quick": [5]}, "quick"),
        ({1: 2}, "unknown key '1'"),
    ],
)
def test_a_faulty_preset_is_refused(change: dict[Any, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(ConfigError) as caught:
        read_preset("suite", str(tmp_path / "own.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"competitors.teacher={EVO_VIT}", "called teacher, which are other rows"),
        ("groups.0.models=[teacher, sibling]", "the accuracy benchmark trains one teacher"),
        ("training.budget.lr=-1", "training.budget.lr"),
        ("training.data.classes=1", "classes=1 must be"),
        ("training.data.clases=1", "unknown key 'training.data.clases'; did you mean 'classes'"),
        ("training=null", "the accuracy benchmark alone has, and needs, a section training"),
    ],
)
def test_a_faulty_accuracy_preset_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_preset("accuracy", "cpu", overrides=[override])


def test_what_is_no_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'gpus'; wanted cpu, gpu, headline or a YAML file"):
        read_preset("suite", "gpus")
    (tmp_path / "own.yaml").write_text("\x00")
    with pytest.raises(ConfigError, match=r"own\.yaml is not YAML"):
        read_preset("accuracy", str(tmp_path / "own.yaml"))
