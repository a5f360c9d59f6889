"""The sparse-attention kernel of CUDA C++: building it, finding what was built, calling it, giving it to TensorRT."""

from vitslim.plugin.ahead_of_time import ahead_of_time_obstacle, register_ahead_of_time
from vitslim.plugin.compiling import ARCHITECTURES, build
from vitslim.plugin.inventory import info
from vitslim.plugin.launching import launch
from vitslim.plugin.libraries import PluginBuild, kernels_library, plugin_library
from vitslim.plugin.runtime_compiler import CompiledKernel, KernelSpec, compile_kernel

__all__ = [
    "ARCHITECTURES",
    "CompiledKernel",
    "KernelSpec",
    "PluginBuild",
    "ahead_of_time_obstacle",
    "build",
    "compile_kernel",
    "info",
    "kernels_library",
    "launch",
    "plugin_library",
    "register_ahead_of_time",
]
