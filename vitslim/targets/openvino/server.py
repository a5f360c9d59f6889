"""OpenVINO Model Server as a target: a model repository out of a file that was exported before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import atomic_folder, read_json, write_json
from vitslim.runtime import OpenVinoRunner, Precision, Runner
from vitslim.shapes import Result
from vitslim.targets.base import ExportRequest, Opening, Target, register_target, target_of
from vitslim.targets.parity.bisect import Opened
from vitslim.targets.parity.comparing import Form
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.record import export_record_path
from vitslim.targets.triton.readme import images_in_words
from vitslim.targets.triton.repository import check_name

CONFIG, MODELS = "config.json", "model_config_list"
_SERVED = "1/model.xml"
"""In the folder of a model: its first version."""


class ServerRepository(Result):
    """A model in a repository.

    Attributes:
        repository: the folder that the server is given.
        name: of the model, under which clients ask for it.
        files: relative to ``repository``.
        settings: of OpenVINO, for this model.
        command: starts the server.
    """

    repository: Path
    name: str
    files: list[str]
    settings: dict[str, str]
    command: str


@register_target("openvino-server")
class OpenVinoServerTarget(Target):
    """A model in a repository for OpenVINO Model Server; what is served is a file that was exported before."""

    title = "OpenVINO Model Server repository"
    marker = _SERVED
    needs = ("openvino",)
    extra = "openvino"
    serves = ("openvino",)

    def check_path(self, path: Path, *, overwrite: bool) -> None:
        pass  # other models in the repository stay

    def write(
        self,
        request: ExportRequest,
        *,
        artifact: str | Path | None = None,
        name: str | None = None,
        mode: Literal["throughput", "latency"] = "throughput",
    ) -> ServerRepository:
        if request.source is None or not request.source.is_dir():
            raise ConfigError("openvino-server serves what was exported from a saved folder; give that folder")
        if mode not in ("throughput", "latency"):
            raise ConfigError(f"mode={mode!r}: wanted throughput or latency")
        name = request.source.resolve().name if name is None else name
        check_name(name)
        file = Path(artifact) if artifact else _only_file(request.source)
        repository, others = request.path, _other_models(request.path, name, overwrite=request.overwrite)
        with OpenVinoRunner(file) as runner:
            hint = {"INFERENCE_PRECISION_HINT": runner.settings["INFERENCE_PRECISION_HINT"]}
            metadata = runner.metadata
        settings = {"PERFORMANCE_HINT": mode.upper(), **hint}
        entry = {"name": name, "base_path": f"/models/{name}", "target_device": "CPU", "plugin_config": settings}
        written = ServerRepository(
            repository=repository,
            name=name,
            files=[],
            settings=settings,
            command=f"docker run --rm -p 9000:9000 -p 8000:8000 -v {repository.resolve()}:/models:ro "
            f"openvino/model_server --config_path /models/{CONFIG} --port 9000 --rest_port 8000",
        )
        with atomic_folder(repository / name) as folder:
            version = folder / "1"
            version.mkdir()
            for source, target in ((file, "model.xml"), (file.with_suffix(".bin"), "model.bin")):
                shutil.copyfile(source, version / target)
            if export_record_path(file).is_file():
                shutil.copyfile(export_record_path(file), export_record_path(version / "model.xml"))
            (folder / "README.md").write_text(_readme(written, file, metadata), "utf-8")
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        write_json(repository / CONFIG, {MODELS: [*others, {"config": entry}]})
        return written.model_copy(update={"files": [CONFIG, *(f"{name}/{one}" for one in files)]})

    def load(self, path: Path, how: Opening) -> Runner:
        served = path / _SERVED
        return target_of(served).load(served, replace(how, backend=None, name=how.name or path.name))

    def forms(self, path: Path, backend: str | None) -> Iterator[Form]:
        yield from target_of(path / _SERVED).forms(path / _SERVED, None)

    def inside(self, path: Path) -> Opened:
        return target_of(path / _SERVED).inside(path / _SERVED)

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        return target_of(path / _SERVED).guarantee(path / _SERVED, asked, model)

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        return [
            f"wrote {written.repository}/{written.name} ({', '.join(written.files)})",
            f"serve it: {written.command}",
        ]


def _only_file(source: Path) -> Path:
    found = sorted((source / "export").glob("*.xml"))
    if not found:
        raise ConfigError(f"{source} holds no OpenVINO file; run `vitslim export {source} --to openvino` first")
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"{source} holds {names}; name the one to serve (--artifact)")
    return found[0]


def _other_models(repository: Path, name: str, *, overwrite: bool) -> list[Any]:
    """The entries of all other models in a repository."""
    if repository.exists() and not repository.is_dir():
        raise ConfigError(f"model repository {repository} is a file; name a folder")
    if (repository / name).exists() and not overwrite:
        raise ConfigError(
            f"{repository} has a model {name!r} already; pass --overwrite (overwrite=True) or another --name"
        )
    if not (repository / CONFIG).is_file():
        if repository.is_dir() and any(repository.iterdir()) and not overwrite:
            raise ConfigError(
                f"{repository} is not empty and no model repository (it has no {CONFIG}); pass --overwrite "
                "(overwrite=True) to write beside what is there, or another folder"
            )
        return []
    listed = read_json(repository / CONFIG)
    entries: Any = listed.get(MODELS) if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise CheckpointError(f"{repository / CONFIG} has no list {MODELS!r}; mend it, or name another folder")
    return [one for one in entries if one.get("config", {}).get("name") != name]


def _readme(written: ServerRepository, file: Path, metadata: Mapping[str, str]) -> str:
    """How this model is served and called, in Markdown."""
    settings = ", ".join(f"{key} {value}" for key, value in written.settings.items())
    return f"""# {written.name}

`{file.name}`, written by `vitslim export` for OpenVINO Model Server, which runs it with {settings}.

```bash
{written.command}
curl localhost:8000/v2/models/{written.name}
```

{images_in_words(metadata)}
Requests follow the KServe protocol, version 2, as those to Triton Inference Server: gRPC on port 9000, HTTP on 8000.
"""
