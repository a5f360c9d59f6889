"""What stands in the JSON file beside an engine."""

import hashlib
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.runtime.runner import Precision
from vitslim.runtime.tensorrt_api import Flavor
from vitslim.shapes import Result

ENGINE_FORMAT = 1


class TensorProfile(Result):
    """The shapes that one input may have: ``opt`` is the one the engine was tuned for."""

    name: str
    min: list[int]
    opt: list[int]
    max: list[int]


class TensorRecord(Result):
    """An input or output: its element type as torch names it (``float32``), its shape with -1 for any size."""

    name: str
    dtype: str
    shape: list[int]


PluginForm = Literal["embedded", "external", "ahead-of-time"]


class PluginUse(Result):
    """Which plugins the engine calls, in which form, and the digest of the library that had them.

    ``embedded``: the library lies inside the engine. ``external``: it has to be loaded before the engine.
    ``ahead-of-time``: TensorRT baked in the machine code, and there is no library.
    """

    used: list[str] = Field(default_factory=list)
    form: PluginForm | None = None
    library_sha256: str | None = None

    @property
    def needs_library(self) -> bool:
        """Whether the engine opens only where the plugin library has been loaded."""
        return bool(self.used) and self.form == "external"


class FusedMha(Result):
    """How many of the attentions in the ONNX file, without those of a plugin, became one fused kernel."""

    found: int
    expected: int

    def __str__(self) -> str:
        return f"{self.found}/{self.expected}"


class EngineRecord(Result):
    """engine.json: what an engine is bound to, what it guarantees, how it was made.

    ``gpu``, ``compute_capability``, ``driver``, ``cuda`` are ``None`` for a TensorRT-RTX engine, which is compiled to
    the end on the GPU that runs it. ``layers`` counts the engine's layers by type and by the type of their numbers, as
    ``layers_source`` reported them; ``matrix_types`` counts the network's products with weights (linear layers,
    convolutions) by the type they are computed in. Where TensorRT tells too little, ``layers`` and ``fused_mha`` are
    ``None`` and ``unknown`` says why. ``changes`` is what was mended in the ONNX file before the build.

    ``weights_sha256`` covers the weights in the ONNX file, ``graph_sha256`` all else in it: a refit takes a file with
    the same graph. ``has_weights`` is false for a stripped plan until it is refitted.
    """

    format: int = ENGINE_FORMAT
    flavor: Flavor
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    onnx_sha256: str
    graph_sha256: str
    weights_sha256: str
    engine_sha256: str
    precision: Precision
    profiles: list[TensorProfile]
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    plugins: PluginUse
    layers: dict[str, dict[str, int]] | None
    layers_source: str | None
    matrix_types: dict[str, int]
    fused_mha: FusedMha | None
    unknown: dict[str, str]
    options: dict[str, Any]
    is_refittable: bool
    has_weights: bool
    changes: list[str]
    metadata: dict[str, str]
    build_log_sha256: str
    seconds: float
    versions: dict[str, str | None]

    @property
    def brings_code(self) -> bool:
        """Whether a plugin's library or a lean runtime lies inside, which TensorRT runs only where it is allowed to."""
        return self.plugins.form == "embedded" or bool(self.options.get("version_compatible"))

    def rebuild_command(self) -> str:
        """What to type to build the engine again; DIR is the folder the model was saved in."""
        words = ["vitslim", "export", "DIR", "--to", self.flavor, "--precision", self.precision]
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif isinstance(value, list | tuple):
                words += [option, ":".join(map(str, value))]
            elif value not in (None, False) and name not in ("flavor", "precision"):
                words += [option, str(value)]
        return shlex.join([*words, "--overwrite"])


def record_path(engine: str | Path) -> Path:
    """Where the JSON of an engine lies: ``model.engine.json`` beside ``model.engine``."""
    return Path(engine).with_name(Path(engine).name + ".json")


def read_record(engine: str | Path) -> EngineRecord:
    """The JSON beside an engine.

    Raises:
        CheckpointError: the engine or its JSON is missing, damaged or of a later format.
    """
    engine, path = Path(engine), record_path(engine)
    if not engine.is_file():
        raise CheckpointError(f"{engine} does not exist; build it with `vitslim export DIR --to tensorrt`")
    if not path.is_file():
        raise CheckpointError(
            f"{engine.name} has no {path.name} beside it, without which nobody knows on what it runs; "
            "copy both files, or build the engine again with `vitslim export DIR --to tensorrt`"
        )
    document: Any = read_json(path)
    written = document.get("format") if isinstance(document, dict) else None
    if written != ENGINE_FORMAT:
        raise CheckpointError(f"{path.name} has format {written!r}, wanted {ENGINE_FORMAT}; another vitslim wrote it")
    try:
        return EngineRecord.model_validate(document)
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(map(str, details["loc"]))
        raise CheckpointError(f"{path.name} is damaged ({where}: {details['msg']}); build the engine again") from None


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, read chunk by chunk."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
