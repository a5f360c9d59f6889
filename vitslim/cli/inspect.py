"""Commands that change nothing: list, inspect, analyze, doctor."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import complete, options
from vitslim.cli.header import say_choices
from vitslim.cli.screen import Screen, print_json, print_table, say
from vitslim.errors import ConfigError
from vitslim.names import ALIASES, check_method, did_you_mean

if TYPE_CHECKING:
    from vitslim.methods import OptionDescription
    from vitslim.pipeline.inspecting import Inspection
    from vitslim.plans import ModelPlan
    from vitslim.targets.base import TargetInfo

_OF_THE_FILE = "that of the file"
"""The precision in which a server runs what it is given."""
_OPTIONAL = {
    "training": ("train", ("accelerate", "tensorboard")),
    "HF and webdataset images": ("data", ("datasets", "webdataset")),
    "ONNX export and verify": ("onnx", ("onnx", "onnxscript", "onnxruntime", "onnxslim")),
    "TensorRT engines": ("tensorrt", ("tensorrt",)),
    "TensorRT-RTX engines": ("rtx", ("tensorrt_rtx",)),
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_what)
    app.command()(inspect)
    app.command()(analyze)
    app.command()(doctor)


def list_what(
    what: Annotated[
        str, typer.Argument(help="models, methods, targets, aliases or pairs", autocompletion=complete.lists)
    ] = "methods",
    name: Annotated[
        str | None,
        typer.Argument(help="a method or target, to see its options", autocompletion=complete.methods),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """List models, methods, a method's options, export targets and what each takes, aliases, or which methods compose.

    `list models` builds each of timm's ViTs, which takes a while.
    """
    lists = {
        "models": _list_models,
        "methods": _list_methods,
        "targets": _list_targets,
        "aliases": _list_aliases,
        "pairs": _list_pairs,
    }
    if name is not None and what not in ("methods", "targets"):
        raise ConfigError(f"list {what} takes no name, given {name!r}; list methods and list targets do")
    if what not in lists:
        hint = did_you_mean(what, lists) or f"; wanted {', '.join(lists)}"
        raise ConfigError(f"list {what!r} is not known{hint}")
    if name is not None and what == "targets":
        _list_target(name, json)
    elif name is not None:
        _list_options(check_method(name), json)
    else:
        lists[what](json)


def inspect(
    model: options.ModelArgument,
    weights: options.WeightsOption = None,
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    model_arg: options.ModelArgOption = None,
    method: options.MethodsOption = None,
    plan: options.PlanOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", "--option", "-O", metavar="[METHOD.]KEY=VALUE", help="an option of a method, as keep=8"),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """What a model is and costs, how it wants its images, which methods can convert it. Nothing is downloaded.

    With --method or --plan: what would be made of it, or why that is refused.
    No model is built for that.
    """
    from vitslim.pipeline.inspecting import inspect_opened

    entries = options.method_entries(method or [], option or [])
    opened = options.open_named(
        model, weights=weights, img_size=img_size, num_classes=num_classes, model_arg=model_arg, shape_only=True
    )
    found = inspect_opened(opened, model, entries, plan)
    for note in found.notes:
        say(f"note: {note}", style="yellow")
    say_choices(found.choices)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    height, width = found.image_size
    dense = found.dense
    print_table(
        f"{found.model}  ({found.family})",
        ("", ""),
        [
            ("parameters", f"{found.params / 1e6:.2f} M{_of(found.params, dense and dense.params)}"),
            ("MACs", f"{found.macs / 1e9:.3f} G at {height} × {width}{_of(found.macs, dense and dense.macs)}"),
            *_activation_rows(found),
            *_image_rows(found.input.model_dump()),
            ("outputs", str(found.num_classes)),
            ("tokens", f"{found.prefix_tokens} prefix + {found.grid[0]} × {found.grid[1]} patches"),
            ("blocks", str(found.depth)),
            ("history", ", ".join(entry["method"] for entry in found.conversions) or "dense"),
        ],
    )
    if found.plan is not None:
        print_plan(found.plan)
    rows = [(name, "yes" if row["supported"] else "no", row["reason"]) for name, row in found.methods.items()]
    print_table("methods", ("method", "can convert", "reason"), rows)


def _of(value: int, dense: int | None) -> str:
    """A figure beside that of the dense model, where there is one to compare with."""
    return f", {100 * value / dense:.1f} % of dense" if dense else ""


def _activation_rows(found: Inspection) -> list[tuple[str, str]]:
    if found.activations is None:
        return []
    beside = _of(found.activations, found.dense and found.dense.activations)
    return [("peak activations", f"{found.activations / 1e3:.1f} k{beside}")]


def print_plan(plan: ModelPlan) -> None:
    """A plan as a table, one row per step."""
    from vitslim.plans import describe_steps

    size = "" if plan.image_size == plan.model.image_size else f" at {plan.image_size[0]} × {plan.image_size[1]} px"
    size += "" if plan.width is None else f" on {plan.width} of {plan.model.width} channels"
    rows = [
        [*map(str, choices), f"{macs / 1e6:.1f}", f"{parameters / 1e3:.1f}", f"{activations / 1e3:.1f}"]
        for *choices, macs, parameters, activations in (row.values() for row in describe_steps(plan))
    ]
    costs = ("MACs (M)", "parameters (k)", "activations (k)")
    columns = ("step", "block", "attention", "tokens", "mlp", "weights", *costs)
    print_table(f"plan{size}", columns, rows)
    if plan.dropped:
        say(f"dropped blocks: {', '.join(map(str, plan.dropped))}")


def _image_rows(wanted: dict[str, Any]) -> list[tuple[str, str]]:
    from vitslim.models.image_input import setting

    height, width = wanted["image_size"]
    shown = {name: setting(wanted[name]) for name in ("mean", "std", "interpolation", "crop_pct")}
    marked = [(name, f"{value} (assumed)" if name in wanted["assumed"] else value) for name, value in shown.items()]
    return [("images", f"{wanted['channels']} × {height} × {width}"), *marked]


def analyze(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", help="images; labels are not needed")],
    out: Annotated[Path, typer.Option("--out", help="folder for analysis.json and the plots")],
    images: Annotated[int, typer.Option("--images", help="images of the streaming pass", min=4)] = 1024,
    replacement_images: Annotated[
        int, typer.Option("--replacement-images", help="images on which layers are replaced one by one", min=1)
    ] = 256,
    batch_size: options.BatchSizeOption = 64,
    weights: options.WeightsOption = None,
    no_pretrained: options.NoPretrainedOption = False,
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    model_arg: options.ModelArgOption = None,
    setting: options.DataSetOption = None,
    device: options.DeviceOption = "cpu",
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Find what is redundant in a dense model: attention to reuse, blocks to drop, neurons and heads that matter."""
    from vitslim import pipeline
    from vitslim.files import check_output_folder, write_json
    from vitslim.report import analysis_table, recommendations, write_plots

    check_output_folder(out, overwrite=overwrite)
    wanted = options.images(data, setting, batch_size=batch_size)
    dense = options.open_named(
        model,
        weights=weights,
        no_pretrained=no_pretrained,
        img_size=img_size,
        num_classes=num_classes,
        model_arg=model_arg,
    )
    with Screen() as screen:
        report = pipeline.analyze(
            dense,
            wanted,
            images=images,
            replacement_images=replacement_images,
            batch_size=wanted.batch_size,
            device=device,
            progress=screen,
        )
    document = report.model_dump(mode="json")
    write_json(out / "analysis.json", document)
    plots = write_plots(report, out / "plots")
    if json:
        print_json(document)
        return
    say(f"wrote {out / 'analysis.json'} and {len(plots)} plots in {out / 'plots'}")
    table = analysis_table(report)
    print_table(f"{report.images} images. {table.title}", table.header, table.cells[1:])
    for what, words in recommendations(report).items():
        say(f"\n{what}: {words}")
    for note in report.notes:
        say(f"note: {note}")


