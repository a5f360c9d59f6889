"""The competitors of one case: the dense model, its conversions, simple baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from vitslim.bench.baselines import BASELINES
from vitslim.bench.result import Skipped
from vitslim.bench.roofline import Traffic, count_traffic
from vitslim.bench.session import Candidate, RunConfig, candidates
from vitslim.bench.suite import DENSE, SMALLER, Case, Kind
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.models import open_model
from vitslim.pipeline.suite.preset import Competitor, SuitePreset


@dataclass
class Competitors:
    """Which models are compared, and which could not be and why."""

    candidates: dict[str, Candidate] = field(default_factory=dict[str, Candidate])
    traffic: dict[str, Traffic] = field(default_factory=dict[str, Traffic])
    skipped: list[Skipped] = field(default_factory=list[Skipped])


def open_competitors(case: Case, preset: SuitePreset) -> Competitors:
    """Build every competitor of a case with random weights, on which speed does not depend.

    Raises:
        VitslimError: the dense model itself cannot be built.
    """
    config, found = RunConfig(case.backend, case.precision), Competitors()
    dense = open_dense(case.model, case.image_size, preset)
    for name in (DENSE, *case.competitors):
        try:
            model = _competitor(name, dense, case, preset)
            candidate, traffic = candidates({name: model}), count_traffic(model)
        except Exception as error:  # a competitor that cannot be had is named, the others go on
            if name == DENSE:
                raise
            found.skipped.append(config.skip(error, model=name))
        else:
            found.candidates |= candidate
            found.traffic[name] = traffic
    return found


def open_competitor(name: str, case: Case, preset: SuitePreset) -> nn.Module:
    """One competitor of a case, dense among them, just as ``open_competitors`` builds it."""
    return _competitor(name, open_dense(case.model, case.image_size, preset), case, preset)


def open_dense(name: str, image_size: int, preset: SuitePreset) -> nn.Module:
    """A model of the preset with random weights, the same at every call."""
    entry = preset.models[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_model(entry.name or name, pretrained=False, img_size=image_size or None, **entry.options)


def kind_of(name: str, conversions: Mapping[str, Competitor]) -> Kind:
    """What sort of competitor a name stands for."""
    if name in conversions:
        return "pair" if len(conversions[name].convert) > 1 else "method"
    return "baseline" if name in (*BASELINES, SMALLER) else "dense"


def _competitor(name: str, dense: nn.Module, case: Case, preset: SuitePreset) -> nn.Module:
    if name == DENSE:
        return dense
    if name in preset.competitors:
        model = dense
        for method, options in preset.competitors[name].steps:
            # With the method's own start: what is chosen, and numbers near zero, have their say in the time.
            model = convert(model, method, **options)
        return model.eval()
    if name == SMALLER:
        smaller = preset.models[case.model].smaller
        if smaller is None:
            raise ConfigError(f"{case.model} has no smaller sibling in this preset")
        return open_dense(smaller, case.image_size, preset)
    return BASELINES[name](dense).eval()
