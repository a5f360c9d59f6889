"""The process that builds or refits one engine; whatever happens in it, the caller goes on.

Started as a file of its own, ``python worker.py REQUEST.json``: it imports nothing of vitslim, so that the process is
there in a moment and needs TensorRT only; the one exception are plugins compiled ahead of time, which vitslim
registers. It writes the engine and a JSON answer; TensorRT's log goes to its standard output, one line per message. A
request that cannot be built is answered with an error and exit code 0; any other code means that TensorRT took the
process down.
"""

import json
import os
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

_MATRIX_LAYERS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM")
# What lies between a constant and the product that uses it, without changing whether it is one.
_PASSING = ("SHUFFLE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "SQUEEZE", "UNSQUEEZE", "SLICE")


class Refused(Exception):
    """The request cannot be built; ``kind`` tells the caller which error to raise."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.answer = {"kind": kind, "message": message, **details}


def main(request_path: str) -> None:
    """Do what the request asks for and write the answer to where it says."""
    request: dict[str, Any] = json.loads(Path(request_path).read_text())
    try:
        answer = refit(request) if request["task"] == "refit" else build(request)
    except Refused as refused:
        answer = {"error": refused.answer}
    except MemoryError:
        answer = {"error": {"kind": "memory", "message": "the machine's memory is used up"}}
    except OSError as error:
        answer = {"error": {"kind": "disk", "message": error.strerror or str(error)}}
    Path(request["answer"]).write_text(json.dumps(answer))


def build(request: dict[str, Any]) -> dict[str, Any]:
    """The engine in ``request["engine"]``, and what is known of it."""
    api: Any = import_module(request["module"])
    logger = _logger(api)
    _bring_plugins(api, request["plugins"])
    builder = api.Builder(logger)
    network = builder.create_network(_network_flags(api, request["plugins"]))
    # The parser points into the network: both live until the engine is built.
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        raise Refused("parser", "the ONNX file was not accepted", nodes=_parser_errors(parser))
    profiles = _profiles(network, request["shapes"])
    config = _config(api, builder, profiles, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused("builder", "TensorRT built nothing")
    content = bytes(plan)
    Path(request["engine"]).write_bytes(content)
    _save_timing_cache(config, request["timing_cache"])
    return {
        "tensorrt": api.__version__,
        "profiles": profiles,
        **_network_facts(network),
        "layers": _inspect(_open(api, logger, content, code=True), api) if request["has_gpu"] else None,
    }


def refit(request: dict[str, Any]) -> dict[str, Any]:
    """The engine in ``request["given"]`` with the weights of ``request["onnx"]``, written to ``request["engine"]``."""
    api: Any = import_module(request["module"])
    logger = _logger(api)
    _bring_plugins(api, request["plugins"])
    code: bool = request["brings_code"]
    engine = _open(api, logger, Path(request["given"]).read_bytes(), code=code)
    if engine is None:
        raise Refused("builder", "TensorRT cannot open the engine")
    if not engine.refittable:
        raise Refused("option", "TensorRT says that this engine's weights are fixed; build it with --refit")
    refitter = api.Refitter(engine, logger)
    parser = api.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(request["onnx"]):
        raise Refused("parser", "the ONNX file was not accepted", nodes=_parser_errors(parser))
    missing = refitter.get_missing_weights()
    if missing:
        raise Refused("weights", f"the ONNX file lacks weights of the engine: {', '.join(sorted(missing)[:5])}")
    if not refitter.refit_cuda_engine():
        raise Refused("builder", "TensorRT did not take the weights")
    content = bytes(engine.serialize_with_config(_whole(api, engine)))
    # Opened again: the file is proven to load, and tells itself whether it can be refitted once more.
    again = _open(api, logger, content, code=code)
    if again is None:
        raise Refused("builder", "TensorRT cannot open the engine that it has written")
    Path(request["engine"]).write_bytes(content)
    return {"tensorrt": api.__version__, "refittable": bool(again.refittable), "layers": _inspect(again, api)}


def _whole(api: Any, engine: Any) -> Any:
    """How to write an engine with its weights, and, where this TensorRT knows how, such that they can be exchanged."""
    config = engine.create_serialization_config()
    flags = api.SerializationFlag.__members__
    config.clear_flag(flags["EXCLUDE_WEIGHTS"])
    if "INCLUDE_REFIT" in flags:
        config.set_flag(flags["INCLUDE_REFIT"])
    return config


def _open(api: Any, logger: Any, plan: bytes, *, code: bool) -> Any:
    """The engine, or ``None`` where TensorRT does not open it; ``code`` inside it, such as a plugin, may run or not."""
    runtime = api.Runtime(logger)
    runtime.engine_host_code_allowed = code
    return runtime.deserialize_cuda_engine(plan)


def _logger(api: Any) -> Any:
    class Printer(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # Straight to the descriptor: what a dying process has said must not be lost in a buffer.
            os.write(1, f"[{severity.name}] {message}\n".encode(errors="replace"))

    return Printer()


def _bring_plugins(api: Any, plugins: dict[str, Any] | None) -> None:
    """Load the library with the plugins, or have TensorRT compile them in."""
    if plugins is None:
        return
    if plugins["library"] is not None:
        if api.get_plugin_registry().load_library(plugins["library"]) is None:
            raise Refused("plugin", f"TensorRT {api.__version__} takes no plugins from {Path(plugins['library']).name}")
    elif plugins["form"] == "ahead-of-time":
        _register_ahead_of_time(plugins["package"])


def _register_ahead_of_time(package: str) -> None:
    sys.path.append(package)
    errors: Any = import_module("vitslim.errors")
    try:
        import_module("vitslim.plugin").register_ahead_of_time()
    except errors.VitslimError as error:
        raise Refused("plugin", f"{error}; or build with --plugins off") from None


def _network_flags(api: Any, plugins: dict[str, Any] | None) -> int:
    flags = api.NetworkDefinitionCreationFlag.__members__
    # The first matters before TensorRT 11 only, which builds no other networks and may not know the name.
    wanted = ["STRONGLY_TYPED"]
    if plugins is not None and plugins["form"] == "ahead-of-time":
        wanted.append("PREFER_AOT_PYTHON_PLUGINS")
    return sum(1 << int(flags[name]) for name in wanted if name in flags)


def _config(api: Any, builder: Any, profiles: list[dict[str, Any]], request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    # Types, constants and the layers' ONNX nodes are reported at this verbosity only.
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    for name in request["flags"]:
        if name not in api.BuilderFlag.__members__:
            raise Refused("option", f"this TensorRT ({api.__version__}) has no builder flag {name}")
        config.set_flag(api.BuilderFlag.__members__[name])
    if not request["tf32"]:
        # On by default; it computes float32 products with 10 bits of mantissa.
        config.clear_flag(api.BuilderFlag.TF32)
    if request["plugins"] is not None and request["plugins"]["form"] == "embedded":
        config.plugins_to_serialize = [request["plugins"]["library"]]
    if request["workspace_mib"] is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, request["workspace_mib"] << 20)
    profile = builder.create_optimization_profile()
    for shapes in profiles:
        profile.set_shape(shapes["name"], shapes["min"], shapes["opt"], shapes["max"])
    if config.add_optimization_profile(profile) < 0:
        raise Refused("option", f"TensorRT does not take the shapes {profiles}")
    _load_timing_cache(config, request["timing_cache"])
    return config


def _profiles(network: Any, wanted: dict[str, list[int]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        declared = [int(size) for size in tensor.shape]
        for sizes in wanted.values():
            if len(sizes) != len(declared) or any(of not in (-1, to) for of, to in zip(declared, sizes, strict=True)):
                raise Refused("option", f"input '{tensor.name}' is {declared} in the ONNX file, asked for {sizes}")
        found.append({"name": tensor.name, **wanted})
    return found


def _load_timing_cache(config: Any, path: str | None) -> None:
    if path is None:
        return
    content = Path(path).read_bytes() if Path(path).is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        raise Refused("option", f"timing cache {path} was made by another TensorRT or on another GPU; delete it")


def _save_timing_cache(config: Any, path: str | None) -> None:
    if path is not None:
        scratch = Path(f"{path}.{os.getpid()}.part")
        scratch.write_bytes(bytes(config.get_timing_cache().serialize()))
        scratch.replace(path)


def _parser_errors(parser: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        found.append(
            {
                "operator": error.node_operator(),
                "name": error.node_name(),
                "reason": error.desc().splitlines()[0] if error.desc() else str(error.code()),
                "functions": list(error.local_function_stack()),
            }
        )
    return found


def _network_facts(network: Any) -> dict[str, Any]:
    """Of the network as it was typed, before anything is fused: what the builder has to keep."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    matrices: Counter[str] = Counter()
    for layer in layers:
        kind = layer.type.name
        has_weights = kind != "MATRIX_MULTIPLY" or any(_is_constant(layer.get_input(one), makers) for one in (0, 1))
        if kind in _MATRIX_LAYERS and has_weights:
            matrices[layer.get_output(0).dtype.name] += 1
    plugins = sum(layer.type.name.startswith("PLUGIN") for layer in layers)
    return {
        "inputs": [_tensor(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(index)) for index in range(network.num_outputs)],
        "matrix_types": dict(matrices),
        "plugin_layers": plugins,
    }


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": [int(size) for size in tensor.shape]}


def _is_constant(tensor: Any, makers: dict[str, Any]) -> bool:
    for _ in range(len(_PASSING)):
        maker = None if tensor is None else makers.get(tensor.name)
        if maker is None:
            return False
        if maker.type.name == "CONSTANT":
            return True
        if maker.type.name not in _PASSING:
            return False
        tensor = maker.get_input(0)
    return False


def _inspect(engine: Any, api: Any) -> list[Any] | None:
    """What the engine inspector tells of every layer; ``None`` where there is no engine."""
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    reported: Any = json.loads(inspector.get_engine_information(api.LayerInformationFormat.JSON))
    return reported.get("Layers")


if __name__ == "__main__":
    main(sys.argv[1])