def doctor(json: options.JsonOption = False) -> None:
    """Versions, devices, and what is missing for what."""
    import torch

    from vitslim.bench import environment

    missing: dict[str, dict[str, Any]] = {}
    for purpose, (extra, modules) in _OPTIONAL.items():
        absent = [name for name in modules if find_spec(name) is None]
        missing[purpose] = {"ready": not absent, "missing": absent, "install": _install(extra)}
    versions = {name: _version(name) for name in ("vitslim", "torch", "torchvision", "timm", "safetensors")}
    document: dict[str, Any] = {
        "versions": versions,
        "python": platform.python_version(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "purposes": missing,
        "environment": environment(),
    }
    if json:
        print_json(document)
        return
    print_table("", ("package", "version"), [("python", document["python"]), *versions.items()])
    say(f"\ndevices: {', '.join(document['devices'])}")
    rows = [
        (
            name,
            "ready" if row["ready"] else "missing " + ", ".join(row["missing"]),
            "" if row["ready"] else row["install"],
        )
        for name, row in missing.items()
    ]
    print_table("what works here", ("for", "state", "to install"), rows)


def _list_methods(json: bool) -> None:
    from vitslim.methods import describe_method, list_methods

    found = [describe_method(name) for name in list_methods()]
    if json:
        print_json([method.model_dump(mode="json") for method in found])
        return
    print_table("", ("method", "what it does", "source"), [(row.name, row.summary, row.source) for row in found])
    say("\n`vitslim list methods NAME` shows the options of one")


def _list_options(name: str, json: bool) -> None:
    from vitslim.methods import describe_method

    found = describe_method(name)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    print_table(
        f"{name}: {found.summary}\n{found.source}\n",
        ("option", "meaning"),
        [(option.name, _option_lines(option)) for option in found.options],
    )
    typer.echo(f"\nexample: {found.command}")


def _option_lines(option: OptionDescription) -> str:
    kind = f"{option.kind}, {option.range}" if option.range else option.kind
    return f"{kind}; default {_plain(option.default)}; for example {option.example}\n{option.meaning}"


def _plain(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _list_targets(json: bool) -> None:
    from vitslim.targets import list_targets

    found = list_targets()
    if json:
        print_json([target.model_dump(mode="json") for target in found])
        return
    print_table(
        "",
        ("target", "what it writes", "precisions", "run by", "state"),
        [
            (
                target.name,
                f"{target.title}, {target.suffix}" if target.suffix else target.title,
                ", ".join(target.precisions) or _OF_THE_FILE,
                ", ".join(target.backends),
                _target_state(target),
            )
            for target in found
        ],
    )


def _list_target(name: str, json: bool) -> None:
    from vitslim.pipeline.target_support import form_support
    from vitslim.targets import TARGETS, list_targets

    target = TARGETS.get(name)
    (info,) = (one for one in list_targets() if one.name == target.name)
    forms = form_support()
    options_taken = target.option_names()
    if json:
        taken = {"options": options_taken, "methods": [one.model_dump(mode="json") for one in forms]}
        print_json({**info.model_dump(mode="json"), **taken})
        return
    rows = [
        ("writes", f"{info.title}, {info.suffix}" if info.suffix else info.title),
        ("state", _target_state(info)),
        ("precisions", ", ".join(info.precisions) or _OF_THE_FILE),
        ("options", ", ".join(options_taken) or "none"),
        ("run by", ", ".join(info.backends) or "not by vitslim"),
    ]
    print_table(info.name, ("", ""), rows)
    free = "yes" if target.leaves_sizes_free else "no: not in this target"
    if "image_size" in options_taken:  # of engines
        free = "yes, a range: --image-size"
    print_table(
        "every method is written",
        ("method", "free image size", "compared"),
        [
            (
                one.form,
                f"no: {one.one_size}" if one.one_size and free.startswith("yes") else free,
                "on the file's own choices" if one.chooses else "directly",
            )
            for one in forms
        ],
    )


def _target_state(info: TargetInfo) -> str:
    state = f"missing {', '.join(info.missing)}" if info.missing else "ready"
    if info.int8_missing:
        state += f"; int8 also needs {', '.join(info.int8_missing)}"
    is_whole = not (info.missing or info.int8_missing) or info.extra is None
    return state if is_whole else f"{state}: {_install(info.extra)}"


def _list_aliases(json: bool) -> None:
    if json:
        print_json(ALIASES)
    else:
        print_table("", ("alias", "timm model"), list(ALIASES.items()))


def _list_models(json: bool) -> None:
    from vitslim.models import catalog
    from vitslim.models.catalog import isotropic_names
    from vitslim.progress import Progress

    total = len(isotropic_names()) + 1
    rows: list[Any] = []
    with Screen() as screen:
        for info in catalog():
            rows.append(info)
            screen(Progress("list models", len(rows), total, "models"))
    if json:
        print_json([info.model_dump() for info in rows])
        return
    print_table(
        "",
        ("model", "family", "converts", "reason"),
        [(info.name, info.family, "yes" if info.supported else "no", info.reason) for info in rows],
    )
    say(f"\n{sum(info.supported for info in rows)} of {len(rows)} can be converted")


def _list_pairs(json: bool) -> None:
    from vitslim.methods import METHODS, pair_support, support_cells

    rows = pair_support()
    if json:
        print_json(rows)
        return
    plain = {*METHODS.names()}
    (header, *lines), notes = support_cells([row for row in rows if {row["first"], row["second"]} <= plain])
    print_table("which methods compose", header, lines)
    for note in notes:
        say(note)
    say("\nEvery method in a form for four blocks; --json has its other forms too")


def _install(extra: str | None) -> str:
    return f"pip install 'vitslim[{extra}]'" if extra else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
