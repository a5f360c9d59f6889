"""Starting a compiled kernel through CUDA's driver, the one library that every machine with a GPU has."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from vitslim.errors import MissingDependencyError
from vitslim.plugin.runtime_compiler import CompiledKernel


class CudaError(Exception):
    """A call that CUDA refused: its number and its words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Driver:
    """The few calls of the driver's C interface that a launch takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def enter(self, device: int) -> None:
        """Give this thread torch's context of a device, if it has none; a new thread has none.

        Raises:
            CudaError: the device cannot be used.
        """
        context, handle = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if context.value is not None:
            return
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
        # Held for the life of the process, as torch holds it.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)

    def load(self, kernel: CompiledKernel) -> ctypes.c_void_p:
        """The kernel's function on the current device, there for the life of the process.

        Raises:
            CudaError: its code does not run on this GPU, or not with this driver.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        # The buffer ends in a zero, as PTX has to.
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.create_string_buffer(kernel.image))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.entry.encode())
        return function

    def start(
        self, function: ctypes.c_void_p, blocks: int, threads: int, arguments: Sequence[Any], stream: int
    ) -> None:
        """Put one launch on a stream; ``arguments`` are ctypes values in the kernel's order.

        Raises:
            CudaError: the launch was refused.
        """
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        sizes = [ctypes.c_uint(size) for size in (blocks, 1, 1, threads, 1, 1, 0)]
        self._call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), places, None)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise CudaError(status, (text.value or b"unknown error").decode())


@cache
def cuda_driver() -> Driver:
    """The driver of this machine.

    Raises:
        MissingDependencyError: there is none.
    """
    try:
        return Driver(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        raise MissingDependencyError(f"NVIDIA's driver is not here ({error}); the CUDA kernel needs a GPU") from None
