"""What a run's student costs on paper, written beside it."""

from pathlib import Path

from torch import nn

from vitslim.bench import count_macs, count_parameters
from vitslim.errors import UnsupportedModelError
from vitslim.files import write_json
from vitslim.plans import cost, dense_plan
from vitslim.trunk import plan_of

COST_FILE = "cost.json"


def write_cost(folder: Path, student: nn.Module) -> None:
    """Write ``cost.json``: parameters, and multiply-accumulates of one image, of a model and of its dense baseline."""
    try:
        plan = plan_of(student)
        own, dense = cost(plan), cost(dense_plan(plan.model))
        params, macs, dense_params, dense_macs = own.parameters, own.macs, dense.parameters, dense.macs
    except UnsupportedModelError:  # a dense model that no method can convert
        params, macs = dense_params, dense_macs = count_parameters(student), count_macs(student)
    document = {"params": params, "macs": macs, "dense_params": dense_params, "dense_macs": dense_macs}
    write_json(folder / COST_FILE, document)
