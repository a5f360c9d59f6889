"""Whether an engine fits the machine, and the images, that it is opened for."""

import shlex
from pathlib import Path

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime.engine import EngineRecord, TensorProfile, file_sha256, record_path
from vitslim.runtime.machine import Machine
from vitslim.runtime.tensorrt_api import TITLES, version_numbers


def require_fit(engine: str | Path, record: EngineRecord, machine: Machine, installed: str | None) -> None:
    """Refuse an engine that was cut, changed, or built for something else than this machine.

    Args:
        engine: the engine file.
        record: what ``read_record`` gave for it.
        machine: where it should run.
        installed: the version of the record's flavor that is installed here, ``None`` for none.

    Raises:
        CheckpointError: the file is not the one that was built, has no weights yet, or was built for another GPU or
            version.
        MissingDependencyError: this flavor of TensorRT, or a GPU, is not here.
    """
    engine = Path(engine)
    require_whole(engine, record)
    require_weights(engine, record)
    require_machine(engine, record, machine, installed)


def require_machine(engine: Path, record: EngineRecord, machine: Machine, installed: str | None) -> None:
    """Refuse an engine that was built for something else than this machine; see ``require_fit``."""
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


def require_whole(engine: Path, record: EngineRecord) -> None:
    """Refuse an engine file that is not the one that was built.

    Raises:
        CheckpointError: its digest differs.
    """
    if file_sha256(engine) != record.engine_sha256:
        raise CheckpointError(
            f"{engine.name} is not the file that {record_path(engine).name} describes: it was cut short, changed, or "
            f"its build was interrupted; build it again: {record.rebuild_command()}"
        )


def require_weights(engine: Path, record: EngineRecord) -> None:
    """Refuse an engine that was stored without its weights and not given any since.

    Raises:
        CheckpointError: with the command that gives them back.
    """
    if not record.has_weights:
        raise CheckpointError(
            f"{engine.name} was stored without its weights (--strip-plan); give them back on the GPU that runs it: "
            f"vitslim refit {shlex.quote(str(engine))} --from DIR"
        )


def require_refittable(engine: Path, record: EngineRecord) -> None:
    """Refuse an engine whose weights cannot be exchanged.

    Raises:
        ConfigError: with the command that builds one whose weights can.
    """
    if not record.is_refittable:
        raise ConfigError(
            f"{engine.name} has fixed weights: it was built without --refit, or stripped and refitted; build it again: "
            f"{record.rebuild_command()}{'' if record.options.get('refit') else ' --refit'}"
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


def driver_difference(record: EngineRecord, machine: Machine) -> str:
    """A clause on drivers for an engine that does not load; an older driver alone is no reason to refuse one."""
    if None in (record.driver, machine.driver) or record.driver == machine.driver:
        return ""
    return f" (it was built with driver {record.driver}, here is {machine.driver})"


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


def require_plugins(path: Path, record: EngineRecord, library: str | Path | None) -> None:
    """Refuse an engine whose plugins lie outside it, in a library that is not here or is another one.

    Raises:
        MissingDependencyError: no library.
        CheckpointError: not the library that the engine was built with.
    """
    if not record.plugins.needs_library:
        return
    names = ", ".join(record.plugins.used)
    if library is None:
        raise MissingDependencyError(
            f"{path.name} calls the plugins {names}, whose library is not here: make it with `vitslim plugin build`, "
            "or name it in VITSLIM_PLUGIN_LIBRARY; or build the engine with --plugins auto, to carry it, or off"
        )
    if record.plugins.library_sha256 not in (None, file_sha256(library)):
        raise CheckpointError(
            f"{path.name} was built with another build of {Path(library).name} (its digest differs from the one in "
            f"{record_path(path).name}); bring that library, or build the engine again: {record.rebuild_command()}"
        )


def _version_fits(record: EngineRecord, installed: str) -> bool:
    if record.options.get("version_compatible"):
        # Such an engine carries its runtime and also runs in later versions.
        return version_numbers(installed) >= version_numbers(record.tensorrt)
    return installed == record.tensorrt
