"""The tile kernel outside torch: building its libraries, finding what was built, calling it, giving it to TensorRT."""

from vitslim.plugin.ahead_of_time import ahead_of_time_obstacle, register_ahead_of_time
from vitslim.plugin.compiling import build
from vitslim.plugin.cubins import ARCHITECTURES, WIDTHS, TileKernel, TileSpec, compile_tiles
from vitslim.plugin.inventory import info
from vitslim.plugin.launching import launch
from vitslim.plugin.libraries import PluginBuild, kernels_library, plugin_library

__all__ = [
    "ARCHITECTURES",
    "WIDTHS",
    "PluginBuild",
    "TileKernel",
    "TileSpec",
    "ahead_of_time_obstacle",
    "build",
    "compile_tiles",
    "info",
    "kernels_library",
    "launch",
    "plugin_library",
    "register_ahead_of_time",
]
