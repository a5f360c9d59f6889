"""What a run's student costs on paper, written beside it."""

from pathlib import Path

import torch
from torch import nn

from vitslim.bench import count_macs, count_parameters
from vitslim.files import write_json
from vitslim.opening import dense_baseline

COST_FILE = "cost.json"


def write_cost(folder: Path, student: nn.Module) -> None:
    """Write ``cost.json``: parameters, and multiply-accumulates of one image, of a model and of its dense baseline."""
    with torch.device("meta"):
        dense = dense_baseline(student)
    document = {
        "params": count_parameters(student),
        "macs": count_macs(student),
        "dense_params": count_parameters(dense),
        "dense_macs": count_macs(dense),
    }
    write_json(folder / COST_FILE, document)
