"""Several methods on one model, one after the other, and the plan that they lead to. Needs no download.

python examples/compose_methods.py [MODEL] [METHOD...]
"""

import sys

import torch

import vitslim
from vitslim.plans import describe_steps


def main(model: str = "builtin", *methods: str) -> None:
    # A plan needs shapes alone: on the meta device nothing is fetched and nothing computed.
    with torch.device("meta"):
        student = vitslim.open_model(model, pretrained=False)
    dense = vitslim.cost(vitslim.plan_of(student))
    for method in methods or ("depth", "mlp", "evo_vit"):
        student = vitslim.convert(student, method)
        found = vitslim.cost(vitslim.plan_of(student))
        print(
            f"+ {method:12s} {found.macs / 1e6:8.1f} million multiply-accumulates ({found.macs / dense.macs:4.0%}), "
            f"{found.parameters / 1e6:6.2f} million parameters ({found.parameters / dense.parameters:4.0%})"
        )
    for row in describe_steps(vitslim.plan_of(student)):
        print(f"block {row['block']:2d}: {row['attention']}; {row['mlp']}; tokens: {row['tokens']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
