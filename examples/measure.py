"""Make the figures of the README, and put them into it.

    python examples/measure.py demo     # copy the figures of demo-out/ (made by `make demo`) -> examples/results/
    python examples/measure.py support  # which pairs of methods compose -> examples/results/support.json
    python examples/measure.py digits   # run examples/guides/own_model.md in out/digits -> examples/results/digits.json
    python examples/measure.py collect FOLDER  # copy what `vitslim bench suite|accuracy` wrote -> examples/results/
    python examples/measure.py readme   # regenerate the tables of README.md from examples/results/
    python examples/measure.py check    # fail where README.md or a table is not what its JSON gives

A README table is never typed: it is rendered from the committed JSON, which names its command and machine.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vitslim.bench import environment, replace_between_markers
from vitslim.bench.accuracy import ACCURACY_FILE, AccuracyReport
from vitslim.bench.suite import SUITE_FILE, SuiteReport
from vitslim.files import read_json, write_json, write_text
from vitslim.methods import pair_support, support_cells
from vitslim.report.suite import readme_tables, render_accuracy, render_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "examples" / "results"
README_SECTIONS = ("demo", "support", "suite_cpu", "suite_gpu", "accuracy_gpu")
GUIDE_SECTIONS = ("digits",)
README = ROOT / "README.md"
GUIDE = ROOT / "examples" / "guides" / "own_model.md"


def demo() -> None:
    source = ROOT / "demo-out"
    document = read_json(source / "demo.json")
    report = read_json(source / "bench.json")
    write_json(RESULTS / "demo.json", {"command": "make demo", **document, "bench": report})


def support() -> None:
    write_json(RESULTS / "support.json", {"command": "python examples/measure.py support", "pairs": pair_support()})


def digits() -> None:
    """Walk through the guide as it stands, with its full budget."""
    folder = ROOT / "out" / "digits"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    printed = [run(line, folder) for line in commands(GUIDE.read_text())]
    found = json.loads(run("vitslim eval teacher --data digits --json", folder))
    document = {
        "command": "python examples/measure.py digits",
        "own_top1": float(re.findall(r"([\d.]+) % of", printed[0])[0]) / 100,
        "vitslim_top1": found["top1"],
        "images": found["images"],
        "comparison": json.loads(run("vitslim compare students --json", folder)),
        "environment": environment(),
    }
    write_json(RESULTS / "digits.json", document)


def commands(guide: str) -> list[str]:
    """The command lines of a guide, in order."""
    return [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines() if line]


def run(line: str, folder: Path) -> str:
    """Run one command line in a folder and give back what it prints; its progress goes to the terminal."""
    program, *words = shlex.split(line)
    here = [sys.executable, ROOT / words.pop(0)] if program == "python" else [sys.executable, "-m", "vitslim"]
    return subprocess.run([*here, *words], cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout


def collect(folder: str) -> None:
    """Figures of a run: its JSON, all its tables; what it has not measured the tables say."""
    source = Path(folder)
    name = SUITE_FILE if (source / SUITE_FILE).is_file() else ACCURACY_FILE
    document = read_json(source / name)
    if document["quick"]:
        sys.exit(f"{folder} holds a quick run, whose figures mean little")
    stem = f"{Path(name).stem}_{document['preset']}"
    write_json(RESULTS / f"{stem}.json", document)
    for path, text in tables().items():
        write_text(path, text)


def readme() -> None:
    for path, text in {**pages(), **tables()}.items():
        write_text(path, text)


def check() -> None:
    """Compare what is committed with what the committed JSON gives."""
    stale = [path for path, text in {**pages(), **tables()}.items() if not is_at(path, text)]
    if stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"{names}: a table is not what examples/results/ gives; run `make readme` and commit what it writes")


def is_at(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def pages() -> dict[Path, str]:
    """The pages with tables in them, as they should be."""
    return {README: rendered(README.read_text()), GUIDE: rendered(GUIDE.read_text(), GUIDE_SECTIONS)}


def rendered(text: str, sections: Sequence[str] = README_SECTIONS) -> str:
    """A page with every table as its JSON has it, or the command that makes it."""
    for name in sections:
        table = TABLES[name]
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


def digits_table(document: dict) -> str:
    rows = document["comparison"]["rows"]
    settings = [(one["backend"], one["batch"]) for one in rows[0]["speed"]]
    speeds = [f"{backend}, batch {batch}" for backend, batch in settings]
    header = ["model", "top-1", "agreement", "GMAC", *speeds, "ort batch 8 against dense torch"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        found = {(one["backend"], one["batch"]): one for one in row["speed"]}
        agreement = "-" if row["agreement"] is None else f"{100 * row['agreement']:.2f} %"
        figures = [f"{100 * row['top1']:.2f} %", agreement, f"{row['macs'] / 1e9:.4f}"]
        figures += [f"{found[one]['speedup_vs_dense']:.2f}x" for one in settings]
        lines.append([row["model"], *figures, f"{found['ort', 8]['speedup_vs_dense_torch']:.2f}x"])
    own, ours = (f"{100 * document[name]:.2f} %" for name in ("own_top1", "vitslim_top1"))
    machine = document["environment"]
    notes = [
        f"The script's own held-out accuracy is {own}, `vitslim eval` finds {ours}; one of the {document['images']} "
        f"images is {100 / document['images']:.2f} points.",
        f"{machine['cpu']}, 1 thread, fp32, one seed; speed against the dense model in the same runtime and rounds; "
        f"torch {machine['torch']}. Command: `{document['command']}`.",
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", "\n\n".join(notes)])


TABLES = {
    "demo": demo_table,
    "support": support_table,
    "suite_cpu": suite_table,
    "suite_gpu": suite_table,
    "accuracy_gpu": accuracy_table,
    "digits": digits_table,
}
NOT_MEASURED = {
    "demo": "Not measured yet; the command is `make demo`.",
    "support": "Not tried yet; the command is `python examples/measure.py support`.",
    "suite_cpu": "Not measured yet; the command is `make bench`.",
    "suite_gpu": "Not measured yet; the command is `vitslim bench suite --preset gpu --out out/suite-gpu`.",
    "digits": "Not measured yet; the command is `python examples/measure.py digits`.",
    "accuracy_gpu": "Not measured yet; the command is `vitslim bench accuracy --preset gpu --out out/accuracy-gpu`.",
}

if __name__ == "__main__":
    verbs = {"demo": demo, "support": support, "digits": digits, "collect": collect, "readme": readme, "check": check}
    verb, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if verb not in verbs or len(arguments) != (verb == "collect"):
        sys.exit(f"usage: python examples/measure.py {'|'.join(verbs)} [FOLDER]; given {json.dumps(sys.argv[1:])}")
    verbs[verb](*arguments)
