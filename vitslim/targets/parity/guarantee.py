"""What a file is compared with."""

from dataclasses import dataclass

from vitslim.runtime import Precision


@dataclass(frozen=True)
class Guarantee:
    """The precision that a file guarantees, ``None`` for that of its runner; and what is broken already."""

    precision: Precision | None
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
