"""How the kernels that walk over tokens are launched: how finely they are cut, and the compiler's options."""

from typing import Any

PROGRAMS = 1024
"""About eight programs for each of an H100's 132 SMs; where images and channels make fewer, work is cut finer."""


def options(warps: int = 4) -> dict[str, Any]:
    """For the launch. Fused multiply-add is said outright, since Triton 3.10 changes its default."""
    return {"num_warps": warps, "enable_fp_fusion": True}
