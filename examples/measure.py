"""Make the figures of the README, and put them into it.

    python examples/measure.py bench    # CPU speed and cost at deployment size -> examples/results/cpu_*.json
    python examples/measure.py demo     # copy the figures of demo-out/ (made by `make demo`) -> examples/results/
    python examples/measure.py support  # which pairs of methods compose -> examples/results/support.json
    python examples/measure.py readme   # regenerate the tables of README.md from examples/results/

A README table is never typed: it is rendered from the committed JSON, which names its command and machine.
"""

import json
import sys
from pathlib import Path

import torch

import vitslim
from vitslim.bench import BenchReport, caption, markdown_summary, markdown_table, replace_between_markers
from vitslim.files import read_json, write_json, write_text
from vitslim.methods import pair_support, support_cells

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "examples" / "results"
README = ROOT / "README.md"
COMMAND = "python examples/measure.py bench"

STUDENTS: dict[str, list[tuple[str, dict]]] = {
    "skipat": [("skipat", {})],
    "skipat-narrow": [("skipat", {"expansion": 0.5})],
    "skipat-identity": [("skipat", {"identity": True})],
    "evo-vit": [("evo_vit", {})],
    "sret": [("sret", {})],
    "sparsifiner-query": [("sparsifiner", {})],
    "sparsifiner-image": [("sparsifiner", {"granularity": "image"})],
    "skipat-narrow-evo-vit": [("skipat", {"expansion": 0.5, "layers": [1, 2, 3]}), ("evo_vit", {})],
    "skipat-identity-evo-vit": [("skipat", {"identity": True, "layers": [5, 6, 9, 10]}), ("evo_vit", {})],
    "sparsifiner-image-evo-vit": [("sparsifiner", {"granularity": "image"}), ("evo_vit", {})],
}
# Model, image size in pixels, batch sizes, backends: what people deploy on a CPU, and where attention weighs more.
SETTINGS = (
    ("deit_small", 224, (1, 8), ("torch", "ort")),
    ("deit_small", 384, (1,), ("torch", "ort")),
    ("deit_small", 512, (1,), ("torch", "ort")),
)


def bench() -> None:
    for name, size, batches, backends in SETTINGS:
        torch.manual_seed(0)
        dense = vitslim.open_model(name, pretrained=False, img_size=size)
        models = {"dense": dense}
        for student, conversions in STUDENTS.items():
            model = dense
            for method, options in conversions:
                model = vitslim.convert(model, method, **options)
            models[student] = model
        report = vitslim.benchmark(models, against=dense, batches=batches, backends=backends, threads=1, rounds=25)
        write_json(RESULTS / f"cpu_{name}_{size}.json", {"command": COMMAND, **report.model_dump(mode="json")})
        print(markdown_table(report.rows, report.baseline))


def demo() -> None:
    source = ROOT / "demo-out"
    document = read_json(source / "demo.json")
    report = read_json(source / "bench.json")
    write_json(RESULTS / "demo.json", {"command": "make demo", **document, "bench": report})


def support() -> None:
    write_json(RESULTS / "support.json", {"command": "python examples/measure.py support", "pairs": pair_support()})


def readme() -> None:
    text = README.read_text()
    for path in sorted(RESULTS.glob("cpu_*.json")):
        document = read_json(path)
        command = document.pop("command")
        report = BenchReport(**document)
        table = markdown_summary(report.rows, report.baseline)
        text = replace_between_markers(text, path.stem, f"{table}\n\n{caption(report, command)}")
    if (RESULTS / "demo.json").is_file():
        text = replace_between_markers(text, "demo", demo_table(read_json(RESULTS / "demo.json")))
    if (RESULTS / "support.json").is_file():
        text = replace_between_markers(text, "support", support_table(read_json(RESULTS / "support.json")))
    write_text(README, text)


def demo_table(document: dict) -> str:
    columns = list(document["table"][0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[name] for name in columns) + " |" for row in document["table"]]
    return "\n".join([*lines, "", *document["notes"], f"Command: `{document['command']}`."])


def support_table(document: dict) -> str:
    (header, *lines), notes = support_cells(document["pairs"])
    rows = [header, ["---"] * len(header), *lines]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    families = "; ".join(dict.fromkeys(row["family"] for row in document["pairs"]))
    asked = f"Tried on four blocks of each family ({families}), with default options but for what the name says; "
    return "\n".join([*table, "", *(f"* {note}" for note in notes), "", f"{asked}`{document['command']}`."])


if __name__ == "__main__":
    verbs = {"bench": bench, "demo": demo, "support": support, "readme": readme}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(f"usage: python examples/measure.py {'|'.join(verbs)}; given {json.dumps(sys.argv[1:])}")
    verbs[sys.argv[1]]()
