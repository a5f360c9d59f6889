"""The ONNX file an engine is built from: what TensorRT would stumble over, said or mended before it starts."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vitslim.errors import ConfigError
from vitslim.runtime import Precision
from vitslim.runtime.tensorrt_api import TITLES, version_numbers
from vitslim.targets.onnx.graph import inlined
from vitslim.targets.onnx.reading import metadata_in, read_header
from vitslim.targets.onnx.weights import external_files
from vitslim.targets.tensorrt.attentions import attentions_in_calls, count_attentions
from vitslim.targets.tensorrt.fingerprint import graph_sha256
from vitslim.targets.tensorrt.options import EngineOptions, Sizes

PLUGIN_DOMAIN = "vitslim"

# Version of TensorRT from which on its parser knows the standard Attention operator.
_ATTENTION_SINCE = (10, 14)


@dataclass(frozen=True)
class Source:
    """An ONNX file that is ready for TensorRT's parser.

    ``attentions`` counts those that a fused kernel could compute, ``plugin_attentions`` those of them inside calls of a
    plugin; ``plugin_nodes`` counts the calls of each plugin, none where plugins are off. ``changes`` says what was
    mended, for engine.json; ``graph_sha256`` is of the file before that.
    """

    model: Any
    path: Path
    attentions: int
    plugin_attentions: int
    plugin_nodes: dict[str, int]
    changes: list[str]
    metadata: dict[str, str]
    graph_sha256: str

    def module_of(self, node_name: str, operator: str) -> str | None:
        """The module of the torch model that a node came from, as its nearest weights tell; ``None`` if none does."""
        return module_of(self.model.graph, node_name, operator)


def read_source(path: str | Path, options: EngineOptions, version: str, *, with_plugins: bool) -> Source:
    """Read and check an ONNX file before a builder is started on it.

    Args:
        path: the file.
        options: the precision that is asked for, the sizes, the flavor.
        version: of the TensorRT that should build it.
        with_plugins: whether calls of vitslim's operators stay as they are, or become plain operators.

    Raises:
        CheckpointError: there is no such file, or it is not ONNX.
        ConfigError: it is in another precision, of a fixed size where a range is asked for, or holds the standard
            Attention operator where TensorRT does not build it.
    """
    path = Path(path)
    model = read_header(path)
    metadata = metadata_in(model)
    _check_precision(path, metadata, options.precision)
    _check_attention(path, model, options, version)
    _check_sizes(path, model, options)
    digest = graph_sha256(model)
    changes: list[str] = []
    attentions, in_plugins = count_attentions(model), attentions_in_calls(model, PLUGIN_DOMAIN)
    if not with_plugins and model.functions:
        model = inlined(model)
        changes.append("vitslim's operators were written out in standard ones")
    if _drop_softmax_precision_(model.graph.node):
        # TensorRT's parser refuses the attribute. Its fused kernel accumulates the softmax in float32 anyway.
        changes.append("softmax_precision was taken off the Attention nodes")
    if _drop_antialias_(path, model.graph.node, metadata, options):
        changes.append("antialias was taken off the Resize nodes, which only enlarge")
    called = [node for node in model.graph.node if node.domain == PLUGIN_DOMAIN] if with_plugins else []
    names = [f"{node.domain}::{node.op_type}" for node in called]
    return Source(
        model, path, attentions, in_plugins, {name: names.count(name) for name in names}, changes, metadata, digest
    )


def precision_of(path: str | Path) -> Precision | None:
    """The precision that an ONNX file says it is in; ``None`` where it says nothing.

    Raises:
        CheckpointError: there is no such file, or it is not ONNX.
    """
    stated = metadata_in(read_header(path)).get("precision")
    return next((one for one in get_args(Precision) if one == stated), None)


def write_source(source: Source, folder: Path) -> Path:
    """The file for the parser: the given one, or a changed copy in ``folder`` whose weights may lie elsewhere."""
    if not source.changes:
        return source.path
    import onnx

    copy = folder / source.path.name
    onnx.save(source.model, copy)
    for file in external_files(source.model, source.path):
        os.symlink(file.resolve(), folder / file.name)
    return copy


def module_of(graph: Any, node_name: str, operator: str) -> str | None:
    """The module that a node came from: in its name, noted by the exporter, or of the nearest weight before it."""
    nodes = list(graph.node)
    start = next((node for node in nodes if _same_name(node.name, node_name) and node.op_type == operator), None)
    if start is None:
        return None
    noted = metadata_in(start).get("namespace")
    if noted:
        return noted
    # vitslim's own files: ``blocks.1.mlp.act/Gelu``.
    module = start.name.rpartition("/")[0]
    if module and not module.startswith("/"):
        return module
    weights = {tensor.name for tensor in graph.initializer if "." in tensor.name}
    makers = {name: node for node in nodes for name in node.output}
    queue, seen = deque([start]), {id(start)}
    while queue:
        node = queue.popleft()
        for name in node.input:
            if name in weights:
                return name.rpartition(".")[0]
            maker = makers.get(name)
            if maker is not None and id(maker) not in seen:
                seen.add(id(maker))
                queue.append(maker)
    return None


def _same_name(name: str, reported: str) -> bool:
    # TensorRT reports the name with or without the prefix that torch's exporter gives it.
    return reported in (name, name.removeprefix("node_"))


def _check_precision(path: Path, metadata: dict[str, str], wanted: Precision) -> None:
    written = metadata.get("precision")
    if written not in (None, wanted):
        raise ConfigError(
            f"{path.name} is in {written}, an engine in {wanted} was asked for: TensorRT takes the types from the "
            f"file; export the file in {wanted}, or ask for --precision {written}"
        )


def _check_attention(path: Path, model: Any, options: EngineOptions, version: str) -> None:
    count = sum(node.op_type == "Attention" and node.domain in ("", "ai.onnx") for node in _all_nodes(model))
    if not count:
        return
    advice = "export with opset 20 or less, where attention is MatMul and Softmax (vitslim's default for engines)"
    if options.precision == "fp32":
        raise ConfigError(
            f"{path.name} holds {count} Attention operators, which {TITLES[options.flavor]} does not build in fp32; "
            f"{advice}, or build in fp16"
        )
    if options.flavor == "tensorrt" and version_numbers(version)[:2] < _ATTENTION_SINCE:
        raise ConfigError(
            f"{path.name} holds {count} Attention operators, which TensorRT knows from 10.14 on, here is {version}; "
            f"{advice}"
        )


def _check_sizes(path: Path, model: Any, options: EngineOptions) -> None:
    batch, *pixels = _input_shape(model)
    if batch is not None and options.batch != (batch,) * 3:
        raise ConfigError(
            f"{path.name} takes batch {batch} only, asked for {':'.join(map(str, options.batch))}; "
            f"ask for --batch {batch}, or export with a dynamic batch"
        )
    if options.image_size is None:
        if None in pixels:
            raise ConfigError(f"{path.name} takes images of any size; say which with --image-size min:opt:max")
    elif any(size is not None and options.image_size != (size,) * 3 for size in pixels[1:]):
        given = "x".join(str(size) for size in pixels[1:])
        raise ConfigError(
            f"{path.name} takes images of {given} only, asked for {':'.join(map(str, options.image_size))}; "
            "leave --image-size out, or export with dynamic sizes"
        )


def input_shapes(source: Source, options: EngineOptions) -> dict[str, list[int]]:
    """Least, best and most of the image input's shape."""
    _, *sizes = _input_shape(source.model)
    chosen: list[Sizes] = [options.batch]
    for size in sizes:
        chosen.append((size, size, size) if size is not None else options.image_size or (0, 0, 0))
    return {name: [of[index] for of in chosen] for index, name in enumerate(("min", "opt", "max"))}


