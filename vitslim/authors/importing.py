"""Authors' checkpoints onto our models, with every tensor accounted for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.authors import evo_vit, skipat, sparsifiner, sret
from vitslim.authors.key_mapping import ImportReport, KeyMapping, Source
from vitslim.errors import CheckpointError, ConfigError
from vitslim.methods import convert
from vitslim.models import read_weights
from vitslim.opening import ModelLike, is_named, open_model
from vitslim.registry import Registry
from vitslim.shapes import AnyPath, AtLeastOne
from vitslim.trunk import is_converted, trunk_of

SOURCES: Registry[Source] = Registry("source of checkpoints", "vitslim.sources")
"""Whose checkpoints can be imported, by the name that users type."""

for _row in (skipat.SOURCE, evo_vit.SOURCE, sret.SOURCE, sparsifiner.SOURCE):
    SOURCES.register(_row.name, _row)


class Imported(NamedTuple):
    """The model, in eval mode, and what became of every tensor."""

    model: nn.Module
    report: ImportReport


@checked
def import_checkpoint(
    checkpoint: Mapping[str, Any] | AnyPath,
    source: str,
    base: ModelLike,
    *,
    img_size: AtLeastOne | tuple[AtLeastOne, AtLeastOne] | None = None,
    base_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Imported:
    """Bring a checkpoint that a method's authors released onto our model.

    The number of heads is in no state dict: it is the base's, as are image size and preprocessing.

    Args:
        checkpoint: the authors' state dict, or a file of it, which is read without running code inside it. Of a file
            with several, the one is taken that the authors' own loader takes: ``model`` where there is one, also beside
            a moving average, and for ``skipat`` otherwise ``state_dict_ema`` before ``state_dict``.
        source: ``skipat``, ``evo_vit``, ``sparsifiner`` or ``sret``.
        base: timm name of the dense model (for ``sret`` of the pyramid), whose classes follow the checkpoint, or a
            dense model or saved folder; its weights are not read, and it is left as it is.
        img_size: pixels of a named base, where the checkpoint is not of its usual ones.
        base_options: further arguments of a named base, as ``patch_size``.
        options: what the file does not say, fields of the method's config, as ``layers`` or ``keep_rate``; for ``sret``
            with a named base the pyramid's arguments, as ``sliced``.

    Raises:
        ConfigError: unknown source, base or option, or a base that is converted already.
        CheckpointError: an unreadable file, tensors missing or left over, or of another shape than the base's.
    """
    row = SOURCES.get(source)
    state = _read(checkpoint, row)
    inferred = row.infer(state)
    given = {**({} if img_size is None else {"img_size": img_size}), **(base_options or {})}
    dense = _opened(base, state, given if row.method else {**given, **options})
    if row.method is None:
        model = copy.deepcopy(dense)
    else:
        model = convert(dense, row.method, **{**inferred, **options})
        options = dict(trunk_of(model).history[-1].options)
    mapping = KeyMapping(state)
    row.map_keys(mapping, model)
    _require_fit(mapping, model, source)
    model.load_state_dict(mapping.filled)
    report = ImportReport(source=source, method=row.method, options=options, used=mapping.used, dropped=mapping.dropped)
    return Imported(model.eval(), report)


def _read(checkpoint: Mapping[str, Any] | str | Path, row: Source) -> Mapping[str, Tensor]:
    if not isinstance(checkpoint, Mapping):
        return read_weights(Path(checkpoint), containers=row.containers)
    odd = [name for name, value in checkpoint.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{odd[0]!r} holds a {type(checkpoint[odd[0]]).__name__}, not a tensor; pass the state dict itself"
        )
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}


def _opened(base: ModelLike, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module:
    if is_named(base):
        classes = len(state["head.weight"]) if "head.weight" in state else 0
        return open_model(base, pretrained=False, num_classes=classes, **options)
    dense = open_model(base, **options)
    if is_converted(dense):
        done = ", ".join(entry.method for entry in trunk_of(dense).history)
        raise ConfigError(f"the base was already converted ({done}); give the dense model, or its timm name")
    return dense


def _require_fit(mapping: KeyMapping, model: nn.Module, source: str) -> None:
    left = mapping.unexpected()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    odd = [name for name, tensor in mapping.filled.items() if tuple(tensor.shape) != wanted[name]]
    errors: list[str] = []
    if mapping.missing:
        errors.append(f"{len(mapping.missing)} tensors are missing, first {mapping.missing[0]!r}")
    if left:
        errors.append(f"{len(left)} are unexpected, first {left[0]!r}")
    if odd and not errors:
        theirs = " + ".join(given for given, own in mapping.used.items() if own == odd[0])
        errors.append(
            f"{len(odd)} tensors have another shape, first {theirs} with {tuple(mapping.filled[odd[0]].shape)} where "
            f"the base wants {wanted[odd[0]]}; choose a base of that width, depth, image size and number of classes"
        )
    if errors:
        raise CheckpointError(f"this checkpoint does not fit {source} on this base: {'; '.join(errors)}")
