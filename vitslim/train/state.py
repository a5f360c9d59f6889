"""The state of an interrupted run: one safetensors file, replaced atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from vitslim import files
from vitslim.errors import CheckpointError
from vitslim.shapes import Config

STATE_FILE = "state.safetensors"
FORMAT = 1

# What may differ between a run and its continuation: none of it changes what is learned from the next batch.
FREE_TO_CHANGE = frozenset(
    {"max_minutes", "log_every", "checkpoint_every", "eval_every_epochs", "tensorboard", "compile"}
)


class RunState(Config):
    """Where a run stands: everything but the tensors."""

    format: int = FORMAT
    stage: str
    settings: dict[str, Any]  # the config of the run, as JSON
    data: dict[str, Any]  # what the training images are: other images would not continue the run
    facts: dict[str, str] = Field(default_factory=dict)  # whatever else must be the same, as digests of weights
    processes: int  # that train together, each on a batch of its own
    step: int = 0  # optimiser steps done
    epoch: int = 0
    batch: int = 0  # batches taken from this pass
    images: int = 0  # images trained on
    seconds: float = 0.0
    finished: bool = False
    evaluations: tuple[dict[str, float], ...] = ()
    unreadable: tuple[str, ...] = ()  # names of the training images met so far that could not be read


def save_state(path: Path, state: RunState, model: nn.Module, average: nn.Module | None, optimizer: Optimizer) -> None:
    """Write the run to ``path``; until the new file is whole, the old one stays."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    beside = {str(index): values for index, values in optimizer.state_dict()["state"].items()}
    # Some optimisers (LAMB, Adan) count their steps in the groups instead of beside each parameter.
    groups = {str(index): _without_parameters(group) for index, group in enumerate(optimizer.param_groups)}
    scalars: dict[str, dict[str, dict[str, Any]]] = {"optimizer": {}, "groups": {}}
    for part, entries in (("optimizer", beside), ("groups", groups)):
        for index, values in entries.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{part}.{index}.{key}"] = value
                else:
                    scalars[part].setdefault(index, {})[key] = value
    metadata = {"run": state.model_dump_json(), **{part: json.dumps(found) for part, found in scalars.items()}}
    files.write_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def read_run_state(path: Path) -> RunState:
    """Read where the run at ``path`` stands, without its tensors.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return RunState.model_validate_json((file.metadata() or {})["run"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold the state of a run ({error}); remove it to start anew") from None


def restore_state(path: Path, model: nn.Module, average: nn.Module | None, optimizer: Optimizer | None) -> None:
    """Put the tensors of the run at ``path`` back into the model, its average and the optimiser.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
            beside, groups = (_entries(part, tensors, metadata) for part in ("optimizer", "groups"))
        _fill_(model, _below("model.", tensors))
        if average is not None:
            _fill_(average, _below("average.", tensors))
        if optimizer is not None:
            running = optimizer.state_dict()["param_groups"]
            groups = [{**own, **groups.get(index, {})} for index, own in enumerate(running)]
            optimizer.load_state_dict({"state": beside, "param_groups": groups})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this run ({error}); remove it to start anew") from None


def _fill_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    # torch fills what fits before it complains, and then names every tensor that does not.
    here, there = ({name: tuple(value.shape) for name, value in one.items()} for one in (model.state_dict(), tensors))
    misfits = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    if misfits:
        first = misfits[0]
        raise ValueError(
            f"it is of another model: {len(misfits)} of {len(here)} tensors differ, the first is {first}, "
            f"{there.get(first, 'missing')} in the file and {here.get(first, 'missing')} in this model"
        )
    model.load_state_dict(dict(tensors))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _entries(part: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """What an optimiser kept beside each parameter, or in each group, by their numbers."""
    entries: dict[int, dict[str, Any]] = {int(index): values for index, values in json.loads(metadata[part]).items()}
    for name, tensor in _below(f"{part}.", tensors).items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = tensor
    return entries


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    # Pairs such as the betas would come back from JSON as lists; they are settings, which the running optimiser has.
    return {name: value for name, value in group.items() if isinstance(value, int | float | Tensor)}


def check_same_run(path: Path, found: RunState, wanted: RunState) -> None:
    """Refuse to continue a run under other settings: it would be neither the old run nor a new one.

    Args:
        found: what lies at ``path``.
        wanted: the run that is to be made, at its first step.

    Raises:
        CheckpointError: they differ in what decides the next step.
    """
    if found.processes != wanted.processes:
        raise CheckpointError(
            f"{path} belongs to a run of {found.processes} processes, now there are {wanted.processes}: every step "
            f"would see another number of images; resume with {found.processes} (torchrun --nproc-per-node "
            f"{found.processes}), or start anew without resume"
        )
    was, now = _decisive(found), _decisive(wanted)
    changes = [
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if changes:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(changes)}; resume with the old settings, models and images, "
            "or start anew without resume"
        )


def _decisive(state: RunState) -> dict[str, Any]:
    settings = {name: value for name, value in state.settings.items() if name not in FREE_TO_CHANGE}
    data = {f"data.{name}": value for name, value in state.data.items()}
    return {"stage": state.stage, **settings, **data, **state.facts}
