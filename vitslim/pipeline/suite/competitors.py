"""The competitors of one case: the dense model, its conversions, simple baselines."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import nullcontext
from itertools import product

import torch
from torch import nn

from vitslim.bench.environment import usable_cores
from vitslim.bench.suite import DENSE, SMALLER, Case, Kind
from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import TritonMode, triton_mode
from vitslim.methods import convert
from vitslim.models import preprocessing
from vitslim.opening import open_model
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.suite.preset import Competitor, Preset
from vitslim.plans import read_plan
from vitslim.runtime import TorchRunner

_CORES_PER_COMPILER = 2


def open_competitor(name: str, case: Case, preset: Preset) -> nn.Module:
    """One competitor of a case, dense among them, with random weights, on which speed does not depend.

    Raises:
        VitslimError: it cannot be built, or its library is absent.
    """
    if name == SMALLER:
        smaller = preset.models[case.model].smaller
        if smaller is None:
            raise ConfigError(f"{case.model} has no smaller sibling in this preset")
        return _open(smaller, case.image_size, preset)
    model = _open(case.model, case.image_size, preset)
    if name in BASELINES:
        return BASELINES[name](model).eval()
    if name == DENSE:
        return model
    competitor = preset.competitors[name]
    if competitor.plan is not None:
        return convert(model, plan=read_plan(competitor.plan)).eval()
    for config in competitor.convert:
        # With the method's own start: what is chosen, and numbers near zero, have their say in the time.
        model = convert(model, config)
    return model.eval()


def kind_of(name: str, conversions: Mapping[str, Competitor]) -> Kind:
    """What sort of competitor a name stands for."""
    if name in conversions:
        return "pair" if len(conversions[name].convert) > 1 else "method"
    return "baseline" if name in (*BASELINES, SMALLER) else "dense"


def compile_ahead(case: Case, preset: Preset) -> None:
    """Compile the competitors of a case side by side, before they are timed one beside the other.

    Inductor keeps what it compiled in a cache on disk, where the process that measures finds it. One that does not
    compile is passed over: the measuring process meets the same error and records it.
    """
    modes: Sequence[TritonMode | None] = case.triton or (None,)
    names: list[tuple[str, TritonMode | None]] = [(DENSE, None), *product(case.competitors, modes)]
    workers = min(len(names), (usable_cores() or 1) // _CORES_PER_COMPILER)
    if workers < 2:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_compiler) as pool:
        wait([pool.submit(_compile, name, mode, case, preset) for name, mode in names])


def prepare_compiler() -> None:
    """Set Inductor up in a process that compiles beside others; torch has read its environment by now."""
    from torch._inductor import config

    # Each of them would otherwise start compilers for all cores.
    config.compile_threads = _CORES_PER_COMPILER
    # Which form of a kernel is fastest cannot be told while others use the GPU: the measuring process finds out.
    config.autotune_local_cache = False


def _compile(name: str, mode: TritonMode | None, case: Case, preset: Preset) -> None:
    device, model = torch.device(preset.device), open_competitor(name, case, preset)
    wants = preprocessing(model)
    switched = nullcontext() if mode is None else triton_mode(mode)
    with switched, TorchRunner(model, compiled=True, precision=case.precision, device=device) as runner:
        runner.run(torch.zeros(case.batch, wants.channels, *wants.image_size, device=device))


def _open(name: str, image_size: int, preset: Preset) -> nn.Module:
    entry = preset.models[name]
    options = dict(entry.options)
    if preset.training is not None:
        options["num_classes"] = preset.training.data.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_model(entry.name or name, pretrained=False, img_size=image_size, **options)
