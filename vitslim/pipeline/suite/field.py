"""The competitors of one piece: the dense model, its conversions, simple baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from vitslim.bench.contest import Cell, Entrant, entrants
from vitslim.bench.result import Skipped
from vitslim.bench.roofline import Traffic, count_traffic
from vitslim.bench.suite import DENSE, SMALLER, Kind, Piece
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.suite.preset import Preset


@dataclass
class Runners:
    """Who takes part, and who could not and why."""

    entrants: dict[str, Entrant] = field(default_factory=dict[str, Entrant])
    traffic: dict[str, Traffic] = field(default_factory=dict[str, Traffic])
    skipped: list[Skipped] = field(default_factory=list[Skipped])


def open_runners(piece: Piece, preset: Preset) -> Runners:
    """Build every competitor of a piece with random weights, on which speed does not depend.

    Raises:
        VitslimError: the dense model itself cannot be built.
    """
    cell = Cell(piece.backend, piece.precision)
    found = Runners()
    dense = open_dense(piece.model, piece.image_size, preset)
    found.entrants |= entrants({DENSE: dense})
    found.traffic[DENSE] = count_traffic(dense)
    for name in piece.competitors:
        try:
            model = _competitor(name, dense, piece, preset)
            entrant, traffic = entrants({name: model}), count_traffic(model)
        except Exception as error:  # a competitor that cannot be had is named, the others go on
            found.skipped.append(cell.skip(error, model=name))
        else:
            found.entrants |= entrant
            found.traffic[name] = traffic
    return found


def open_competitor(name: str, piece: Piece, preset: Preset) -> nn.Module:
    """One competitor of a piece, dense among them, just as ``open_runners`` builds it."""
    dense = open_dense(piece.model, piece.image_size, preset)
    return dense if name == DENSE else _competitor(name, dense, piece, preset)


def open_dense(name: str, image_size: int, preset: Preset) -> nn.Module:
    """A model of the preset with random weights, the same at every call."""
    entry = preset.models[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_model(entry.name or name, pretrained=False, img_size=image_size or None, **entry.options)


def kind_of(name: str, preset: Preset) -> Kind:
    """What sort of competitor a name stands for."""
    if name == DENSE:
        return "dense"
    if name in preset.competitors:
        return "pair" if len(preset.competitors[name].convert) > 1 else "method"
    return "baseline"


def _competitor(name: str, dense: nn.Module, piece: Piece, preset: Preset) -> nn.Module:
    if name in preset.competitors:
        model = dense
        for entry in preset.competitors[name].convert:
            # With the method's own start: what is chosen, and numbers near zero, have their say in the time.
            model = convert(model, str(entry["method"]), **{key: entry[key] for key in entry if key != "method"})
        return model.eval()
    if name == SMALLER:
        smaller = preset.models[piece.model].smaller
        if smaller is None:
            raise ConfigError(f"{piece.model} has no smaller sibling in this preset")
        return open_dense(smaller, piece.image_size, preset)
    return BASELINES[name](dense).eval()
