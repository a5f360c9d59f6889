"""How the trunk learns the patch grid of images whose size is free.

timm hands its blocks tokens, and their number does not tell rows from columns. A model of dynamic image size shows the
grid once, where its patch embedding ends; a hook there notes it, and the run that follows takes it. The note belongs
to the thread, so that two forwards at a time do not mix, and to the patch embedding, so that two models do not.
"""

import threading
from typing import Any

from torch import Tensor, nn

from vitslim.shapes import Count

_thread = threading.local()


def watch_grid_(patch_embed: nn.Module) -> None:
    """Note the grid of every image that passes a patch embedding of dynamic size; once is enough."""
    hooks: Any = vars(patch_embed)["_forward_hooks"]
    if _note not in hooks.values():
        patch_embed.register_forward_hook(_note)


def take_grid(patch_embed: nn.Module) -> tuple[Count, Count] | None:
    """(rows, columns) of the images that went through ``patch_embed`` last; ``None`` where nobody watched."""
    noted: Any = getattr(_thread, "note", None)
    if noted is None or noted[0] is not patch_embed:
        return None
    _thread.note = None
    return noted[1]


def _note(patch_embed: nn.Module, args: Any, patches: Tensor) -> None:
    # timm keeps the grid apart in models of dynamic size, (b, rows, columns, d), for its own position tables.
    if patches.ndim == 4:
        _thread.note = (patch_embed, (patches.shape[1], patches.shape[2]))
