"""What OpenVINO's model chooses on the way."""

import json
from pathlib import Path
from typing import Any

from vitslim.targets.onnx.graph import choosing_nodes

ORDER = ["vitslim", "choices"]
"""Where the names of the choices lie in a model, as JSON."""
_COMPARISONS = ("GreaterEqual", "LessEqual", "Greater", "Less")


def note_choices(converted: Any, onnx_file: Path) -> None:
    """Write into OpenVINO's model in which order the ONNX file chooses, which is the order in which its model does."""
    import onnx

    nodes = choosing_nodes(onnx.load(str(onnx_file), load_external_data=False))
    converted.set_rt_info(json.dumps([node.name for node in nodes]), ORDER)


def tell_choices(model: Any) -> None:
    """Make outputs of what TopK chooses, in the order in which the model does.

    That is its indices; where only its values are used, as a threshold, what is above it.
    """
    order = json.loads(model.get_rt_info(ORDER).astype(str)) if model.has_rt_info(ORDER) else []
    places = {name: place for place, name in enumerate(order)}
    sorting = [one for one in model.get_ordered_ops() if one.get_type_name() == "TopK"]
    found = [one for one in sorting if one.get_attributes()["mode"] == "max"]
    told: list[Any] = []
    for operator in sorted(found, key=lambda one: places.get(_name_in_onnx(one, places), len(places))):
        values, indices = operator.output(0), operator.output(1)
        told += [indices] if indices.get_target_inputs() else _compared_with(values)
    if told:
        model.add_outputs(told)


def _name_in_onnx(operator: Any, known: dict[str, int]) -> str:
    """Of the node that it came from; what was one node may be several here, of which the last has the name."""
    near = [operator, *(reader.get_node() for output in operator.outputs() for reader in output.get_target_inputs())]
    names = [str(one.get_friendly_name()) for one in near]
    return next((name for name in names if name in known), names[0])


def _compared_with(values: Any) -> list[Any]:
    """What comes of the first comparison with them, through whatever takes a part of them."""
    waiting = [values]
    while waiting:
        for reader in (one.get_node() for one in waiting.pop().get_target_inputs()):
            if reader.get_type_name() in _COMPARISONS:
                return [reader.output(0)]
            waiting += reader.outputs()
    return []
