"""YAML text as plain data: words, numbers, lists and settings, within bounds."""

import re
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode

from vitslim.errors import ConfigError

MAX_CHARACTERS = 200_000  # the largest shipped preset has 12,000; the library reads this many in a second or two
MAX_DEPTH = 64  # the library recurses
MAX_ENTRIES = 50_000  # those of an alias counted wherever it stands: ten lines of aliases can mean a billion
LARGEST_NUMBER = 2**63 - 1  # that torch can count to

_TAG = "tag:yaml.org,2002:"
_MAX_DIGITS = 80  # a long integer in any of YAML's notations


def read_yaml(text: str, origin: str) -> Any:
    """The document in a text, by the YAML library's safe loader; ``origin`` names it in messages.

    Keys are words. So are ``yes``, ``no``, ``on``, ``off`` and dates; ``1e-3`` is a number. Tags are not read.

    Raises:
        ConfigError: the text is not YAML, names a key twice, is too long or too deep, or holds too large a number.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{origin} has more than {MAX_CHARACTERS} characters, which is no recipe or value of ours")
    try:
        return _Loader(text).get_single_data()  # characters that YAML has not are refused by the first half
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML as it is read here: {' '.join(str(error).split())}") from None


def read_yaml_file(path: str | Path) -> Any:
    """The document in a file, in UTF-8.

    Raises:
        ConfigError: the file cannot be read, or holds no such document; see ``read_yaml``.
    """
    try:
        # A pipe would be waited for, and a device has no end.
        if Path(path).exists() and not Path(path).is_file():
            raise ConfigError(f"{path} cannot be read: it is not a file")
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: another encoding, or a path with a null character
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return read_yaml(text, str(path))


class _Loader(yaml.SafeLoader):
    """The library's safe loader with bounds, which it lacks, and without kinds that recipes do not have."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._extents: dict[int, tuple[int, int]] = {}  # of finished nodes by identity: entries within, levels

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"tags such as {event.tag} are not read", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refusal(f"it is more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extents:
                raise _refusal(f"{event.anchor} refers to itself", event)
        elif node is not None:
            self._settle(node, is_key=isinstance(parent, MappingNode) and index is None)
        return node

    def _settle(self, node: Node, is_key: bool) -> None:
        """Measure a node whose parts are known, and refuse it or say of what kind it is."""
        if isinstance(node, ScalarNode):
            self._extents[id(node)] = (1, 1)
            self._name_kind(node, is_key)
            return
        if is_key:
            raise _refusal("a key is a word, not a list or settings", node)
        parts = cast("list[Node]", node.value)
        if isinstance(node, MappingNode):
            pairs = cast("list[tuple[Node, Node]]", node.value)
            _refuse_repeated([key for key, _ in pairs])
            parts = [part for pair in pairs for part in pair]
        extents = [self._extents[id(part)] for part in parts]
        entries, levels = 1 + sum(e for e, _ in extents), 1 + max((deep for _, deep in extents), default=0)
        if entries > MAX_ENTRIES or levels > MAX_DEPTH:
            raise _refusal(f"it holds more than {MAX_ENTRIES} entries or {MAX_DEPTH} levels, aliases counted", node)
        self._extents[id(node)] = entries, levels

    def _name_kind(self, node: ScalarNode, is_key: bool) -> None:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind == "merge" and is_key:
            return
        is_switch = kind == "bool" and text.lower() not in ("true", "false")
        if is_key or is_switch or kind in ("merge", "timestamp", "value"):
            node.tag = f"{_TAG}str"
        elif kind == "int":
            try:
                too_large = len(text) > _MAX_DIGITS or abs(int(self.construct_yaml_int(node))) > LARGEST_NUMBER
            except ValueError:
                raise _refusal(f"{text!r} has no digits", node) from None
            if too_large:
                raise _refusal("a number is beyond 64 bits", node)


# YAML 1.1 wants a point in a number with an exponent.
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), list("-+0123456789"))


def _refuse_repeated(keys: list[Node]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key.value in seen:
            raise _refusal(f"the key {key.value!r} is given twice", key)
        seen.add(key.value)


def _refusal(what: str, where: Any) -> ComposerError:
    return ComposerError(None, None, what, where.start_mark)
