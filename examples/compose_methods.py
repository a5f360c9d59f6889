"""Two methods on one model: which ordered pairs work, why others are refused, and what each costs. Needs no download.

The same question for the model families is `vitslim list pairs`.

python examples/compose_methods.py [MODEL]
"""

import sys
from typing import Any

import torch

import vitslim
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import VitslimError

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "skipat": ("skipat", {"expansion": 0.5}),
    "evo_vit": ("evo_vit", {}),
    "sparsifiner": ("sparsifiner", {}),
    "pruning": ("sparsifiner", {"token_keep_rate": 0.7}),
    "sret": ("sret", {}),
}


def main(model: str = "builtin") -> None:
    # Counting needs shapes alone: on the meta device nothing is fetched and nothing computed.
    with torch.device("meta"):
        dense = vitslim.open_model(model, pretrained=False)
    alone = {name: vitslim.convert(dense, method, **options) for name, (method, options) in FORMS.items()}
    print(
        f"{model}, dense {count_macs(dense) / 1e6:.1f} million multiply-accumulates per image; first method down, "
        "second across:"
    )
    print(f"{'':12s}{'alone':>12s}" + "".join(f"{name:>12s}" for name in FORMS))
    refusals: list[str] = []
    for first, converted in alone.items():
        cells = [f"{count_macs(converted) / 1e6:.1f}"]
        for second, (method, options) in FORMS.items():
            try:
                cells.append(f"{count_macs(vitslim.convert(converted, method, **options)) / 1e6:.1f}")
            except VitslimError as refusal:
                cells.append("-")
                if FORMS[first][0] != method:
                    refusals.append(f"{first}, then {second}: {refusal}")
        print(f"{first:12s}" + "".join(f"{cell:>12s}" for cell in cells))
    print("\nrefused:", *refusals, sep="\n  ")

    both = vitslim.convert(vitslim.convert(dense, "sret"), "evo_vit")
    print(
        f"\nsret, then evo_vit: {count_parameters(both) / count_parameters(dense):.0%} of the parameters and "
        f"{count_macs(both) / count_macs(dense):.0%} of the operations"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
