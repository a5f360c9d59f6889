"""An example for the help of every command."""

import typer

EXAMPLES = {
    "list": ("vitslim list methods skipat", "vitslim list targets"),
    "inspect": ("vitslim inspect deit_small", "vitslim inspect out"),
    "analyze": ("vitslim analyze deit_small --data imagenet/ --out analysis",),
    "plan": (
        "vitslim plan builtin --data fractals --speedup 1.5 --out plan",
        "vitslim plan deit_small --data imagenet/ --latency-ms 40 --out plan",
    ),
    "doctor": ("vitslim doctor",),
    "convert": (
        "vitslim convert builtin --method skipat --data fractals --out out",
        "vitslim convert deit_small --method skipat --method evo_vit --out pair",
        "vitslim convert deit_small --plan plan.json --out out",
    ),
    "train": ("vitslim train out --teacher deit_small --data imagenet/ --out trained",),
    "pretrain": ("vitslim pretrain recipes/builtin_teacher.yaml --out teacher",),
    "run": ("vitslim run recipes/builtin_skipat.yaml --out out --set distill.epochs=1",),
    "demo": ("vitslim demo --quick --out demo-out",),
    "import": (
        "vitslim import mine.pth --base vit_tiny_patch16_224 --out teacher",
        "vitslim import skipat_small.pth --from skipat --base deit_small --out out",
    ),
    "eval": ("vitslim eval out --data imagenet/ --teacher deit_small --limit 5000",),
    "export": (
        "vitslim export out --to onnx --precision fp16",
        "vitslim export out --to tensorrt --batch 1:8:64",
        "vitslim export out --to triton-server --out models",
    ),
    "refit": ("vitslim refit out/export/model-fp16.engine --from retrained",),
    "verify": ("vitslim verify out --data imagenet/ --images 64",),
    "compare": ("vitslim compare out/skipat out/evo-vit",),
    "report": ("vitslim report out",),
    "bench": ("vitslim bench out --backend torch,ort --batch 1,8", "vitslim bench suite --quick"),
    "bench models": ("vitslim bench out --baseline deit_tiny --backend torch,ort --batch 1,8",),
    "bench suite": ("vitslim bench suite --preset cpu --minutes 30 --out out/suite",),
    "bench accuracy": ("vitslim bench accuracy --preset cpu --quick",),
    "bench planner": ("vitslim bench planner --minutes 30", "vitslim bench planner --set seeds=[0]"),
    "quantize": ("vitslim quantize out --data imagenet/ --precision int8",),
    "plugin": ("vitslim plugin info",),
    "plugin build": ("vitslim plugin build --arch 80,90",),
    "plugin info": ("vitslim plugin info --json",),
}
"""Command lines by command; their options and values are those of the real commands."""


def add_examples(app: typer.Typer, group: str = "") -> None:
    """Show each command's examples below its help."""
    for command in app.registered_commands:
        command.epilog = _epilog(group + (command.name or str(getattr(command.callback, "__name__", ""))))
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            name = str(inner.typer_instance.info.name)
            inner.typer_instance.info.epilog = _epilog(name)
            add_examples(inner.typer_instance, f"{name} ")


def _epilog(command: str) -> str:
    lines = EXAMPLES.get(command, ())
    # Typer keeps a line as it is only behind an empty one.
    return "\n\n".join(("Example:" if len(lines) == 1 else "Examples:", *lines))
