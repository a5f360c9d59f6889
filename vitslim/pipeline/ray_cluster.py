"""Recipes as tasks of a Ray cluster, whose machines need no file system in common."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError, VitslimError
from vitslim.files import atomic_folder, read_json, write_json, write_text
from vitslim.pipeline.folder import RECIPE_FILE, STAGES_FILE, RunFolder
from vitslim.pipeline.packing import PackedRecipe, pack, read_files, write_files
from vitslim.progress import Progress, ProgressCallback
from vitslim.recipe import Recipe, write_yaml

CLUSTER_FILE = "cluster.json"
"""In the folder of a run that a cluster did: the recipe as it was sent, and the stages that came back."""

ATTEMPTS = 4  # of a task whose worker was lost: Ray's default of three retries

_POLL_SECONDS = 0.2
_ADDRESS = re.compile(r"local|auto|ray://[^\s/]+:\d+")


def run_on_cluster(
    recipes: Mapping[str, Recipe], root: Path, address: str, *, overwrite: bool, progress: ProgressCallback
) -> None:
    """Run every recipe as a task of a Ray cluster and put what it leaves into its own folder ``root/name``.

    A task takes one core, or one GPU where the recipe's device is one, whichever it is. The files that a recipe names
    travel with it, see ``pack``; the workers need vitslim, and the folder or data set that ``data.source`` names under
    the same name. A folder is replaced as a whole once its run is done; a run that is done is not sent again.

    A task whose worker is lost, with its process or its machine, begins anew on another one. An error of a run is
    raised: what has not begun is then taken back, and what is under way is waited for, as in ``run_side_by_side``.

    Args:
        address: ``auto`` (the cluster that this machine belongs to), ``ray://host:port`` of another, or ``local``,
            which starts one of this machine's cores and GPUs and ends it. Where this process is connected to a cluster
            already, that one is used.

    Raises:
        ConfigError: the address is none, or a folder holds something else and ``overwrite`` was not given.
        MissingDependencyError: Ray is not installed, the cluster cannot be reached or has no GPU for those that want
            one, or its machines lack vitslim.
        CheckFailedError: a task lost its worker every time.
        VitslimError: as ``run`` does.
    """
    ray = _import_ray()
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"ray={address!r} is no address; wanted local, auto or ray://host:port")
    packed: dict[str, PackedRecipe] = {}
    for name, recipe in recipes.items():
        packed[name] = _for_any_gpu(pack(recipe))
        if _is_done(root / name, packed[name]):
            progress(Progress(name, 1, 1, "done before"))
            del packed[name]
        else:
            RunFolder(root / name).check(write_yaml(recipe), overwrite=overwrite)
    if not packed:
        return
    with _connected(ray, address):
        _require_gpu(ray, address, packed)

        def keep(name: str, files: Mapping[str, bytes]) -> None:
            _write(root / name, files, recipes[name], packed[name])

        try:
            _run_all(ray, packed, keep, progress)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"Ray cluster at {address!r}: {error} on one of its machines; install there the vitslim that runs here"
            ) from error


def _run_all(
    ray: Any,
    packed: Mapping[str, PackedRecipe],
    keep: Callable[[str, Mapping[str, bytes]], None],
    progress: ProgressCallback,
) -> None:
    """Hand over the content of each run's folder as it ends; raise the first error when all have."""
    with _reports(ray) as reports:
        names = _submit(ray, packed, reports)
        begun: set[str] = set()
        failure: Exception | None = None
        try:
            while names:
                done, _ = ray.wait(list(names), num_returns=1, timeout=_POLL_SECONDS)
                _pass_on(reports, progress, begun)
                for task in done:
                    name = names.pop(task)
                    try:
                        files = ray.get(task)
                    except ray.exceptions.TaskCancelledError:
                        continue
                    except ray.exceptions.RayError as error:
                        failure = failure or _explained(ray, name, error)
                        for other in [other for other, its_name in names.items() if its_name not in begun]:
                            ray.cancel(other)
                    else:
                        keep(name, files)
        finally:
            for task in names:
                ray.cancel(task, force=True)
        if failure is not None:
            raise failure