def _input_shape(model: Any) -> list[int | None]:
    weights = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in weights)
    sizes = value.type.tensor_type.shape.dim
    return [int(size.dim_value) if size.dim_value > 0 else None for size in sizes]


def _all_nodes(model: Any) -> Iterator[Any]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _drop_softmax_precision_(nodes: Iterable[Any]) -> bool:
    changed = False
    for node in nodes:
        if node.op_type != "Attention":
            continue
        for index in reversed([i for i, one in enumerate(node.attribute) if one.name == "softmax_precision"]):
            del node.attribute[index]
            changed = True
    return changed


def _drop_antialias_(path: Path, nodes: Iterable[Any], metadata: dict[str, str], options: EngineOptions) -> bool:
    """Position embeddings are resized with antialiasing, which TensorRT lacks and which does nothing to larger ones.

    Raises:
        ConfigError: the engine would have to make them smaller.
    """
    found = [(node, one) for node in nodes if node.op_type == "Resize" for one in node.attribute if _is_on(one)]
    if not found:
        return False
    own = max(json.loads(metadata.get("image_size", "[0]")))
    if not own or options.image_size is None or options.image_size[0] < own:
        raise ConfigError(
            f"{path.name} makes its position embedding smaller with antialiasing, which TensorRT does not know; "
            f"ask for --image-size from {own or 'the size of the model'} on, or export one file per size"
        )
    for node, attribute in found:
        node.attribute.remove(attribute)
    return True


def _is_on(attribute: Any) -> bool:
    return attribute.name == "antialias" and attribute.i == 1
