"""Named entries that others may add to: methods, targets, model adapters."""

import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from vitslim.errors import ConfigError, VitslimWarning

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order in which they were registered.

    A package outside of vitslim names, in an entry point, a module whose import registers. It is imported at the first
    unknown name, or the first look at all names::

        [project.entry-points."vitslim.targets"]
        mine = "my_package.my_target"

    Args:
        what: one entry, as messages call it: ``target``.
        group: of the entry points: ``vitslim.targets``.
        own: the module whose import registers vitslim's own entries, where nothing else imports it first.
        aliases: further names of entries, which ``names`` leaves out.
    """

    def __init__(self, what: str, group: str, own: str | None = None, aliases: Mapping[str, str] | None = None) -> None:
        self.what, self.group, self.own, self.aliases = what, group, own, aliases or {}
        self._entries: dict[str, T] = {}
        self._is_complete = False

    def register(self, name: str, entry: T) -> None:
        """Add an entry.

        Raises:
            ConfigError: something else has this name.
        """
        if name in self._entries:
            raise ConfigError(f"a {self.what} named {name!r} is registered already; choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """The entry of a name.

        Raises:
            ConfigError: there is none; the message has the nearest name.
        """
        name = self.aliases.get(name, name)
        if name not in self._entries:
            self._load_entry_points()
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._entries)}"
            raise ConfigError(f"unknown {self.what} {name!r}; {hint}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, those from entry points last."""
        return [name for name, _ in self.items()]

    def items(self) -> list[tuple[str, T]]:
        """All names with their entries, those from entry points last."""
        self._load_entry_points()
        return list(self._entries.items())

    def _load_entry_points(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True  # before the imports, which may ask this registry
        if self.own is not None:
            import_module(self.own)
        for point in entry_points(group=self.group):
            before = dict(self._entries)
            try:
                point.load()
            except Exception as error:  # whatever a stranger's package raises; everything else goes on working
                self._entries = before
                text = f"entry point {point.name!r} of {self.group} is left out: {type(error).__name__}: {error}"
                warnings.warn(text, VitslimWarning, stacklevel=4)
