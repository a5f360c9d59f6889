"""Random draws that depend on named numbers alone, never on what was drawn before."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*words: int) -> int:
    """Mix whole numbers (seed, epoch, position ...) into one seed of 63 bits."""
    low, high = np.random.SeedSequence(words).generate_state(2)
    return int(low) | (int(high) >> 1) << 32


@contextmanager
def seeded(*words: int) -> Generator[None]:
    """Make code that draws from the global generators a function of ``words``; put the generators back afterwards.

    timm's transforms and Mixup, and every dropout, know no other source than the global generators. Seeding them per
    sample or per step makes a run independent of the number of workers and of where it was interrupted.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  timm draws from it
    seed = derive_seed(*words)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  timm draws from it
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002  timm draws from it
