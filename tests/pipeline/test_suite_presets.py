"""What presets ask for, and how faulty ones are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vitslim.errors import ConfigError
from vitslim.methods import planned, read_method
from vitslim.pipeline.suite import AccuracyPreset, SuitePreset, read_preset
from vitslim.pipeline.suite.preset import KERNELS
from vitslim.plans import dense_plan
from vitslim.plans.shape import vit_shape
from vitslim.trunk import Conversion

TINY: dict[str, Any] = {
    "models": {"tiny": {"name": "builtin"}},
    "groups": [{"models": ["tiny"], "sizes": [32, 64], "batches": [1, 2], "backends": ["torch", "compiled"]}],
}
EVO_VIT = "{convert: [{method: evo_vit}]}"
RESERVED = ("teacher", "dense-finetuned", "dense", "speed", "trained", "tome", "depth-drop")
TARGET = {"what": "t", "at_least": 2, "precision": "fp32", "model": "tiny", "image_size": 32, "backend": "torch"}
KERNEL = {"what": "k", "at_least": 2, "precision": "fp32", "kernel": "tiles of 64", "tokens": 197}


def own(folder: Path, **changes: Any) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return str(path)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_shipped_preset_of_the_suite_is_whole_and_quick_is_a_part_of_it(name: str) -> None:
    sizes: list[int] = []
    for quick in (True, False):
        preset = read_preset(SuitePreset, name, quick=quick)
        cases = preset.cases(quick=quick)
        assert len({case.name for case in cases}) == len(cases)
        # Each has its engine built, or is compiled, for one batch size.
        assert all(len(case.batches) == 1 for case in cases if "tensorrt" in case.backend or "comp" in case.backend)
        sizes.append(len(cases))
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_shipped_accuracy_preset_is_whole_and_quick_trains_less(name: str) -> None:
    quick, whole = (read_preset(AccuracyPreset, name, quick=quick) for quick in (True, False))
    assert quick.budget.steps < whole.budget.steps
    assert quick.names == whole.names


def test_every_conversion_of_a_preset_is_one_that_works() -> None:
    suites = [read_preset(SuitePreset, name).competitors for name in ("cpu", "gpu")]
    trained = [read_preset(AccuracyPreset, name).students for name in ("cpu", "gpu")]
    steps = {repr(one.steps): one.steps for conversions in (*suites, *trained) for one in conversions.values()}
    dense = dense_plan(vit_shape(width=24, depth=12, heads=3, image_size=(32, 32), patch=4))
    for several in steps.values():
        plan, history = dense, ()
        for name, options in several:  # those that need no analysis to say where
            given = {key: value for key, value in options.items() if value != "auto"}
            plan = planned(*read_method(name, given), plan, None, history)
            history = (*history, Conversion(name, given))
        assert plan != dense


def test_kernels_are_called_as_their_cases_are() -> None:
    pytest.importorskip("triton")
    import torch

    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    given = (torch.device("cpu"), torch.float32, 17, 1)
    assert {case.name for build in (kernel_cases, token_cases) for case in build(*given)} == {*KERNELS}


def test_what_is_compiled_anew_for_every_batch_is_a_case_of_its_own(tmp_path: Path) -> None:
    assert [case.name for case in read_preset(SuitePreset, own(tmp_path)).cases()] == [
        "tiny-32-fp32-torch-b1+2",
        "tiny-32-fp32-compiled-b1",
        "tiny-32-fp32-compiled-b2",
        "tiny-64-fp32-torch-b1+2",
        "tiny-64-fp32-compiled-b1",
        "tiny-64-fp32-compiled-b2",
    ]


def test_what_several_groups_ask_for_is_one_case_with_the_competitors_of_all(tmp_path: Path) -> None:
    setting = {"models": ["tiny"], "sizes": [32]}
    groups = [
        setting | {"backends": ["compiled"], "batches": [2], "competitors": ["depth-drop"]},
        setting | {"batches": [4, 2, 4], "competitors": ["depth-drop"]},
        {"kernels": [65, 17]},
        setting | {"backends": ["torch", "compiled"], "batches": [1, 2], "competitors": ["tome", "depth-drop"]},
        {"kernels": [33, 17]},
    ]
    cases = read_preset(SuitePreset, own(tmp_path, groups=groups)).cases()
    assert [(case.name, case.competitors, case.tokens) for case in cases] == [
        ("tiny-32-fp32-compiled-b2", ("depth-drop", "tome"), ()),
        ("tiny-32-fp32-torch-b4+2", ("depth-drop", "tome"), ()),
        ("kernels-fp32-b1", (), (17, 33, 65)),
        ("tiny-32-fp32-torch-b1", ("tome", "depth-drop"), ()),
        ("tiny-32-fp32-compiled-b1", ("tome", "depth-drop"), ()),
    ]


def test_a_quick_run_has_the_groups_and_the_changes_for_it(tmp_path: Path) -> None:
    groups = [*TINY["groups"], {"models": ["tiny"], "sizes": [32], "quick": True}]
    preset = read_preset(SuitePreset, own(tmp_path, groups=groups, quick=["rounds=6"]), quick=True)
    assert preset.rounds == 6
    assert [case.name for case in preset.cases(quick=True)] == ["tiny-32-fp32-torch-b1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [{"models": ["tinny"]}]}, "groups name tinny, which are neither models nor competitors"),
        ({"groups": [{"models": ["tiny"], "competitors": ["evo"]}]}, "groups name evo"),
        ({"competitors": {"a": {"convert": [{"method": "skipatt"}]}}}, "did you mean 'skipat'"),
        ({"competitors": {"a": {"convert": [{"layers": [1]}]}}}, "names no method"),
        ({"rounds": 2}, "rounds"),
        ({"groups": [{"models": ["tiny"], "backends": ["tensorflow"]}]}, "tensorflow"),
        ({"sizes": [1]}, "sizes"),
        ({"targets": [KERNEL | {"kernel": "tiles of 46"}]}, "no kernel 'tiles of 46'; choose from tiles of 64"),
        ({"targets": [KERNEL | {"of": "memory", "backend": "torch"}], "device": "cuda"}, "but kernels are timed alone"),
        (
            {"targets": [KERNEL | {"batch": 8}], "groups": [{"kernels": [197], "batches": [32]}]},
            "no group times kernels in fp32 at 197 tokens, batch 8",
        ),
        ({"targets": [KERNEL | {"max_loss": 0.5}]}, "max_loss is of the accuracy benchmark"),
        ({"targets": [TARGET | {"image_size": 48}]}, "yaml: target 't': nothing here measures"),
        ({"targets": [TARGET | {"of": "memory"}]}, "of='memory', which is read where torch runs on a GPU alone"),
        ({"targets": [TARGET | {"of": "memory", "backend": "ort"}], "device": "cuda"}, "of='memory', which is read"),
        ({"groups": [{"sizes": [32]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "kernels": [197]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "sizes": [-32]}]}, "groups.0.sizes.0=-32"),
        ({"groups": [{"models": ["tiny"], "batches": []}]}, "groups.0.batches"),
        ({"quick": {"rounds": 5}}, "wanted a list of changes"),
        ({"quick": [5]}, "wanted a list of changes"),
        ({1: 2}, "unknown key '1'"),
    ],
)
def test_a_faulty_preset_is_refused(change: dict[Any, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(ConfigError, match=message):
        read_preset(SuitePreset, str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sibling=null", "baselines name smaller-sibling, and sibling is not given"),
        *((f"students.{name}={EVO_VIT}", f"called {name}, which are names of") for name in RESERVED),
        (f"students={{'..': {EVO_VIT}}}", "called '..'; wanted a small letter or digit"),
        (f"students={{/tmp/student: {EVO_VIT}}}", "called '/tmp/student'; wanted"),
        (f"students={{evo/vit: {EVO_VIT}}}", "called 'evo/vit'; wanted"),
        ("targets=[{what: more, precision: fp32, backend: torch, competitors: [evo], at_least: 2}]", "target 'more'"),
        ("targets=[{what: more, precision: bf16, backend: torch, competitors: [sret], at_least: 2}]", "target 'more'"),
        (
            "targets=[{what: less, of: weights, precision: fp32, backend: torch, competitors: [sret], at_least: 1}]",
            "target 'less': of='weights'",
        ),
        (
            "targets=[{what: k, kernel: image, precision: fp32, backend: torch, competitors: [sret], at_least: 1}]",
            "target 'k': kernel='image', but",
        ),
        ("budget.lr=-1", "budget.lr"),
        ("speed.batches=[]", "speed.batches"),
        ("data.classes=1", "classes=1 must be"),
        ("data.clases=1", "unknown key 'data.clases'; did you mean 'classes'"),
    ],
)
def test_a_faulty_accuracy_preset_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_preset(AccuracyPreset, "cpu", overrides=[override])


@pytest.mark.parametrize("kind", [SuitePreset, AccuracyPreset])
def test_what_is_no_preset_is_refused(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'gpus'; wanted cpu, gpu or a YAML file"):
        read_preset(kind, "gpus")
    (tmp_path / "own.yaml").write_text("\x00")
    with pytest.raises(ConfigError, match=r"own\.yaml is not YAML"):
        read_preset(kind, str(tmp_path / "own.yaml"))
