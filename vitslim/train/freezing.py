"""Training some parameters of a model while the others rest."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch import nn


@contextmanager
def only_trained(model: nn.Module, trained: Iterable[nn.Parameter]) -> Generator[None]:
    """Freeze every parameter of a model but these, for a while."""
    wanted = {id(parameter) for parameter in trained}
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in wanted]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
