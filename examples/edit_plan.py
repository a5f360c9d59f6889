"""A plan is a file: write one, change it, read what is wrong with it, build a model of it. Needs no download.

python examples/edit_plan.py [MODEL] [FILE]
"""

import json
import sys
from pathlib import Path
from typing import Any

import vitslim
from vitslim.errors import ConfigError
from vitslim.plans import plan_json


def main(model: str = "builtin", file: str = "out/plan.json") -> None:
    dense = vitslim.open_model(model)
    plan = plan_json(vitslim.plan_of(vitslim.convert(dense, "mlp", keep=0.5)))

    plan["steps"][3]["mlp"] = {"kind": "wide"}
    plan["steps"][4]["mlp"] = {"kind": "narrow", "neurons": 1_000_000}
    write(plan, file)
    try:
        vitslim.read_plan_file(file)
    except ConfigError as refusal:
        print("refused:", refusal, sep="\n  ")

    plan["steps"][3]["mlp"] = {"kind": "none"}
    plan["steps"][4]["mlp"]["neurons"] = 64
    write(plan, file)
    student = vitslim.convert(dense, plan=file)
    found = vitslim.cost(vitslim.plan_of(student))
    print(
        f"built: {found.macs / 1e6:.1f} million multiply-accumulates, {found.parameters / 1e6:.2f} million parameters"
    )


def write(plan: dict[str, Any], file: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(plan, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
