"""The competitors of one case: the dense model, its conversions, simple baselines."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vitslim.bench.result import Skipped
from vitslim.bench.session import Candidate, RunConfig, candidates
from vitslim.bench.suite import DENSE, SMALLER, Case, Kind
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.suite.preset import Competitor, SuitePreset
from vitslim.plans import read_plan


def open_competitors(case: Case, preset: SuitePreset) -> tuple[dict[str, Candidate], list[Skipped]]:
    """Build every competitor of a case with random weights, on which speed does not depend; and which could not be.

    Raises:
        VitslimError: the dense model itself cannot be built.
    """
    dense, skipped = open_dense(case.model, case.image_size, preset), list[Skipped]()
    found = candidates({DENSE: dense})
    for name in case.competitors:
        try:
            found |= candidates({name: _competitor(name, dense, case, preset)})
        except Exception as error:  # a competitor that cannot be had is named, the others go on
            skipped.append(RunConfig(case.backend, case.precision).skip(error, model=name))
    return found, skipped


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
    if name in (*BASELINES, SMALLER):
        return "baseline"
    if name not in conversions:
        return "dense"
    return "pair" if len(conversions[name].convert) > 1 else "method"


def _competitor(name: str, dense: nn.Module, case: Case, preset: SuitePreset) -> nn.Module:
    if name == DENSE:
        return dense
    if name in preset.competitors:
        model, competitor = dense, preset.competitors[name]
        if competitor.plan is not None:
            return convert(model, plan=read_plan(competitor.plan)).eval()
        for method, options in competitor.steps:
            # With the method's own start: what is chosen, and numbers near zero, have their say in the time.
            model = convert(model, method, **options)
        return model.eval()
    if name == SMALLER:
        smaller = preset.models[case.model].smaller
        if smaller is None:
            raise ConfigError(f"{case.model} has no smaller sibling in this preset")
        return open_dense(smaller, case.image_size, preset)
    return BASELINES[name](dense).eval()