def _submit(ray: Any, packed: Mapping[str, PackedRecipe], reports: Any) -> dict[Any, str]:
    """Send all; what several recipes name is sent once."""
    sent: dict[str, Any] = {}
    tasks: dict[Any, str] = {}
    for name, one in packed.items():
        for place, path in one.files.items():
            if place not in sent:
                sent[place] = ray.put(path.read_bytes())
        wanted = {"num_gpus": 1} if one.recipe.device == "cuda" else {"num_cpus": 1}
        task = ray.remote(_run).options(name=name, max_retries=ATTEMPTS - 1, **wanted)
        tasks[task.remote(name, one.recipe, {place: sent[place] for place in one.files}, reports)] = name
    return tasks


def _run(name: str, recipe: Recipe, files: Mapping[str, Any], reports: Any) -> dict[str, bytes]:
    """In a worker: run the recipe in a folder that is removed afterwards, and give that folder's content."""
    import ray
    import torch

    from vitslim.pipeline.running import run

    def report(one: Progress) -> None:
        reports.put((name, replace(one, stage=f"{name}: {one.stage}", metrics=dict(one.metrics))))

    reports.put((name, None))
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="vitslim-") as place, contextlib.chdir(place):
        write_files(Path(), dict(zip(files, ray.get(list(files.values())), strict=True)))
        run(recipe, name, progress=report)
        return read_files(Path(name))


def _write(folder: Path, files: Mapping[str, bytes], recipe: Recipe, packed: PackedRecipe) -> None:
    """Put the content of a run's folder into its place, with the paths that hold here."""
    with atomic_folder(folder) as scratch:
        write_files(scratch, files)
        write_text(scratch / RECIPE_FILE, write_yaml(recipe))
        write_json(scratch / CLUSTER_FILE, _record(scratch, packed))


def _is_done(folder: Path, packed: PackedRecipe) -> bool:
    """Whether the folder holds what a cluster made of this same recipe, and nothing was run there since."""
    try:
        return read_json(folder / CLUSTER_FILE) == _record(folder, packed)
    except CheckpointError:
        return False


def _record(folder: Path, packed: PackedRecipe) -> dict[str, Any]:
    return {"recipe": packed.recipe.model_dump(mode="json"), "stages": read_json(folder / STAGES_FILE)}


def _for_any_gpu(packed: PackedRecipe) -> PackedRecipe:
    """Ray shows a task the GPU that it gave it, and no other."""
    is_cuda = packed.recipe.device.startswith("cuda")
    return replace(packed, recipe=packed.recipe.model_copy(update={"device": "cuda" if is_cuda else "cpu"}))


def _pass_on(reports: Any, progress: ProgressCallback, begun: set[str]) -> None:
    for name, one in reports.get_nowait_batch(reports.size()):
        begun.add(name)
        if one is not None:
            progress(one)


def _explained(ray: Any, name: str, error: Exception) -> Exception:
    """What a task's error means to the one who asked for its recipe."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause: Any = getattr(error, "cause", None)
        return cause if isinstance(cause, VitslimError | ModuleNotFoundError) else error
    what = " ".join(str(error).split())
    return CheckFailedError(
        f"{name} lost its worker {ATTEMPTS} times ({type(error).__name__}: {what}); memory that ran out is the usual "
        "cause, and Ray's log tells it: run fewer at a time, or start workers with more memory"
    )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("runs on a Ray cluster need Ray: pip install 'vitslim[ray]'") from None
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Generator[None]:
    """Connect to a cluster, and leave it at the end; a connection that is there already is used and left alone."""
    if ray.is_initialized():
        yield
        return
    # A cluster that we start ourselves sends no statistics of its use to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **where)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise MissingDependencyError(
            f"no Ray cluster can be reached at {address!r} ({error}); start one with: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_gpu(ray: Any, address: str, packed: Mapping[str, PackedRecipe]) -> None:
    """Refuse what would wait for ever."""
    wanting = [name for name, one in packed.items() if one.recipe.device == "cuda"]
    if wanting and not ray.cluster_resources().get("GPU", 0):
        raise MissingDependencyError(
            f"{', '.join(wanting)}: device cuda was asked for, but no machine of the Ray cluster at {address!r} has a "
            "GPU; start a worker on one that has, or use cpu"
        )


@contextmanager
def _reports(ray: Any) -> Generator[Any]:
    """A queue from the workers to this process, on this machine, which lives as long as this process does."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    try:
        yield queue
    finally:
        queue.shutdown(force=True)
