"""What a model is and costs, or what a method would make of it: read off its plan, no converted model is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import InstanceOf
from torch import nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError, UnsupportedModelError
from vitslim.methods import MethodConfig, list_methods, method_support, read_method
from vitslim.models import Preprocessing, family_of, preprocessing, resolve_name, token_layout
from vitslim.opening import ModelLike, open_shape
from vitslim.pipeline.choices import Choice, plan_all
from vitslim.plans import ModelPlan, cost, dense_plan, describe_steps, read_plan_file
from vitslim.shapes import AnyPath, Result
from vitslim.trunk import is_converted, plan_of, trunk_of
from vitslim.trunk.build import require_fitting


class DenseCosts(Result):
    """Of the dense model behind a plan; fields as in ``Inspection``."""

    params: int
    macs: int
    activations: int


class Inspection(Result):
    """A model, or what a method or plan would make of it.

    Attributes:
        macs: multiply-accumulates of one image; ``activations`` the elements of the largest output of a product, None
            for a model that no adapter knows.
        dense: the same of the dense model, where there is a plan.
        plan: of a conversion that is asked for or done; None for a dense model.
        steps: a row for each of the plan's.
        choices: which blocks the methods that are asked for take, and why.
        methods: whether each could follow, and the reason if not.
        notes: what else is to be known.
    """

    model: str
    family: str
    params: int
    macs: int
    activations: int | None
    dense: DenseCosts | None
    image_size: tuple[int, int]
    input: Preprocessing
    num_classes: int
    prefix_tokens: int
    grid: tuple[int, int]
    depth: int
    conversions: list[dict[str, Any]]
    plan: ModelPlan | None
    steps: list[dict[str, Any]]
    choices: list[Choice]
    methods: dict[str, dict[str, Any]]
    notes: list[str]


@checked
def inspect(
    model: ModelLike,
    method: str | InstanceOf[MethodConfig] | None = None,
    *,
    plan: InstanceOf[ModelPlan] | AnyPath | None = None,
    **options: Any,
) -> Inspection:
    """What a model is and costs, or what a method or plan would make of it; nothing is fetched or converted.

    Args:
        model: whatever ``open_model`` takes.
        method: a method's name with ``options``, or its config. What it leaves to an analysis is its usual choice;
            ``choices`` says so.
        plan: a plan or the path of a plan.json, in place of the method or before it.
        options: fields of the method's config.

    Raises:
        ConfigError: the method or plan is refused, with every reason.
        UnsupportedModelError: a method or plan is asked for, and no adapter knows the model.
    """
    entries: list[dict[str, Any]] = []
    if method is not None:
        chosen, config = read_method(method, options)
        entries = [{"method": chosen.name, **config.model_dump(exclude_unset=True)}]
    elif options:
        raise ConfigError(f"options ({', '.join(options)}) belong to a method; name one")
    name = None if isinstance(model, nn.Module) else str(model)
    return inspect_opened(open_shape(model), name, entries, plan)


def inspect_opened(
    model: nn.Module,
    name: str | None,
    entries: Sequence[Mapping[str, Any]] = (),
    given: ModelPlan | str | Path | None = None,
) -> Inspection:
    """``inspect`` for a model that is open, with methods as a recipe lists them.

    Args:
        name: by which the model was opened; None for a module.
        given: the plan that the methods begin with, in place of the model's.
    """
    if name is None or not checkpoint.is_saved_model(name):
        name = type(model).__name__ if name is None else resolve_name(name)
    history = trunk_of(model).history if is_converted(model) else ()
    plan, choices, notes = None, list[Choice](), list[str]()
    try:
        before = plan = plan_of(model)
        if given is not None:
            plan = given if isinstance(given, ModelPlan) else read_plan_file(given)
            require_fitting(plan, before)
        plan, history, choices = plan_all(entries, plan, None, history)
        require_fitting(plan, before)
        methods = method_support(plan, history)
    except UnsupportedModelError as error:
        if entries or given is not None:
            raise
        notes = [str(error)]
        methods: dict[str, dict[str, Any]] = {
            method: {"supported": False, "reason": str(error)} for method in list_methods()
        }
    layout = token_layout(model)
    found = None if plan is None else cost(plan)
    is_planned = plan is not None and (is_converted(model) or bool(entries) or given is not None)
    dense = cost(dense_plan(plan.model)) if plan is not None and is_planned else None
    return Inspection(
        model=name,
        family=family_of(model),
        params=count_parameters(model) if found is None else found.parameters,
        macs=count_macs(model) if found is None else found.macs,
        activations=None if found is None else found.activations,
        dense=dense and DenseCosts(params=dense.parameters, macs=dense.macs, activations=dense.activations),
        image_size=preprocessing(model).image_size if plan is None else plan.image_size,
        input=preprocessing(model),
        num_classes=int(getattr(model, "num_classes", 0)),
        prefix_tokens=layout.prefix,
        grid=layout.grid if plan is None else plan.grid,
        depth=len(model.blocks) if plan is None else plan.depth,  # pyright: ignore[reportArgumentType]
        conversions=[{"method": entry.method, "options": dict(entry.options)} for entry in history],
        plan=plan if is_planned else None,
        steps=describe_steps(plan) if plan is not None and is_planned else [],
        choices=choices,
        methods=methods,
        notes=notes,
    )
