"""What the presets of the suite ask for, and how faulty ones are refused."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from timm.models.vision_transformer import VisionTransformer

from vitslim.errors import ConfigError
from vitslim.methods import replay
from vitslim.pipeline.accuracy import read_accuracy_preset
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.suite import read_preset
from vitslim.pipeline.suite.preset import KERNELS, Competitor
from vitslim.trunk import Conversion

TINY: dict[str, Any] = {
    "models": {"tiny": {"name": "builtin"}},
    "groups": [{"models": ["tiny"], "sizes": [32, 64], "batches": [1, 2], "backends": ["torch", "compiled"]}],
}
EVO_VIT = "{convert: [{method: evo_vit}]}"
RESERVED = ("teacher", "dense-control", "dense", "speed", "tome", "depth-drop")
TINY_AIM = {"what": "t", "at_least": 2, "precision": "fp32", "model": "tiny", "image_size": 32, "backend": "torch"}
KERNEL_AIM = {"what": "k", "at_least": 2, "precision": "fp32", "kernel": "tiles of 64", "tokens": 197}
DEPTHS = {"deit_tiny": 12, "deit_small": 12, "deit_base": 12, "vit_large": 24}


def written(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("quick", [False, True])
def test_a_shipped_preset_is_whole(name: str, quick: bool) -> None:
    preset = read_preset(name, quick=quick)
    pieces = preset.pieces(quick=quick)
    assert pieces
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert len(preset.pieces(quick=True)) < len(preset.pieces(quick=False))


def test_kernels_are_called_as_their_cases_are() -> None:
    pytest.importorskip("triton")
    import torch

    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    given = (torch.device("cpu"), torch.float32, 17, 1)
    assert {case.name for build in (kernel_cases, token_cases) for case in build(*given)} == {*KERNELS}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_papers_evo_vit_stands_for_itself(name: str) -> None:
    aims = [aim for aim in read_preset(name).aims if aim.what.startswith("Evo-ViT")]
    assert aims
    assert all(aim.competitors == ("evo-vit",) for aim in aims)


def test_the_gpu_preset_aims_at_large_images_a_selection_and_accuracy() -> None:
    aims = read_preset("gpu").aims
    paper = {aim.image_size for aim in aims if aim.competitors == ("skipat",)}
    assert paper == {384, 512, 1024}
    assert {aim.tokens for aim in aims if aim.kernel == "selection"} == {197, 577, 1025, 4097}
    (both,) = read_accuracy_preset("gpu").aims
    assert (both.at_least, both.max_loss) == (1.8, 0.5)


def test_a_quick_cpu_run_watches_both_backends_and_a_pair() -> None:
    preset = read_preset("cpu", quick=True)
    pieces = preset.pieces(quick=True)
    assert {piece.backend for piece in pieces} == {"torch", "ort"}
    for piece in pieces:
        assert any(len(preset.competitors[name].convert) > 1 for name in piece.competitors)


def test_the_gpu_preset_has_the_models_sizes_batches_and_baselines_of_the_issue() -> None:
    preset = read_preset("gpu")
    pieces = preset.pieces(quick=False)

    def settings(backend: str, precision: str) -> set[tuple[str, int, int]]:
        alike = [piece for piece in pieces if (piece.backend, piece.precision) == (backend, precision)]
        return {(piece.model, piece.image_size, batch) for piece in alike for batch in piece.batches}

    batches = (1, 8, 32, 256)
    assert settings("compiled-graph", "bf16") == {*product(DEPTHS, (224, 384, 512, 1024), batches)}
    assert settings("torch", "bf16") >= {*product(DEPTHS, (224, 384, 512), batches)}
    for backend in ("tensorrt", "ort", "ort-tensorrt"):
        assert settings(backend, "fp16") == {*product(("deit_small", "deit_base"), (224, 512), batches)}
    assert {model for model, _, _ in settings("train", "bf16")} == {*DEPTHS}
    named = {name for piece in pieces for name in piece.competitors}
    assert named == {*preset.competitors, *BASELINES, "smaller-sibling"}


def test_what_is_compiled_or_built_has_few_competitors_beyond_the_first_pieces() -> None:
    """A piece has to fit into ten minutes with half a minute for each engine."""
    pieces = read_preset("gpu").pieces(quick=False)
    assert all(len(piece.competitors) <= 6 for piece in pieces if "tensorrt" in piece.backend)
    compiled = [piece for piece in pieces if piece.backend == "compiled-graph"]
    assert all(len(piece.competitors) <= 12 for piece in compiled[1:])
    assert all(len(piece.competitors) <= 6 for piece in compiled if piece.model == "vit_large")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_conversion_of_a_preset_is_one_that_works(name: str) -> None:
    preset = read_preset(name)
    wanted = {
        (DEPTHS[piece.model], one)
        for piece in preset.pieces(quick=False)
        for one in piece.competitors
        if one in preset.competitors
    }
    size: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 4}
    models = {depth: VisionTransformer(**size, depth=depth) for depth, _ in wanted}
    for depth, one in sorted(wanted):
        assert replay(models[depth], conversions(preset.competitors[one])) is not models[depth]


def conversions(competitor: Competitor) -> list[Conversion]:
    """Those that need no analysis to say where."""
    return [
        Conversion(entry["method"], {key: value for key, value in entry.items() if key != "method" and value != "auto"})
        for entry in competitor.convert
    ]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_form_of_the_suite_has_its_accuracy(name: str) -> None:
    students = read_accuracy_preset(name).students
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=24, num_heads=3, num_classes=4, depth=12)
    for student in students.values():
        assert replay(model, conversions(student)) is not model
    wanted = {"skipat", "skipat-narrow", "evo-vit", "sparsifiner-tile", "sparsifiner-image", "sret"}
    # Merging changes no output; few basis rows are for long sequences, aligned counts for speed.
    pairs = {one for one, entry in read_preset(name).competitors.items() if len(entry.convert) > 1}
    assert {*students} >= wanted | (pairs if name == "gpu" else set())


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("quick", [False, True])
def test_a_shipped_accuracy_preset_is_whole(name: str, quick: bool) -> None:
    preset = read_accuracy_preset(name, quick=quick)
    assert preset.names[0] == "dense-control"
    assert {"depth-drop", "lower-resolution", "smaller-sibling"} <= set(preset.names)
    methods = {entry["method"] for student in preset.students.values() for entry in student.convert}
    assert methods == {"skipat", "evo_vit", "sparsifiner", "sret"}
    assert any(len(student.convert) == 2 for student in preset.students.values())


def test_what_is_compiled_anew_for_every_batch_is_a_piece_of_its_own(tmp_path: Path) -> None:
    pieces = read_preset(written(tmp_path, TINY)).pieces(quick=False)
    assert [piece.name for piece in pieces] == [
        "tiny-32-fp32-torch-b1+2",
        "tiny-32-fp32-compiled-b1",
        "tiny-32-fp32-compiled-b2",
        "tiny-64-fp32-torch-b1+2",
        "tiny-64-fp32-compiled-b1",
        "tiny-64-fp32-compiled-b2",
    ]


def test_engines_are_built_for_one_batch_size_each() -> None:
    pieces = [piece for piece in read_preset("gpu").pieces(quick=False) if "tensorrt" in piece.backend]
    assert {piece.backend for piece in pieces} == {"tensorrt", "ort-tensorrt"}
    assert {piece.batches for piece in pieces} == {(1,), (8,), (32,), (256,)}


def test_what_several_groups_ask_for_is_one_piece_with_the_competitors_of_all(tmp_path: Path) -> None:
    setting = {"models": ["tiny"], "sizes": [32]}
    groups = [
        setting | {"backends": ["compiled"], "batches": [2], "competitors": ["depth-drop"]},
        setting | {"batches": [4, 2], "competitors": ["depth-drop"]},
        {"kernels": [65, 17]},
        setting | {"backends": ["torch", "compiled"], "batches": [1, 2], "competitors": ["tome", "depth-drop"]},
        {"kernels": [33, 17]},
    ]
    pieces = read_preset(written(tmp_path, TINY | {"groups": groups})).pieces(quick=False)
    assert [(piece.name, piece.competitors, piece.tokens) for piece in pieces] == [
        ("tiny-32-fp32-compiled-b2", ("depth-drop", "tome"), ()),
        ("tiny-32-fp32-torch-b4+2", ("depth-drop", "tome"), ()),
        ("kernels-fp32-b1", (), (17, 33, 65)),
        ("tiny-32-fp32-torch-b1", ("tome", "depth-drop"), ()),
        ("tiny-32-fp32-compiled-b1", ("tome", "depth-drop"), ()),
    ]


def test_a_quick_run_has_the_aims_that_it_can_reach() -> None:
    preset = read_preset("gpu")
    quick = preset.aims_of(preset.pieces(quick=True))
    assert {(aim.model, aim.image_size) for aim in quick} == {("deit_small", 224), ("-", 0)}
    assert preset.aims_of(preset.pieces(quick=False)) == list(preset.aims)
    assert read_preset("cpu").aims_of(read_preset("cpu").pieces(quick=True)) == []


def test_a_quick_run_has_the_groups_and_the_changes_for_it(tmp_path: Path) -> None:
    groups = [*TINY["groups"], {"models": ["tiny"], "sizes": [32], "quick": True}]
    preset = read_preset(written(tmp_path, TINY | {"groups": groups, "quick": {"rounds": 6}}), quick=True)
    assert preset.rounds == 6
    assert [piece.name for piece in preset.pieces(quick=True)] == ["tiny-32-fp32-torch-b1"]


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
        ({"aims": [KERNEL_AIM | {"kernel": "tiles of 46"}]}, "no kernel 'tiles of 46'; choose from tiles of 64"),
        ({"aims": [KERNEL_AIM | {"of": "memory"}]}, "of='memory', but kernels are timed alone"),
        ({"aims": [KERNEL_AIM]}, "no group times kernels in fp32 at 197 tokens, batch 1"),
        (
            {"aims": [KERNEL_AIM | {"batch": 8}], "groups": [{"kernels": [197], "batches": [32]}]},
            "no group times kernels in fp32 at 197 tokens, batch 8",
        ),
        ({"aims": [KERNEL_AIM | {"max_loss": 0.5}]}, "max_loss is of the accuracy benchmark"),
        (
            {"aims": [{"what": "more", "at_least": 2, "precision": "fp32", "model": "tiny"}]},
            "yaml: aim 'more': no group",
        ),
        ({"aims": [TINY_AIM | {"of": "memory"}]}, "of='memory', which is read where torch runs on a GPU alone"),
        ({"aims": [TINY_AIM | {"of": "memory", "backend": "ort"}], "device": "cuda"}, "of='memory', which is read"),
        ({"groups": [{"sizes": [32]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "kernels": [197]}]}, "a group names models, or under kernels"),
        ({"groups": [{"models": ["tiny"], "sizes": [-32]}]}, "groups.0.sizes.0=-32"),
        ({"groups": [{"models": ["tiny"], "batches": []}]}, "groups.0.batches"),
        ({"quick": ["rounds"]}, r"quick=\['rounds'\]: wanted settings"),
        ({1: 2}, "unknown key '1'"),
    ],
)
def test_a_faulty_preset_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_preset(written(tmp_path, TINY | change))


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("\x00")
    for read in (read_preset, read_accuracy_preset):
        with pytest.raises(ConfigError, match=r"own\.yaml is not YAML"):
            read(str(tmp_path / "own.yaml"))


def test_a_batch_size_that_is_named_twice_is_measured_once(tmp_path: Path) -> None:
    groups = [{"models": ["tiny"], "batches": [1, 2, 1]}]
    [piece] = read_preset(written(tmp_path, TINY | {"groups": groups})).pieces(quick=False)
    assert piece.batches == (1, 2)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    for read in (read_preset, read_accuracy_preset):
        with pytest.raises(ConfigError, match="unknown preset 'gpus'; wanted cpu, gpu or a YAML file"):
            read("gpus")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baselines=[smaller-sibling]", "sibling is not given"),
        *((f"students.{name}={EVO_VIT}", f"called {name}, which are names of") for name in RESERVED),
        (f"students={{'..': {EVO_VIT}}}", "called '..'; wanted a small letter or digit"),
        (f"students={{/tmp/student: {EVO_VIT}}}", "called '/tmp/student'; wanted"),
        (f"students={{evo/vit: {EVO_VIT}}}", "called 'evo/vit'; wanted"),
        ("aims=[{what: more, precision: fp32, backend: torch, competitors: [evo], at_least: 2}]", "aim 'more'"),
        ("aims=[{what: more, precision: bf16, backend: torch, competitors: [sret], at_least: 2}]", "aim 'more'"),
        (
            "aims=[{what: less, of: weights, precision: fp32, backend: torch, competitors: [sret], at_least: 1}]",
            "aim 'less': of='weights'",
        ),
        (
            "aims=[{what: k, kernel: tiles of 64, precision: fp32, backend: torch, competitors: [sret], at_least: 1}]",
            "aim 'k': kernel='tiles of 64', but",
        ),
        ("budget.lr=-1", "budget.lr"),
        ("speed.batches=[]", "speed.batches"),
    ],
)
def test_a_faulty_accuracy_preset_is_refused(override: str, message: str) -> None:
    overrides = [override] if "sibling" not in override else ["sibling=null", override]
    with pytest.raises(ConfigError, match=message):
        read_accuracy_preset("cpu", overrides=overrides)


@pytest.mark.parametrize("quick", [5, "budget.steps=2", {"budget.steps": 2}, [1]])
def test_changes_for_a_quick_accuracy_run_are_a_list_of_words(quick: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted a list of changes such as budget"):
        read_accuracy_preset(written(tmp_path, {"quick": quick}), quick=True)
