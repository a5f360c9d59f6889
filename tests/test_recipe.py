import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline.training import read_pretrain_config
from vitslim.recipe import Recipe, load_recipe, read_recipe, with_overrides, write_yaml
from vitslim.train.early_tokens import early_token_errors

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

FULL: dict[str, Any] = {
    "model": {"name": "deit_small", "options": {"drop_path_rate": 0.1}},
    "convert": [{"method": "skipat", "layers": "3-8"}, {"method": "evo_vit"}],
    "data": {"source": "fractals", "augment": {"hflip": 0.5}},
    "analyze": {},
    "warm_start": {"steps": 3},
    "distill": {"epochs": 2},
    "finetune_dense": True,
    "export": {"precisions": ["fp32", "fp16"]},
    "bench": {"batches": [1, 8]},
}


# --- what is asked for comes out ------------------------------------------------------------------------------------


def test_an_empty_recipe_is_the_builtin_model_as_it_is() -> None:
    recipe = read_recipe({})
    assert recipe.model.name == "builtin"
    assert recipe.convert == ()
    assert recipe.distill is None


def test_a_resolved_recipe_reads_as_itself() -> None:
    recipe = read_recipe(FULL)
    assert read_recipe(yaml.safe_load(write_yaml(recipe))) == recipe


def test_a_resolved_recipe_names_every_key() -> None:
    assert set(yaml.safe_load(write_yaml(Recipe()))) == set(Recipe.model_fields)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_file_in_recipes_loads(path: Path) -> None:
    if "phases" in yaml.safe_load(path.read_text()):
        read_pretrain_config(path)
    else:
        recipe = load_recipe(path)
        assert recipe.convert or recipe.teacher


def student_of(path: Path) -> tuple[nn.Module, nn.Module]:
    """The dense model of a recipe and what it is converted to, without weights."""
    recipe = load_recipe(path)
    with torch.device("meta"):
        dense = student = open_model(recipe.model.name, pretrained=False, **recipe.model.options)
    for entry in recipe.convert:
        student = convert(student, entry["method"], **{name: entry[name] for name in entry if name != "method"})
    return dense, student


@pytest.mark.parametrize("path", [path for path in RECIPES if "teacher" not in path.stem], ids=lambda path: path.stem)
def test_the_model_of_every_recipe_can_be_converted_and_trained_as_it_says(path: Path) -> None:
    settings = load_recipe(path).distill
    assert settings is not None
    assert early_token_errors(student_of(path)[1], settings.early_tokens) == []


@pytest.mark.parametrize(
    ("name", "gmacs", "share"),
    [
        ("evo_vit_deit_small_scratch", 3.034, 0.66),
        ("skipat_narrow_evo_vit_deit_small_finetune", 2.737, 0.60),
        # The Sparsifiner paper: with token sparsity more than 60 % fewer.
        ("sparsifiner_evo_vit_deit_small", 1.783, 0.40),
        ("sparsifiner_pruned_deit_small", 1.791, 0.40),
        # As the papers of pruning and merging report: 3.0 and 2.7.
        ("prune_deit_small_finetune", 3.014, 0.66),
        ("merge_deit_small_finetune", 2.710, 0.60),
        ("resolution_deit_small_finetune", 2.268, 0.50),
    ],
)
def test_a_recipe_saves_the_operations_that_its_head_says(name: str, gmacs: float, share: float) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    dense, student = (count_macs(model) for model in student_of(path))
    assert student / 1e9 == pytest.approx(gmacs, abs=5e-4)
    assert student < share * dense
    assert f"{gmacs:.3f}"[:4] in path.read_text()


def test_the_pyramid_of_its_recipe_has_the_published_size() -> None:
    student = student_of(ROOT / "recipes" / "sret_tiny_scratch.yaml")[1]
    assert count_parameters(student) / 1e6 == pytest.approx(4.756, abs=5e-4)
    assert count_macs(student) / 1e9 == pytest.approx(1.112, abs=5e-4)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_file_in_recipes_says_how_it_is_run_and_whether_it_was_reproduced(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(line.removeprefix("#").strip() for line in comments)
    assert f"recipes/{path.name} --out" in text
    assert "eproduced" in text or "Not run by this project" in text


# --- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("distill.epochs=5", lambda recipe: recipe.distill.epochs == 5),
        ("distill.lr=1e-3", lambda recipe: recipe.distill.lr == 1e-3),
        ("distill.precision=fp32", lambda recipe: recipe.distill.precision == "fp32"),
        ("data.augment.hflip=0", lambda recipe: recipe.data.augment.hflip == 0),
        ("model.options.drop_path_rate=0.2", lambda recipe: recipe.model.options["drop_path_rate"] == 0.2),
        ("model.options.global_pool=avg", lambda recipe: recipe.model.options["global_pool"] == "avg"),
        ("convert.0.layers=auto", lambda recipe: recipe.convert[0]["layers"] == "auto"),
        ("convert.1={method: skipat}", lambda recipe: recipe.convert[1] == {"method": "skipat"}),
        ("convert=[]", lambda recipe: recipe.convert == ()),
        ("export.precisions=[fp16]", lambda recipe: recipe.export.precisions == ("fp16",)),
        ("export.precisions.1=fp32", lambda recipe: recipe.export.precisions == ("fp32", "fp32")),
        ("bench=null", lambda recipe: recipe.bench is None),
        ("bench=", lambda recipe: recipe.bench is None),
        ("data.source=a=b", lambda recipe: recipe.data.source == "a=b"),
        ("data.source=2024.images", lambda recipe: recipe.data.source == "2024.images"),
        ("convert={method: sret}", lambda recipe: recipe.convert == ({"method": "sret"},)),
    ],
)
def test_an_assignment_reaches_its_key(assignment: str, read: Any) -> None:
    assert read(read_recipe(FULL, [assignment]))


