"""Which of vitslim's ops a computation calls."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """The names of vitslim's ops that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vitslim":
            self.called.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
