"""What is said of every option of every method."""

import shlex
from typing import Any, get_args, get_origin

import pytest

from tests.variants import dense
from vitslim.cli.options import method_entries
from vitslim.errors import ConfigError
from vitslim.methods import METHODS, convert, describe_method, read_options

OPTIONS = [(name, option) for name in METHODS.names() for option in describe_method(name).options]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_every_option_has_a_meaning_and_an_example_that_is_taken(name: str, option: Any) -> None:
    assert option.meaning.endswith(".")
    (entry,) = method_entries([name], [f"{option.name}={option.example}"])
    config = read_options(METHODS.get(name), {option.name: entry[option.name]})
    assert getattr(config, option.name) != option.default


@pytest.mark.parametrize("name", METHODS.names())
def test_every_option_is_described_and_the_whole_command_is_one(name: str) -> None:
    found = describe_method(name)
    assert [option.name for option in found.options] == list(METHODS.get(name).config.model_fields)
    words = shlex.split(found.command)
    assert words[:5] == ["vitslim", "convert", "deit_small", "--method", name]
    (entry,) = method_entries([name], [words[words.index("-O") + 1]])
    # The depth of deit_small.
    assert convert(dense("vit_plain", depth=12), name, **{key: entry[key] for key in entry if key != "method"})


def _lists(kind: Any) -> list[Any]:
    kinds = (kind, *get_args(kind))
    return [part for part in kinds if get_origin(part) is tuple and get_origin(get_args(part)[0]) is not tuple]


LISTS = [
    (name, field)
    for name in METHODS.names()
    for field, info in METHODS.get(name).config.model_fields.items()
    if _lists(info.annotation)
]


def test_options_that_take_lists_are_found() -> None:
    assert ("skipat", "layers") in LISTS
    assert ("sparsifiner", "grid") in LISTS
    assert ("sret", "groups") not in LISTS


@pytest.mark.parametrize(("name", "field"), LISTS)
def test_a_single_number_and_text_stand_where_a_list_does(name: str, field: str) -> None:
    method = METHODS.get(name)
    number = 1 if field in ("keep", "alpha") else 4
    single = getattr(read_options(method, {field: number}), field)
    assert single in (number, (number,), (number, number))
    pair = [0.5, 0.25] if field in ("keep", "alpha") else [2, 4]
    text = ",".join(map(str, pair))
    assert getattr(read_options(method, {field: text}), field) == tuple(pair)


@pytest.mark.parametrize("value", [3, [1, 2], True])
def test_groups_are_no_single_numbers(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"sret\.groups=.*: wanted groups of blocks, such as '1-2; 3-4'"):
        read_options(METHODS.get("sret"), {"groups": value})
