"""Make the figures of the README, and put them into it.

    python examples/measure.py demo     # copy the figures of demo-out/ (made by `make demo`) -> examples/results/
    python examples/measure.py support  # which pairs of methods compose -> examples/results/support.json
    python examples/measure.py collect FOLDER  # copy what `vitslim bench suite|accuracy` wrote -> examples/results/
    python examples/measure.py readme   # regenerate the tables of README.md from examples/results/
    python examples/measure.py check    # fail where README.md or a table is not what its JSON gives

A README table is never typed: it is rendered from the committed JSON, which names its command and machine.
"""

import json
import shutil
import sys
from pathlib import Path

from vitslim.bench import replace_between_markers
from vitslim.bench.accuracy import ACCURACY_FILE, AccuracyReport
from vitslim.bench.suite import SUITE_FILE, SuiteReport
from vitslim.files import read_json, write_json, write_text
from vitslim.methods import pair_support, support_cells
from vitslim.report.suite import readme_tables, render_accuracy, render_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "examples" / "results"
README = ROOT / "README.md"


def demo() -> None:
    source = ROOT / "demo-out"
    document = read_json(source / "demo.json")
    report = read_json(source / "bench.json")
    write_json(RESULTS / "demo.json", {"command": "make demo", **document, "bench": report})


def support() -> None:
    write_json(RESULTS / "support.json", {"command": "python examples/measure.py support", "pairs": pair_support()})


def collect(folder: str) -> None:
    """Figures of a run: its JSON, all its tables, its pictures; what it has not measured the tables say."""
    source = Path(folder)
    name = SUITE_FILE if (source / SUITE_FILE).is_file() else ACCURACY_FILE
    document = read_json(source / name)
    if document["quick"]:
        sys.exit(f"{folder} holds a quick run, whose figures mean little")
    stem = f"{Path(name).stem}_{document['preset']}"
    write_json(RESULTS / f"{stem}.json", document)
    for picture in source.glob("*.png"):
        shutil.copy(picture, RESULTS / f"{stem}_{picture.name}")
    for path, text in tables().items():
        write_text(path, text)


def readme() -> None:
    for path, text in {README: rendered(README.read_text()), **tables()}.items():
        write_text(path, text)


def check() -> None:
    """Compare what is committed with what the committed JSON gives."""
    stale = [path for path, text in {README: rendered(README.read_text()), **tables()}.items() if not is_at(path, text)]
    if stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"{names}: a table is not what examples/results/ gives; run `make readme` and commit what it writes")


def is_at(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def rendered(text: str) -> str:
    """The README with every table as its JSON has it, or the command that makes it."""
    for name, table in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        found = table(read_json(path)) if path.is_file() else NOT_MEASURED[name]
        text = replace_between_markers(text, name, found)
    return text


def tables() -> dict[Path, str]:
    """The files of all tables of the suite, beside their JSON."""
    found = {path: render_tables(SuiteReport(**read_json(path))) for path in sorted(RESULTS.glob("suite_*.json"))}
    found |= {path: accuracy_table(read_json(path)) for path in sorted(RESULTS.glob("accuracy_*.json"))}
    return {path.with_suffix(".md"): text + "\n" for path, text in found.items()}


def suite_table(document: dict) -> str:
    report = SuiteReport(**document)
    more = f"All figures: `examples/results/suite_{report.preset}.md`."
    return f"{readme_tables(report)}\n\n{more}"


def accuracy_table(document: dict) -> str:
    return render_accuracy(AccuracyReport(**document))


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


SECTIONS = {
    "demo": demo_table,
    "support": support_table,
    "suite_cpu": suite_table,
    "suite_gpu": suite_table,
    "accuracy_gpu": accuracy_table,
}
NOT_MEASURED = {
    "demo": "Not measured yet; the command is `make demo`.",
    "support": "Not tried yet; the command is `python examples/measure.py support`.",
    "suite_cpu": "Not measured yet; the command is `make bench`.",
    "suite_gpu": "Not measured yet; the command is `vitslim bench suite --preset gpu --out out/suite-gpu`.",
    "accuracy_gpu": "Not measured yet; the command is `vitslim bench accuracy --preset gpu --out out/accuracy-gpu`.",
}

if __name__ == "__main__":
    verbs = {"demo": demo, "support": support, "collect": collect, "readme": readme, "check": check}
    verb, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if verb not in verbs or len(arguments) != (verb == "collect"):
        sys.exit(f"usage: python examples/measure.py {'|'.join(verbs)} [FOLDER]; given {json.dumps(sys.argv[1:])}")
    verbs[verb](*arguments)
