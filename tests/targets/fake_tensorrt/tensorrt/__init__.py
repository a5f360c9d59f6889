"""As much of TensorRT's Python interface as the builder's process touches, for machines that cannot have TensorRT.

Names, arguments and results are those of TensorRT 11. A plan is a JSON document of what the builder was given. Whether
it opens is decided by documented rules: a plugin must be registered, embedded or baked in, code inside must be allowed,
and only engines built for it can be refitted. An engine that runs gives the mean of each image, from and to the
addresses and shapes that its context was given.
"""

import ctypes
import hashlib
import json
import math
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import numpy_helper

__version__ = "11.4.0"

NetworkDefinitionCreationFlag = IntEnum(
    "NetworkDefinitionCreationFlag",
    {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
)
BuilderFlag = IntEnum("BuilderFlag", ["REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "WEIGHT_STREAMING"])
SerializationFlag = IntEnum("SerializationFlag", ["EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT"])
ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["DETAILED"])
MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"])
LayerInformationFormat = IntEnum("LayerInformationFormat", ["JSON"])
DataType = IntEnum("DataType", ["FLOAT", "HALF", "BF16"])
_NAMES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.INT32: "INT32"}


class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])


class _Registry:
    def __init__(self):
        self.all_creators = []

    def load_library(self, path):
        if not Path(path).is_file():
            return None
        self.add("SparseAttention", "vitslim")
        return object()

    def add(self, name, namespace):
        self.all_creators.append(SimpleNamespace(name=name, plugin_namespace=namespace))

    def has(self, node):
        return (node.op_type, node.domain) in [(one.name, one.plugin_namespace) for one in self.all_creators]


_registry = _Registry()


def get_plugin_registry():
    return _registry


def _named(kind, name, dtype, **fields):
    out = SimpleNamespace(name=name, dtype=SimpleNamespace(name=dtype))
    return SimpleNamespace(
        name=name, type=SimpleNamespace(name=kind), num_outputs=1, get_output=lambda _: out, get_input=lambda _: None
    )


class Network:
    def __init__(self, flags):
        self.flags, self.layers, self.inputs, self.outputs, self.weights = flags, [], [], [], {}

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]


def _weights(path):
    return {
        tensor.name: hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
        for tensor in onnx.load(path).graph.initializer
    }


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        graph = onnx.load(path).graph
        self.network.weights = _weights(path)
        self.network.inputs = [self._end(value) for value in graph.input]
        self.network.outputs = [self._end(value) for value in graph.output]
        types = {tensor.name: _NAMES.get(tensor.data_type, "INT64") for tensor in graph.initializer}
        for node in graph.node:
            weight = next((types[name] for name in node.input if name in types), None)
            if node.op_type == "Conv":
                self.network.layers.append(_named("CONVOLUTION", node.name, weight))
            elif _registry.has(node):
                self.network.layers.append(_named("PLUGIN_V3", node.name, "HALF"))
        return True

    def _end(self, value):
        kind = value.type.tensor_type
        shape = [size.dim_value or -1 for size in kind.shape.dim]
        return SimpleNamespace(name=value.name, dtype=SimpleNamespace(name=_NAMES[kind.elem_type]), shape=shape)


class Config:
    def __init__(self):
        self.flags, self.plugins_to_serialize = {BuilderFlag.TF32}, []

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        return 0


class Builder:
    def __init__(self, logger):
        pass

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *_: None)

    def build_serialized_network(self, network, config):
        names = {flag.name for flag in config.flags}
        plan = {
            "ends": [
                {"name": end.name, "dtype": end.dtype.name, "shape": end.shape, "mode": mode}
                for mode, ends in (("INPUT", network.inputs), ("OUTPUT", network.outputs))
                for end in ends
            ],
            "network_flags": network.flags,
            "flags": sorted(names),
            "calls_plugin": any(layer.type.name == "PLUGIN_V3" for layer in network.layers),
            "libraries": [Path(path).read_text() for path in config.plugins_to_serialize],
            "baked_in": bool(network.flags & 1 << NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS),
            "refittable": bool(names & {"REFIT", "STRIP_PLAN"}),
            "weights": dict.fromkeys(network.weights) if "STRIP_PLAN" in names else network.weights,
        }
        return json.dumps(plan).encode()


class Engine:
    def __init__(self, plan):
        self.plan = plan

    refittable = property(lambda self: self.plan["refittable"])
    num_io_tensors = property(lambda self: len(self.plan["ends"]))

    def get_tensor_name(self, index):
        return self.plan["ends"][index]["name"]

    def _end(self, name):
        return next(end for end in self.plan["ends"] if end["name"] == name)

    def get_tensor_mode(self, name):
        return SimpleNamespace(name=self._end(name)["mode"])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self._end(name)["dtype"])

    def get_tensor_shape(self, name):
        return self._end(name)["shape"]

    def create_execution_context(self):
        return IExecutionContext(self)

    def create_engine_inspector(self):
        layers = ["PluginV3"] if self.plan["calls_plugin"] else ["_gemm_mha_v2_0"]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))

    def create_serialization_config(self):
        flags = {SerializationFlag.EXCLUDE_WEIGHTS} if "STRIP_PLAN" in self.plan["flags"] else set()
        return SimpleNamespace(flags=flags, set_flag=flags.add, clear_flag=flags.discard)

    def serialize_with_config(self, config):
        stripped = "STRIP_PLAN" in self.plan["flags"]
        kept = self.plan["refittable"] and (not stripped or SerializationFlag.INCLUDE_REFIT in config.flags)
        weights = dict.fromkeys(self.plan["weights"]) if SerializationFlag.EXCLUDE_WEIGHTS in config.flags else None
        return json.dumps({**self.plan, "refittable": kept, "weights": weights or self.plan["weights"]}).encode()


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._batch, self._addresses = engine, None, {}

    def set_input_shape(self, name, shape):
        declared = self._engine.get_tensor_shape(name)
        self._batch = shape[0]
        return len(shape) == len(declared) and all(of in (-1, to) for of, to in zip(declared, shape, strict=True))

    def get_tensor_shape(self, name):
        return [self._batch if size == -1 else size for size in self._engine.get_tensor_shape(name)]

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        images, logits = (self._memory(end["name"]) for end in self._engine.plan["ends"])
        logits[:] = images.reshape(len(images), -1).mean(1)[:, None]
        return True

    def _memory(self, name):
        shape = self.get_tensor_shape(name)
        raw = (ctypes.c_float * math.prod(shape)).from_address(self._addresses[name])
        return np.frombuffer(raw, np.float32).reshape(shape)


class Runtime:
    def __init__(self, logger):
        self.logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, content):
        plan = json.loads(content)
        if plan["calls_plugin"] and not (plan["libraries"] or plan["baked_in"] or _registry.all_creators):
            self.logger.log(ILogger.Severity.ERROR, "plugin creator not found")
            return None
        if plan["libraries"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.Severity.ERROR, "host code is not allowed")
            return None
        return Engine(plan)


class Refitter:
    def __init__(self, engine, logger):
        self.engine, self.given = engine, {}

    def get_missing_weights(self):
        return [name for name in self.engine.plan["weights"] if name not in self.given]

    def refit_cuda_engine(self):
        self.engine.plan["weights"] = self.given
        return not self.get_missing_weights()


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter, logger):
        self.refitter = refitter

    def refit_from_file(self, path):
        self.refitter.given = _weights(path)
        return True