def test_an_assignment_makes_the_section_that_it_needs() -> None:
    assert read_recipe({}, ["bench.threads=2"]).bench.threads == 2


def test_later_assignments_win() -> None:
    assert read_recipe({}, ["seed=1", "seed=2"]).seed == 2


def test_overrides_leave_the_document_alone() -> None:
    document = {"convert": [{"method": "skipat"}]}
    with_overrides(document, ["convert.0.layers=[1]", "seed=3"])
    assert document == {"convert": [{"method": "skipat"}]}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", r"--set 'epochs': wanted key=value, for example distill\.epochs=3"),
        ("=3", r"wanted key=value"),
        ("distill..lr=3", r"wanted key=value"),
        ("seed=[1", r"--set seed is not YAML"),
        ("seed.deep=1", r"--set seed\.deep: 'seed' is a value, not a section"),
        ("convert.layers=3", r"--set convert\.layers: 'layers' is not an entry of a list of 1; they count from 0"),
        ("convert.5.layers=3", r"'5' is not an entry of a list of 1"),
        ("convert.².layers=3", r"'²' is not an entry of a list of 1"),
        ("a." * 5000 + "a=3", r"wanted key=value"),
        ("seed=2001-99-99", r"seed='2001-99-99': Input should be a valid integer"),
        ("seed=" + "9" * 5000, r"--set seed is not YAML .* a number is beyond 64 bits"),
        ("seed=9223372036854775808", r"--set seed is not YAML .* a number is beyond 64 bits"),
    ],
)
def test_an_assignment_that_cannot_be_made_says_why(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe({"seed": 1, "convert": [{"method": "skipat"}]}, [assignment])


def test_a_single_method_needs_no_list() -> None:
    assert read_recipe({"convert": {"method": "skipat"}}).convert == ({"method": "skipat"},)


def test_a_single_budget_needs_no_list() -> None:
    recipe = read_recipe({"data": {}}, ["planner.budgets={speedup: 2}"])
    assert recipe.planner == read_recipe({"data": {}, "planner": {"budgets": [{"speedup": 2}]}}).planner
    assert read_recipe(yaml.safe_load(write_yaml(recipe))) == recipe


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": {"nmae": "x"}}, "unknown key 'model.nmae'; did you mean 'name'?"),
        ({"data": {"augment": {"hfilp": 1}}}, "unknown key 'data.augment.hfilp'; did you mean 'hflip'?"),
        ({"data": {}, "distill": {"epoch": 1}}, "unknown key 'distill.epoch'; did you mean 'epochs'?"),
        ({"bench": {"colour": 1}}, "unknown key 'bench.colour'; known: backends, precisions, batches"),
        ({"data": {}, "distill": {"lr": -1}}, "distill.lr=-1: Input should be greater than 0"),
        ({"data": {}, "distill": {"epochs": 1, "steps": 2}}, "distill: epochs=1 and steps=2 are both given; give one"),
        ({"model": {"img_size": "big"}}, "model.img_size='big': "),
        ({"model": "builtin"}, "model='builtin': wanted settings"),
        ({"convert": ["skipat"]}, "convert.0='skipat': wanted settings"),
        ({"convert": [{"layers": 3}]}, "convert.0 names no method; wanted {method: NAME"),
        ({"convert": [{"method": "skipatt"}]}, "unknown method 'skipatt'; did you mean 'skipat'?"),
        ({"convert": [{"method": "skipat", "layer": 3}]}, "unknown option skipat.layer; did you mean 'layers'?"),
        ({"convert": [{"method": "skipat", "layers": "8-3"}]}, "the span '8-3' is empty"),
        ({"export": {"precisions": ["fp8"]}}, "export.precisions.0='fp8': Input should be 'fp32', 'fp16' or 'bf16'"),
        ({"export": {"batches": [0]}}, "export.batches.0=0: Input should be greater than 0"),
        ({"finetune_dense": True}, "finetune_dense trains the dense model too, but distill gives no budget"),
        ({"distill": {}}, "distill needs images, but data is missing"),
        ({"warm_start": {}, "distill": {}}, "warm_start, distill need images, but data is missing"),
        (
            {"data": {"labels": "ignore"}, "distill": {"ce_weight": 1}},
            "distill.ce_weight=1 trains on labels, but data.labels",
        ),
        ({"planner": {"budgets": {"speedup": 1.5}}}, "planner needs images, but data is missing"),
        ({"data": {}, "planner": {"budgets": []}}, "planner.budgets=[]: "),
        (
            {"data": {}, "planner": {"budgets": {"speedup": 0.5}}},
            "planner.budgets.0.speedup=0.5: Input should be great",
        ),
        (
            {"data": {}, "planner": {"budgets": [{"speedup": 2, "macs": 1}]}},
            "wanted one budget (--speedup 1.5, --latency-ms 5, --macs 2.9, --params 15, --file-mib 40, --max-drop 1)",
        ),
        (
            {"data": {}, "planner": {"budgets": [{"macs": 1}, {"speedup": 2}, {"macs": 1}]}},
            "--macs 1 given more than once; each budget gets one plan",
        ),
        (
            {"data": {}, "planner": {"budgets": [{"macs": 1}, {"max_drop": 2}]}},
            "--max-drop 2 tries several speedups by itself; give it alone",
        ),
        (
            {"data": {}, "planner": {"budgets": {"macs": 1}, "runtime": {"backend": "tflite"}}},
            "planner.runtime.backend='tflite': unknown backend 'tflite'; known: ",
        ),
        (
            {"data": {}, "planner": {"budgets": {"speedup": 2}}, "plan": "p.json", "convert": {"method": "depth"}},
            "planner finds the plan for a budget (--speedup 2), but plan and convert name one; leave out either",
        ),
        (
            {"data": {}, "planner": {"budgets": {"speedup": 2}}, "distill": {"early_tokens": 0.5}},
            "distill.early_tokens=0.5 needs a plan that chooses tokens",
        ),
        ({"seed": -1}, "seed=-1: "),
        ({"data": {}, "distill": {"steps": True}}, "distill.steps=True: true and false are no numbers"),
        ({"export": {"batches": [1, True]}}, "export.batches=[1, True]: true and false are no numbers"),
        ({"data": {}, "distill": {"lr": float("inf")}}, "distill.lr=inf: Input should be a finite number"),
        ({"data": {"source": 2024}}, "data.source=2024: Input should be a valid string; in quotes it is one"),
        ({"model": {"img_size": "big"}}, "unable to parse string as an integer or a valid tuple"),
        ({"model": {"name": ["x"] * 99}}, "(495 characters): Input should be a valid string"),
    ],
)
def test_a_faulty_recipe_says_what_and_where(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(document, origin="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe({"modle": {}, "seed": "x", "distill": {"lrr": 1, "lr": -1}, "bench": {"rounds": 1}})
    for part in ("'modle'", "seed='x'", "'distill.lrr'", "distill.lr=-1", "bench.rounds=1"):
        assert part in str(caught.value)


def test_all_contradictions_are_said_at_once() -> None:
    convert = [{"method": "skipatt"}, {"method": "skipat", "layer": 3}]
    with pytest.raises(ConfigError) as caught:
        read_recipe({"convert": convert, "finetune_dense": True, "analyze": {}})
    for part in ("convert.0: unknown method", "convert.1: unknown option", "finetune_dense", "analyze needs images"):
        assert part in str(caught.value)


def test_a_key_that_is_wrong_in_every_way_is_said_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe({"data": {}, "distill": {"precision": "fp8"}})
    assert str(caught.value).count("distill.precision") == 1


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_recipe_file_is_read_with_its_assignments(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name: deit_small}\nconvert: [{method: skipat}]\n")
    recipe = load_recipe(tmp_path / "r.yaml", ["convert.0.expansion=0.5"])
    assert recipe.convert == ({"method": "skipat", "expansion": 0.5},)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", r"r\.yaml is not YAML"),
        (b"- a\n- b\n", r"r\.yaml holds a list; wanted sections"),
        (b"", r"r\.yaml holds nothing; wanted sections"),
        (b"\xff\xfe\xff", r"r\.yaml cannot be read"),
        (b"!!python/object/apply:os.system ['true']", r"r\.yaml is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.yaml"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ConfigError, match="cannot be read: it is not a file"):
        load_recipe(path)


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read: embedded null"):
        load_recipe("a\0b.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml cannot be read: No such file or directory"):
        load_recipe(tmp_path / "r.yaml")
