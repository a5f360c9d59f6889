"""Commands around the CUDA kernel and its TensorRT plugin: plugin build, plugin info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import print_json, print_table, say
from vitslim.errors import ConfigError


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
    widths: Annotated[
        str | None,
        typer.Option("--widths", help="head widths, as 64,72; by default those of timm's ViTs", show_default=False),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Compile the kernel with Triton, and with TensorRT's headers the plugin. Neither a GPU nor nvcc is needed."""
    from vitslim import plugin

    architectures = plugin.ARCHITECTURES if arch is None else options.words(arch)
    heads = plugin.WIDTHS if widths is None else _whole_numbers("--widths", widths)
    made = plugin.build(out, architectures, tensorrt_include, heads)
    if json:
        print_json(made.model_dump(mode="json"))
        return
    say(f"wrote {made.kernels}" + ("" if made.plugins is None else f" and {made.plugins}") + f" in {made.seconds} s")
    if made.plugins is None:
        say("the TensorRT plugin was left out: give TensorRT's headers with --tensorrt-include")
    if out is not None:
        plugins = "" if made.plugins is None else f" VITSLIM_PLUGIN_LIBRARY={made.plugins}"
        say(f"vitslim finds what was built with VITSLIM_KERNELS_LIBRARY={made.kernels}{plugins}", style="yellow")


def info(json: options.JsonOption = False) -> None:
    """Which compilers there are, which libraries are built, of these sources or not, with which kernels inside."""
    from vitslim import plugin

    found = plugin.info()
    if json:
        print_json(found)
        return
    compiler = found["compiler"]
    rows = [
        ("sources", found["sources"]["folder"]),
        ("Triton", found["triton"] or "missing"),
        ("C++ compiler", "missing" if compiler is None else f"{compiler['version']}  {compiler['path']}"),
    ]
    rows += [(name, _library_line(name, library)) for name, library in found["libraries"].items()]
    print_table("", ("", ""), rows)
    # A build writes both libraries with the same kernels.
    builds = [library["build"] for library in found["libraries"].values() if library is not None]
    for build in [one for index, one in enumerate(builds) if one is not None and one not in builds[:index]]:
        widths = ", ".join(map(str, build["widths"]))
        print_table(f"inside, for heads of {widths}", _COLUMNS, _kernel_rows(build["inside"]))


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in options.words(text)]
    except ValueError:
        raise ConfigError(f"{option} {text}: wanted whole numbers such as 64,72") from None


_COLUMNS = ("architecture", "precision", "kernels", "registers", "spilled", "shared", "KiB")


def _kernel_rows(inside: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line for each architecture and precision, with the most that one of its kernels takes; ``--json`` has all."""
    rows: list[tuple[str, ...]] = []
    for key in dict.fromkeys((one["capability"], one["is_ptx"], one["precision"]) for one in inside):
        own = [one for one in inside if (one["capability"], one["is_ptx"], one["precision"]) == key]
        capability, is_ptx, precision = key
        most = (str(max(one[name] for one in own)) for name in ("registers", "spilled_bytes", "shared_bytes"))
        size = sum(one["bytes"] for one in own) / 1024
        place = f"{capability / 10:.1f}{' and later, as PTX' if is_ptx else ''}"
        rows.append((place, precision, str(len(own)), *most, f"{size:.0f}"))
    return rows


def _library_line(name: str, library: dict[str, Any] | None) -> str:
    if library is None:
        headers = " --tensorrt-include DIR" if "plugin" in name else ""
        return f"not built: vitslim plugin build{headers}"
    if library["build"] is None:
        return f"{library['path']}  (built elsewhere)"
    built = library["build"]
    tensorrt = "" if built["tensorrt"] is None else f", TensorRT {built['tensorrt']}"
    state = "" if library["current"] else "; OTHER SOURCES than installed here, build it again"
    return f"{library['path']}  ({', '.join(built['architectures'])}{tensorrt}{state})"
