from typing import Any

import pytest
import yaml

from vitslim.errors import ConfigError
from vitslim.plain_yaml import MAX_CHARACTERS, MAX_DEPTH, read_yaml


def bomb() -> str:
    """A billion words in ten lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))])


def tower() -> str:
    """Levels upon levels, every line's within bounds."""
    return "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} {'[' * 50}*a{i - 1}{']' * 50}" for i in range(1, 100))])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("trueimages", "trueimages"),
        ("2024.images", "2024.images"),
        ("0.5x", "0.5x"),
        ("1e-3x", "1e-3x"),
        ("1e-3", 0.001),
        ("2.0e-3", 0.002),
        (".5", 0.5),
        ("-3", -3),
        ("3-8", "3-8"),
        ("²", "²"),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1e-1}", {"a": 0.1}),
        ("{1: 2, no: 3}", {"1": 2, "no": 3}),
        ("{a: &x {b: 1}, c: {<<: *x, d: [*x]}}", {"a": {"b": 1}, "c": {"b": 1, "d": [{"b": 1}]}}),
        (".inf", float("inf")),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_plain_words_and_numbers_are_read_as_meant(text: str, value: Any) -> None:
    assert read_yaml(text, "test") == value


def test_the_table_of_the_yaml_library_is_left_alone() -> None:
    assert yaml.safe_load("no") is False
    assert yaml.safe_load("1e-3") == "1e-3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "expected ',' or ']'"),
        ("a: &a [*a]", "a refers to itself"),
        (bomb(), "entries or 64 levels, aliases counted"),
        (tower(), "entries or 64 levels, aliases counted"),
        ("[" * 3000, f"more than {MAX_DEPTH} levels deep"),
        ("- " * 3000, f"more than {MAX_DEPTH} levels deep"),
        ("9" * 5000, "a number is beyond 64 bits"),
        ("9223372036854775808", "a number is beyond 64 bits"),
        ("0x_", "'0x_' has no digits"),
        ("!!int x", "tags such as tag:yaml.org,2002:int are not read"),
        ("!!set {a}", "tags such as tag:yaml.org,2002:set are not read"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("[a]: 1", "a key is a word, not a list or settings"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a\0b", "special characters are not allowed"),
        ("\ud800", "special characters are not allowed"),
        (" " * MAX_CHARACTERS + "a", "more than 200000 characters"),
    ],
)
def test_what_no_recipe_holds_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
