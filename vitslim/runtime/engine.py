"""What stands in the JSON file beside an engine, and whether the engine fits the machine it is opened on."""

import hashlib
import shlex
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.files import read_json
from vitslim.runtime.machine import Machine
from vitslim.runtime.runner import Precision
from vitslim.runtime.tensorrt_api import TITLES, Flavor, version_numbers
from vitslim.shapes import Result

ENGINE_FORMAT = 1
_CHUNK = 2**20


class TensorProfile(Result):
    """The shapes that one input may have: ``opt`` is the one the engine was tuned for."""

    name: str
    min: list[int]
    opt: list[int]
    max: list[int]


class PluginUse(Result):
    """Which plugins the engine calls, and the digest of the library that had them when it was built."""

    used: list[str] = Field(default_factory=list)
    library_sha256: str | None = None


class FusedMha(Result):
    """How many of the attentions in the ONNX file became one fused kernel."""

    found: int
    expected: int

    def __str__(self) -> str:
        return f"{self.found}/{self.expected}"


class EngineRecord(Result):
    """engine.json: what an engine is bound to, what it promises, how it was made.

    ``gpu``, ``compute_capability``, ``driver``, ``cuda`` are ``None`` for a TensorRT-RTX engine, which is compiled to
    the end on the GPU that runs it. ``layers`` counts the engine's layers by type and by the type of their numbers, as
    ``layers_source`` told them; ``matrix_types`` counts the network's products with weights (linear layers,
    convolutions) by the type they are computed in. Where TensorRT tells too little, ``layers`` and ``fused_mha`` are
    ``None`` and ``unknown`` says why. ``changes`` is what was mended in the ONNX file before the build.
    """

    format: int = ENGINE_FORMAT
    flavor: Flavor
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    onnx_sha256: str
    engine_sha256: str
    precision: Precision
    profiles: list[TensorProfile]
    plugins: PluginUse
    layers: dict[str, dict[str, int]] | None
    layers_source: str | None
    matrix_types: dict[str, int]
    fused_mha: FusedMha | None
    unknown: dict[str, str]
    options: dict[str, Any]
    changes: list[str]
    metadata: dict[str, str]
    build_log_sha256: str
    seconds: float
    versions: dict[str, str | None]

    def rebuild_command(self) -> str:
        """What to type to build the engine again; DIR is the folder the model was saved in."""
        words = ["vitslim", "export", "DIR", "--to", "tensorrt", "--flavor", self.flavor, "--precision", self.precision]
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
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{path.name} is damaged ({where}: {fault['msg']}); build the engine again") from None


def require_fit(engine: str | Path, record: EngineRecord, machine: Machine, installed: str | None) -> None:
    """Refuse an engine that was cut, changed, or built for something else than this machine.

    Args:
        engine: the engine file.
        record: what ``read_record`` gave for it.
        machine: where it shall run.
        installed: the version of the record's flavor that is installed here, ``None`` for none.

    Raises:
        CheckpointError: the file is not the one that was built, or was built for another GPU or version.
        MissingDependencyError: this flavor of TensorRT, or a GPU, is not here.
    """
    engine = Path(engine)
    if file_sha256(engine) != record.engine_sha256:
        raise CheckpointError(
            f"{engine.name} is not the file that {record_path(engine).name} describes: it was cut short, changed, or "
            f"its build was interrupted; build it again: {record.rebuild_command()}"
        )
    title = TITLES[record.flavor]
    if installed is None:
        raise MissingDependencyError(
            f"{engine.name} needs {title} {record.tensorrt}, which is not installed: "
            f"pip install 'vitslim[{record.flavor}]'"
        )
    if machine.gpu is None:
        raise MissingDependencyError(f"{engine.name} needs an NVIDIA GPU and its driver, none is usable here")
    differences = misfits(record, machine, installed)
    if differences:
        raise CheckpointError(
            f"{engine.name} does not fit this machine: {'; '.join(differences)}. "
            f"Engines are bound to these; build it here: {record.rebuild_command()}"
        )


def misfits(record: EngineRecord, machine: Machine, installed: str) -> list[str]:
    """What of a machine differs from the one an engine was built for, in so far as it matters."""
    found: list[str] = []
    if not _version_fits(record, installed):
        found.append(f"built with {TITLES[record.flavor]} {record.tensorrt}, here is {installed}")
    if record.gpu is not None and record.compute_capability != machine.compute_capability:
        found.append(f"built for compute capability {record.compute_capability}, here is {machine.compute_capability}")
    # TensorRT-RTX compiles its kernels on the machine itself, for the capability; TensorRT tunes for the very GPU.
    if record.flavor == "tensorrt" and record.gpu != machine.gpu:
        found.append(f"built for {record.gpu}, here is {machine.gpu}")
    return found


def check_profile(shape: tuple[int, ...], profile: TensorProfile) -> None:
    """Refuse an input whose shape the engine was not built for.

    Raises:
        ConfigError: a size lies outside the profile.
    """
    fits = len(shape) == len(profile.min) and all(
        least <= size <= most for least, size, most in zip(profile.min, shape, profile.max, strict=True)
    )
    if not fits:
        least, most = ("x".join(map(str, sizes)) for sizes in (profile.min, profile.max))
        given = "x".join(map(str, shape))
        raise ConfigError(
            f"input '{profile.name}' takes {least} to {most}, given {given}; split or resize the images, or build "
            "the engine for more with --batch min:opt:max or --image-size min:opt:max"
        )


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _version_fits(record: EngineRecord, installed: str) -> bool:
    if record.options.get("version_compatible"):
        # Such an engine carries its runtime and also runs in later versions.
        return version_numbers(installed) >= version_numbers(record.tensorrt)
    return installed == record.tensorrt
