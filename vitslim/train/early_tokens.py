"""The first part of a training, in which a method chooses tokens in another way than in the end."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import nn

from vitslim.errors import ConfigError
from vitslim.trunk import is_converted, trunk_of


@contextmanager
def early_tokens(student: nn.Module, share: float) -> Generator[Callable[[nn.Module, float], None] | None]:
    """Give the loop what changes the student, and its average, as the run goes on; in the end the last form is back.

    Args:
        share: of the run in which tokens are chosen as early in training, 0..1; 0 changes nothing.
    """
    if not share:
        yield None
        return

    def adapt(model: nn.Module, done: float) -> None:
        trunk_of(model).choose_early_(done < share)

    try:
        yield adapt
    finally:
        trunk_of(student).choose_early_(False)


def early_token_errors(student: nn.Module, share: float) -> list[str]:
    """Why a student cannot be trained so; empty where it can."""
    if not share:
        return []
    if not is_converted(student) or not trunk_of(student).has_early_form:
        return [
            f"early_tokens={share:g}: no step of this {type(student).__name__} chooses tokens in another way early in "
            "training; convert it with evo_vit (schedule: stage), or set early_tokens=0"
        ]
    try:
        trunk_of(student).choose_early_(True)
    except ConfigError as error:
        return [f"early_tokens={share:g}: {error}; set early_tokens=0"]
    trunk_of(student).choose_early_(False)
    return []
