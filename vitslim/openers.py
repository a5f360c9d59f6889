"""The slot through which a low room opens what a high room wrote.

``vitslim.runtime.load`` offers the torch backend for saved folders, and the room that reads them lies above it. So it
is handed in: the package's face, which stands above all rooms, fills the slot whenever anything of vitslim is imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ModelOpener = Callable[[Path], Any]
"""From a saved folder to its ``torch.nn.Module``."""

_opener: ModelOpener | None = None


def offer_model_opener(opener: ModelOpener | None) -> None:
    """Fill the slot, or empty it."""
    global _opener  # noqa: PLW0603 - the slot is what this module is
    _opener = opener


def model_opener() -> ModelOpener | None:
    """What fills the slot; ``None`` where nobody can open saved models."""
    return _opener
