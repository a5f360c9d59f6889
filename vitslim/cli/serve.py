"""Verbs that hand a saved model to what serves it: deploy, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import complete, options
from vitslim.cli.screen import print_json, say

_SERVED_BY = ("triton-server", "torch-export", "aotinductor")
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a folder that vitslim wrote")]
ArtifactOption = Annotated[
    Path | None, typer.Option("--artifact", help="the exported file; default the one in DIR/export", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(deploy)
    app.command()(quantize)


def deploy(
    folder: FolderArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help=", ".join(_SERVED_BY),
            show_default=False,
            autocompletion=complete.words(*_SERVED_BY),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="model repository (triton-server), or .pt2 file", show_default=False),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="triton-server: onnx, tensorrt, auto", show_default=False)
    ] = None,
    artifact: ArtifactOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="triton-server: of the model; default DIR's", show_default=False)
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="triton-server: most images in a batch", show_default=False)
    ] = None,
    instances: Annotated[
        int | None, typer.Option("--instances", help="triton-server: copies per device", show_default=False)
    ] = None,
    any_gpu: Annotated[bool, typer.Option("--any-gpu", help="triton-server: the server's GPU is another one")] = False,
    precision: Annotated[
        str | None, typer.Option("--precision", help="programs: fp32, fp16, bf16", show_default=False)
    ] = None,
    data: options.DataOption = None,
    setting: options.DataSetOption = None,
    device: Annotated[str | None, typer.Option("--device", help="aotinductor: cpu, cuda", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what lies there")] = False,
    json: options.JsonOption = False,
) -> None:
    """Write what a server loads: a Triton model repository, a torch.export program, an AOTInductor package."""
    from vitslim import pipeline

    given: dict[str, Any] = {
        "backend": backend,
        "artifact": artifact,
        "name": name,
        "max_batch": max_batch,
        "instances": instances,
        "any_gpu": any_gpu or None,
        "precision": precision,
        "data": options.images(data, setting),
        "device": device,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    written = pipeline.deploy(folder, to=to, out=out, overwrite=overwrite, **chosen)
    document = written.model_dump(mode="json")
    if json:
        print_json(document)
    elif to == "triton-server":
        _say_repository(document)
    else:
        _say_program(document)


def quantize(
    folder: FolderArgument,
    data: Annotated[str, typer.Option("--data", help="images of the calibration; labels are not needed")],
    precision: Annotated[str, typer.Option("--precision", help="of the matrix products: fp8 or int8")] = "fp8",
    others: Annotated[str, typer.Option("--others", help="precision of everything else: fp16, bf16, fp32")] = "fp16",
    modelopt_python: Annotated[
        Path | None,
        typer.Option("--modelopt-python", help="python of the environment with nvidia-modelopt", show_default=False),
    ] = None,
    providers: Annotated[str, typer.Option("--providers", help="where it calibrates: cpu, cuda:0, trt")] = "cpu",
    images: Annotated[int, typer.Option("--images", help="images of the calibration", min=1)] = 512,
    compare: Annotated[int, typer.Option("--compare", help="held-out images to compare with the model", min=0)] = 64,
    artifact: ArtifactOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="file; default in DIR/export/quantized", show_default=False)
    ] = None,
    calibration_file: Annotated[
        Path | None, typer.Option("--calibration-file", help="leave the images here, as .npz", show_default=False)
    ] = None,
    setting: options.DataSetOption = None,
    seed: options.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what lies there")] = False,
    json: options.JsonOption = False,
) -> None:
    """Make the exported ONNX file FP8 or INT8 with NVIDIA Model-Optimizer, which has an environment of its own."""
    from vitslim import pipeline

    options.require_saved(folder)
    found = pipeline.quantize(
        folder,
        options.images(data, setting),
        precision=precision,
        others=others,
        out=out,
        artifact=artifact,
        images=images,
        compare=compare,
        seed=seed,
        overwrite=overwrite,
        python=modelopt_python,
        providers=options.words(providers),
        calibration_file=calibration_file,
    )
    if json:
        print_json(found.model_dump(mode="json"))
        return
    say(f"wrote {found.file}: {found.quantizers} quantizers, Model-Optimizer {found.modelopt}")
    if found.kept:
        say(f"left in {found.others}, since they choose tokens or keys: {', '.join(found.kept)}")
    if found.agreement is not None:
        say(f"same best class as the model on {100 * found.agreement:.1f} % of the images, cosine {found.cosine:.4f}")
    for note in found.notes:
        say(f"note: {note}")


def _say_repository(written: dict[str, Any]) -> None:
    say(f"wrote {written['repository']}/{written['name']} ({', '.join(written['files'])})")
    say(f"serve it, with the repository at /models: {written['command']}")
    for note in written["notes"]:
        say(f"note: {note}")


def _say_program(written: dict[str, Any]) -> None:
    worst = max(check["max_abs"] / (check["tolerance"] or 1.0) for check in written["comparisons"])
    say(
        f"wrote {written['file']} ({written['size_bytes'] / 2**20:.1f} MiB); loaded back, it differs from the model by "
        f"{100 * worst:.1f} % of what {written['precision']} is allowed"
    )
    if written["spelled_out"]:
        say(
            f"note: {written['spelled_out']} sparse attentions and key choices are spelled out in torch's operators, "
            "so that the file needs no vitslim; it computes all scores"
        )
    if "bound_to" in written:
        say(f"note: compiled for {', '.join(written['bound_to'].values())}; other machines may refuse it")
