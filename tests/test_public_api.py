"""The public API of the package: its names, and that none of them costs anything before it is used."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vitslim
from vitslim.errors import ConfigError
from vitslim.files import write_json
from vitslim.plans import plan_json

HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "transformers",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "jinja2",
    "accelerate",
    "datasets",
)


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split())


def test_importing_vitslim_imports_nothing_heavy() -> None:
    assert imported_by("import vitslim") == set()


def test_the_help_of_the_command_imports_nothing_heavy() -> None:
    statement = "from vitslim.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert imported_by(statement) == set()


@pytest.mark.parametrize("command", ["convert", "bench"])
def test_the_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    statement = f"from vitslim.cli.main import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass"
    assert imported_by(statement) == set()


@pytest.mark.parametrize("name", vitslim.__all__)
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert callable(getattr(vitslim, name))


def test_the_list_of_names_is_the_table_of_homes() -> None:
    assert sorted(vitslim.__all__) == sorted(name for names in vitslim._HOMES.values() for name in names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'covnert'"):
        _ = vitslim.covnert


def test_the_names_are_shown_to_a_curious_user() -> None:
    assert set(vitslim.__all__) <= set(dir(vitslim))


def wrong_arguments(name: str) -> dict[str, object]:
    """Every argument of a public function, as something that it cannot be."""
    parameters = inspect.signature(getattr(vitslim, name)).parameters
    return {one: object() for one, how in parameters.items() if how.kind is not how.VAR_KEYWORD} or {"unknown": 1}


@pytest.mark.parametrize("name", [name for name in vitslim.__all__ if name[0].islower()])
def test_a_public_function_refuses_what_it_cannot_take_before_it_does_anything(name: str) -> None:
    given = wrong_arguments(name)
    with pytest.raises(ConfigError) as caught:
        getattr(vitslim, name)(**given)
    for argument in given:
        assert argument in str(caught.value)


def test_a_fresh_process_reads_what_every_method_wrote(tmp_path: Path) -> None:
    methods = ("skipat", "sparsifiner", "sret", "evo_vit", "width")
    for method in methods:
        student = vitslim.convert(vitslim.open_model("builtin"), method)
        vitslim.save(student, tmp_path / method)
        write_json(tmp_path / f"{method}.json", plan_json(vitslim.plan_of(student)))
    for read in ("vitslim.load({!r})", "vitslim.read_plan_file({!r} + '.json')"):
        code = "\n".join(["import vitslim", *(read.format(str(tmp_path / method)) for method in methods)])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
