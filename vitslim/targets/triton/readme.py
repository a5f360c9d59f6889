"""The README.md in the folder of a model that Triton Inference Server should serve."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vitslim.targets.triton.result import TritonRepository
from vitslim.targets.triton.servable import Servable, Tensor

_PLUGIN = """## The plugin

The engine calls `{plugins}`, which lies in `plugins/libvitslim_plugins.so`. Triton's TensorRT backend opens the library
that `plugins=` names, and no more; `VITSLIM_PLUGIN_REGISTER=1` in the server's environment makes the library register
itself with TensorRT when it is opened. Preloading it (`LD_PRELOAD`) comes too early: TensorRT is not there yet. The
library must have been compiled for the server's GPU, against the headers of its TensorRT:
`vitslim plugin build --arch ... --tensorrt-include ...`.
"""


def readme(servable: Servable, written: TritonRepository) -> str:
    """How this model is served and called, in Markdown."""
    lines = [
        f"# {written.name}",
        "",
        f"`{servable.path.name}`, written by `vitslim export` for Triton Inference Server ({written.backend} backend).",
        "",
        "## Serving",
        "",
        "Inside the server's container, with the model repository mounted at `/models`:",
        "",
        "```bash",
        written.command,
        "```",
        "",
        _batching(servable, written),
        *(f"* {note}" for note in written.notes),
        "",
    ]
    if written.plugin is not None and servable.engine is not None:
        lines += [_PLUGIN.format(plugins=", ".join(servable.engine.plugins.used))]
    lines += [
        "## Calling",
        "",
        *_tensors(servable, written),
        "",
        images_in_words(servable.metadata),
        "",
        _client(written),
    ]
    return "\n".join(lines)


def _batching(servable: Servable, written: TritonRepository) -> str:
    if written.max_batch_size == 0:
        return f"* every request carries exactly {servable.batch.least} images: the file has this batch fixed"
    best = ", ".join(map(str, written.preferred_batch_sizes))
    return (
        f"* requests are gathered into batches of at most {written.max_batch_size} images"
        f"{f', best {best}, which the engine was tuned for' if best else ''}; copies per device: {written.instances}"
    )


def _tensors(servable: Servable, written: TritonRepository) -> list[str]:
    batch = "batch" if written.max_batch_size else str(servable.batch.least)

    def row(role: str, tensor: Tensor) -> str:
        sizes = " × ".join([batch, *("any" if size == -1 else str(size) for size in tensor.sizes)])
        return f"| {role} | `{tensor.name}` | {tensor.element} | {sizes} |"

    rows = [row("input", tensor) for tensor in servable.inputs] + [row("output", one) for one in servable.outputs]
    return ["| | name | type | shape |", "|---|---|---|---|", *rows]


def images_in_words(metadata: Mapping[str, str]) -> str:
    """How images become a file's input, by what the file says of itself."""
    if "image_size" not in metadata:
        return "The file does not say how images are prepared; use what the model was trained with."
    size = " × ".join(map(str, json.loads(metadata["image_size"])))
    text = f"Images are resized ({metadata['interpolation']}, crop {metadata['crop_pct']}) to {size} pixels"
    form = json.loads(metadata.get("input", "{}")).get("form", "normalized")
    if form != "normalized":
        return f"{text} and given as bytes 0..255 ({form}); the file normalises them itself."
    return f"{text}, scaled to 0..1, then normalised with mean {metadata['mean']} and deviation {metadata['std']}."


def _client(written: TritonRepository) -> str:
    return (
        "A client that prepares images as `config.pbtxt` says is `examples/triton_client.py` of vitslim:\n"
        f"`python triton_client.py {written.name} IMAGE...` (needs `pip install 'tritonclient[http]' pillow numpy`).\n"
    )
