"""Commands around the CUDA kernel and its TensorRT plugin: plugin build, plugin info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import print_json, print_table, say


def register(app: typer.Typer) -> None:
    """Add the group of commands to the command."""
    group = typer.Typer(name="plugin", help="The sparse-attention kernel and its TensorRT plugin.")
    group.command()(build)
    group.command()(info)
    app.add_typer(group)


def build(
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="compute capabilities, as 80,90; by default all from A100 on", show_default=False),
    ] = None,
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            "--tensorrt-include",
            envvar="VITSLIM_TENSORRT_INCLUDE",
            help="folder of NvInferRuntime.h; without it the plugin is left out",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder; by default the cache, where vitslim looks", show_default=False)
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Compile the CUDA kernel with nvcc, and with TensorRT's headers the plugin. No GPU is needed."""
    from vitslim import plugin

    architectures = plugin.ARCHITECTURES if arch is None else options.words(arch)
    say(f"compiling for {', '.join(architectures)}; it takes some seconds for each")
    made = plugin.build(out, architectures, tensorrt_include)
    if json:
        print_json(made.model_dump(mode="json"))
        return
    say(f"wrote {made.kernels}" + ("" if made.plugins is None else f" and {made.plugins}") + f" in {made.seconds} s")
    if made.plugins is None:
        say("the TensorRT plugin was left out: give TensorRT's headers with --tensorrt-include")
    if out is not None:
        say(f"vitslim finds them with VITSLIM_KERNELS_LIBRARY={made.kernels}", style="yellow")


def info(json: options.JsonOption = False) -> None:
    """Which compilers there are, which libraries are built, and whether they are of these sources."""
    from vitslim import plugin

    found = plugin.info()
    if json:
        print_json(found)
        return
    nvcc = found["nvcc"]
    rows = [
        ("sources", found["sources"]["folder"]),
        ("nvcc", "missing" if nvcc is None else f"{nvcc['version']}  {nvcc['path']}"),
        ("NVRTC", found["nvrtc"] or "missing"),
    ]
    rows += [(name, _library_line(library)) for name, library in found["libraries"].items()]
    print_table("", ("", ""), rows)


def _library_line(library: dict[str, Any] | None) -> str:
    if library is None:
        return "not built: vitslim plugin build"
    if library["build"] is None:
        return f"{library['path']}  (built elsewhere)"
    built = library["build"]
    tensorrt = "" if built["tensorrt"] is None else f", TensorRT {built['tensorrt']}"
    state = "" if library["current"] else "; OTHER SOURCES than installed here, build it again"
    return f"{library['path']}  ({', '.join(built['architectures'])}{tensorrt}{state})"
