"""Plans from plain data, such as files that were edited by hand: every error is named at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.files import read_json
from vitslim.plans.check import check
from vitslim.plans.plan import PLAN_VERSION, ModelPlan
from vitslim.shapes import AnyPath
from vitslim.validation import describe_errors, shown


def read_plan(document: Any, origin: str = "plan") -> ModelPlan:
    """A plan from plain data, such as a plan.json that was edited by hand.

    Args:
        origin: names the data in messages.

    Raises:
        ConfigError: every error at once: what cannot be read, and what ``check`` refuses in the rest.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{origin} holds {shown(document)}; wanted a plan, as convert writes it to plan.json")
    document = cast("Mapping[str, Any]", document)
    version, errors = document.get("format_version"), list[str]()
    if version != PLAN_VERSION:
        errors = [f"format_version={shown(version)}: this vitslim reads {PLAN_VERSION}"]
        document = {**document, "format_version": PLAN_VERSION}
    try:
        plan = ModelPlan.model_validate(document)
    except ValidationError as error:
        errors += describe_errors(error, ModelPlan)
        plan = _readable_part(document, error)
    errors += [] if plan is None else check(plan)
    if plan is None or errors:
        raise ConfigError(f"{origin}: " + "; ".join(errors))
    return plan


@checked
def read_plan_file(path: AnyPath) -> ModelPlan:
    """The plan in a JSON file, such as the plan.json of a run; see ``read_plan``.

    Raises:
        ConfigError: every error in the plan at once.
        CheckpointError: the file is missing or is not JSON.
    """
    document = read_json(path)
    if isinstance(document, dict) and "trials" in document:
        raise ConfigError(f"{path} is the report of a search; its plan is plan.json beside it")
    return read_plan(document, str(path))


def _readable_part(document: Mapping[str, Any], error: ValidationError) -> ModelPlan | None:
    """The plan with dense choices in place of those that cannot be read; ``None`` where more is wrong."""
    steps = document.get("steps")
    places = [one["loc"] for one in error.errors()]
    if not isinstance(steps, Sequence) or any(place[0] != "steps" or len(place) < 3 for place in places):
        return None
    mended: list[Any] = [dict(cast("Mapping[str, Any]", step)) for step in cast("Iterable[Any]", steps)]
    for place in places:
        mended[int(place[1])].pop(str(place[2]), None)
    try:
        return ModelPlan.model_validate({**document, "steps": mended})
    except ValidationError:
        return None
