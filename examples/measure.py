"""Make the figures of the README and the guides, and put them into their pages.

    python examples/measure.py demo     # copy the figures of demo-out/ (made by `make demo`) -> examples/results/
    python examples/measure.py baselines  # train all students of the demo with three seeds -> examples/results/
    python examples/measure.py digits   # run examples/guides/own_model.md in out/digits -> examples/results/digits.json
    python examples/measure.py precisions  # files of the models of `make demo` and of digits in every precision
    python examples/measure.py shapes   # plan for DeiT-S and DeiT-B with random weights -> examples/results/shapes.json
    python examples/measure.py collect FOLDER  # what `vitslim bench suite|accuracy|planner` wrote -> examples/results/
    python examples/measure.py readme   # write the tables of all pages anew, from examples/results/ and the methods
    python examples/measure.py check    # fail where a page or a table is not what its JSON or the methods give

No table is typed. Its figures are those of a committed JSON file, which names its command and machine; which methods
compose is asked of the methods themselves.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import get_args

import vitslim
from vitslim.bench import environment, replace_between_markers
from vitslim.bench.suite import SUITE_FILE, Benchmark, SuiteReport, triton_measurements
from vitslim.errors import ConfigError
from vitslim.files import read_json, write_json, write_text
from vitslim.kernels.dispatch import MEASURED_FILE
from vitslim.methods import planned, read_method
from vitslim.names import METHOD_NAMES
from vitslim.pipeline.budgets import find_plan
from vitslim.pipeline.demo import rows_by_seed, train_with_seed
from vitslim.pipeline.gate import IMAGES
from vitslim.pipeline.images import labels_for, open_loader
from vitslim.pipeline.runners import RunnerModule
from vitslim.planner.comparison import REPORT_FILE as PLANNER_FILE
from vitslim.planner.comparison import PlannerBenchReport
from vitslim.plans import ModelPlan, dense_plan
from vitslim.plans.place import places
from vitslim.plans.shape import vit_shape
from vitslim.progress import Progress
from vitslim.recipe import read_recipe
from vitslim.report.planner_bench import bench_markdown, bench_pictures
from vitslim.report.suite import caption, main_tables, render_tables
from vitslim.targets import TARGETS
from vitslim.train import evaluate
from vitslim.trunk import Conversion

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "examples" / "results"
README = ROOT / "README.md"
GUIDES = ROOT / "examples" / "guides"
OWN_MODEL = GUIDES / "own_model.md"
PAGES = {
    README: ("planner_best",),
    GUIDES / "benchmark.md": (
        "planner_cpu",
        "planner_gpu",
        "demo",
        "baselines",
        "suite_cpu",
        "suite_cpu_precisions",
        "suite_headline",
        "suite_gpu",
        "suite_gpu_triton",
        "accuracy_gpu",
    ),
    GUIDES / "compose.md": ("support",),
    GUIDES / "deploy_cpu.md": ("precisions",),
    GUIDES / "deploy_gpu.md": ("kernels_compiled",),
    GUIDES / "plan.md": ("shapes",),
    OWN_MODEL: ("digits",),
}
"""The tables of each page, by their names in the markers around them."""
SHAPES = {
    "deit_small_patch16_224": {"fitted": 32, "held_out": 32, "measured": 40, "improved": 2, "trials": 5},
    "deit_base_patch16_224": {"fitted": 8, "held_out": 8, "measured": 4, "improved": 0, "trials": 4},
}
"""Models, and how much is tried; the weights are random, so that what is found is fast enough, and no more."""
SPEEDUPS = (1.5, 2.0, 3.0)
DIGITS = ROOT / "out" / "digits"
TASKS = {
    "fractals": ("fractals", ROOT / "demo-out", ("builtin", "depth-8-mlp-half", "merge", "evo-vit")),
    "digits": (str(DIGITS / "digits"), DIGITS, ("teacher", "students/evo-vit", "students/skipat-evo-vit")),
}
"""Of `make demo` and of the guide: models that are written in every precision."""
FILES = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))
STEPS, SEEDS = 240, (0, 1, 2)  # of the comparison with every rival


def demo() -> None:
    source = ROOT / "demo-out"
    document = read_json(source / "demo.json")
    report = read_json(source / "bench.json")
    write_json(RESULTS / "demo.json", {"command": "make demo", **document, "bench": report})


def baselines() -> None:
    """Train the dense model and all students with one budget and several seeds; what out/baselines holds is kept."""
    folder = ROOT / "out" / "baselines"
    for seed in SEEDS:
        train_with_seed(folder, steps=STEPS, seed=seed, progress=report)
        write_baselines(folder)


def write_baselines(folder: Path) -> None:
    """The figures of all students that are done."""
    document = {"command": "python examples/measure.py baselines", "steps": STEPS, "rows": rows_by_seed(folder, SEEDS)}
    write_json(RESULTS / "baselines.json", {**document, "environment": environment()})


def report(one: Progress) -> None:
    if one.unit in ("begun", "done"):
        print(one.stage, one.unit, file=sys.stderr, flush=True)


def digits() -> None:
    """Run the guide as it stands, with its full budget."""
    shutil.rmtree(DIGITS, ignore_errors=True)
    DIGITS.mkdir(parents=True)
    printed = [run(line, DIGITS) for line in commands(OWN_MODEL.read_text())]
    found = json.loads(run("vitslim eval teacher --data digits --json", DIGITS))
    document = {
        "command": "python examples/measure.py digits",
        "own_top1": float(re.findall(r"([\d.]+) % of", printed[0])[0]) / 100,
        "vitslim_top1": found["top1"],
        "images": found["images"],
        "comparison": json.loads(run("vitslim compare students --json", DIGITS)),
        "environment": environment(),
    }
    write_json(RESULTS / "digits.json", document)


def precisions() -> None:
    """Top-1 of files in every precision, on held-out images of the task that their model was made for.

    INT8 goes through its gate as anyone's would: it may lose a point, and has to be faster.
    """
    rows: list[dict] = []
    for task, (data, folder, names) in TASKS.items():
        for name in names:
            place = name if name == "builtin" else folder / name
            model = vitslim.open_model(place)
            loader = open_loader(data, model, split="val", limit=IMAGES, **labels_for(model))
            own = evaluate(model, loader)
            common = {"task": task, "model": Path(name).name, "images": own.images, "torch_top1": own.top1}
            for target, kind in FILES:
                with TemporaryDirectory() as scratch:
                    path = Path(scratch, f"model{TARGETS.get(target).suffix}")
                    written = vitslim.export(place, path, to=target, precision=kind, data=data)
                    if kind == "int8":
                        found, kept, failures = written.file, written.written.sensitivity.kept, written.failures
                    else:
                        kept, failures = [], []
                        with vitslim.open_runner(path) as runner:
                            found = evaluate(RunnerModule(runner, model), loader, teacher=model)
                figures = {"top1": found.top1, "agreement": found.agreement, "kl": found.kl}
                where = {"target": target, "precision": kind, "float_blocks": kept, "failures": failures}
                rows.append({**common, **where, **figures})
                print(rows[-1], file=sys.stderr, flush=True)
                document = {"command": "python examples/measure.py precisions", "rows": rows}
                write_json(RESULTS / "precisions.json", {**document, "environment": environment()})


def shapes() -> None:
    """Plans for the shapes of DeiT models: what is fast enough in ONNX Runtime, and what the search takes.

    The weights are random, so that no plan is better than another: nothing is trained, and no damage is written.
    """
    path = RESULTS / "shapes.json"
    rows = read_json(path)["rows"] if path.is_file() else []
    for name, config in SHAPES.items():
        if any(row["model"] == name for row in rows):
            continue
        folder = ROOT / "out" / "shapes" / name
        recipe = read_recipe(
            {
                "model": {"name": name, "pretrained": False},
                "data": {"source": "fractals", "batch_size": 16, "labels": "ignore"},
                "analyze": {"images": 64, "replacement_images": 16},
                "planner": {
                    "budgets": [{"speedup": speedup} for speedup in SPEEDUPS],
                    "runtime": {"backend": "ort", "rounds": 15},
                    "config": {**config, "recovery": 0.0},
                },
            }
        )
        found = find_plan(recipe, folder, progress=report)
        known = len(read_json(next(folder.glob("damages-*.json"))))
        peak = sum(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) / 2**20
        images = config["fitted"] + config["held_out"]
        common = {"model": name, "images": images, "plans": known, "peak_gib": peak}
        for answer in found.answers:
            for trial in (found.trials[index] for index in answer.trials):
                plan = ModelPlan.model_validate(trial.plan)
                row = {
                    "speedup": answer.budget.speedup,
                    "plan": trial.name,
                    "kind": trial.kind,
                    "predicted": trial.predicted,
                    "measured": trial.measured,
                    "tokens": [at.tokens_in_mlp for at in places(plan)],
                }
                rows.append({**common, "dense_ms": found.dense_ms, "error": found.prediction_error, **row})
        document = {"command": "python examples/measure.py shapes", "rows": rows, "environment": environment()}
        write_json(path, document)


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
    if (source / PLANNER_FILE).is_file():
        collect_planner(read_json(source / PLANNER_FILE))
        return
    document = read_json(source / SUITE_FILE)
    if document["quick"]:
        sys.exit(f"{folder} holds a quick run, whose figures mean little")
    for part, report in parts_of(SuiteReport(**document)).items():
        if part == "triton":
            collect_triton(report)
        write_json(RESULTS / f"{stem_of(report)}.json", report.model_dump(mode="json"))
    for path, text in tables().items():
        write_text(path, text)


def part_of(case: str) -> str:
    """Which table a case is for, by its name."""
    return "triton" if "-triton" in case else "precisions" if "+" in case else ""


def parts_of(report: SuiteReport) -> dict[str, SuiteReport]:
    """A run by its tables, so that a part that was not measured yet does not replace figures of an earlier run."""
    found: dict[str, SuiteReport] = {}
    for part in dict.fromkeys(part_of(one.case.name) for one in report.cases):
        cases = [one for one in report.cases if part_of(one.case.name) == part]
        targets = [one for one in report.targets if any(one.is_measured_by(own.case) for own in cases)]
        left = [name for name in report.left if part_of(name) == part]
        found[part] = report.model_copy(update={"cases": cases, "targets": targets, "left": left})
    return found or {"": report}


def stem_of(report: SuiteReport) -> str:
    """Of the files with a part's figures."""
    part = part_of(report.cases[0].case.name) if report.cases else ""
    return "_".join([report.benchmark, report.preset, *([part] if part else [])])


def collect_triton(found: SuiteReport) -> None:
    """What whole models gain by the kernels of ours, where the switch reads it; other GPUs' measurements stay."""
    path = ROOT / "vitslim" / "assets" / MEASURED_FILE
    rows = [*read_json(path)["rows"], *(one._asdict() for one in triton_measurements(found))]
    latest = {tuple(value for name, value in row.items() if name != "speedup"): row for row in rows}
    write_json(path, {"rows": [*latest.values()]})


def collect_planner(document: dict) -> None:
    """The JSON of the planner's benchmark, and a picture for every task and runtime."""
    stem, report = f"planner_{document['preset']}", PlannerBenchReport(**document)
    write_json(RESULTS / f"{stem}.json", document)
    for name, picture in bench_pictures(report).items():
        write_text(RESULTS / f"{stem}_{name}.svg", picture.svg)


def readme() -> None:
    for path, text in {**pages(), **tables()}.items():
        write_text(path, text)


def check() -> None:
    """Compare what is committed with what the committed JSON and the methods give."""
    stale = [path for path, text in {**pages(), **tables()}.items() if not is_at(path, text)]
    if stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"{names}: a table is not what it should be; run `make readme` and commit what it writes")


def is_at(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def pages() -> dict[Path, str]:
    """The pages with tables in them, as they should be."""
    return {path: rendered(path.read_text(), names) for path, names in PAGES.items()}


def rendered(text: str, names: tuple[str, ...]) -> str:
    """A page with every table as it should be, or the command that makes it."""
    for name in names:
        text = replace_between_markers(text, name, table(name))
    return text


def table(name: str) -> str:
    if name == "support":
        return support_table()
    render, command = TABLES[name]
    path = RESULTS / f"{'planner_cpu' if name == 'planner_best' else name}.json"
    return render(read_json(path)) if path.is_file() else f"Not measured yet; the command is `{command}`."


def tables() -> dict[Path, str]:
    """The files of all tables of the suite, beside their JSON."""
    found = [path for benchmark in get_args(Benchmark) for path in sorted(RESULTS.glob(f"{benchmark}_*.json"))]
    return {path.with_suffix(".md"): render_tables(SuiteReport(**read_json(path))) + "\n" for path in found}


def suite_table(document: dict) -> str:
    report = SuiteReport(**document)
    left = [f"Not measured yet: {len(report.left)} of {report.total} cases."] if report.left else []
    more = f"All figures: `examples/results/{stem_of(report)}.md`."
    return "\n\n".join([*(one.markdown() for one in main_tables(report)), caption(report), *left, more])


def planner_table(document: dict) -> str:
    report = PlannerBenchReport(**document)
    pictures = [
        f"![{one.title}](../results/planner_{report.preset}_{name}.svg)" for name, one in bench_pictures(report).items()
    ]
    return "\n\n".join([bench_markdown(report), *pictures, f"Command: `{report.command}`."])


def planner_best(document: dict) -> str:
    """The planner and what comes nearest at each speedup."""
    report = PlannerBenchReport(**document)
    return "\n\n".join([bench_markdown(report, nearest=3), f"Command: `{report.command}`."])


def shapes_table(document: dict) -> str:
    """Of each model and speedup one plan of every sort, and what the search took."""
    lines = [["model", "asked", "plan", "predicted", "measured", "tokens behind each step"]]
    notes: list[str] = []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["model"] == model]
        for speedup in SPEEDUPS:
            sorts = {sort_of(row): row for row in reversed(rows) if row["speedup"] == speedup}
            for row in (sorts[sort] for sort in SORTS if sort in sorts):
                speeds = [f"{1 / row[name]:.2f}x" for name in ("predicted", "measured")]
                counts = " ".join(map(str, row["tokens"])) if len(set(row["tokens"])) > 1 else str(row["tokens"][0])
                lines.append([model, f"{speedup:g}x", row["plan"], *speeds, counts])
        one = rows[0]
        notes.append(
            f"{model}: dense {one['dense_ms']:.0f} ms; damage of {one['plans']} plans on {one['images']} images; "
            f"{one['peak_gib']:.1f} GiB at most; times of all trials predicted to {100 * one['error']:.1f} % (median)."
        )
    measured = {row["model"] for row in document["rows"]}
    notes += [f"{model}: not measured yet." for model in SHAPES if model not in measured]
    machine = document["environment"]
    notes.append(
        f"ONNX Runtime, batch 1, fp32, one thread, {machine['cpu']}; random weights, so that no plan is better than "
        f"another of its row's speed. Command: `{document['command']}`."
    )
    return "\n".join([as_table(lines), "", "\n\n".join(notes)])


SORTS = ("one method", "methods", "each step", "rates", "evo_vit")
"""Of plans, in the order of their rows."""


def sort_of(row: dict) -> str:
    named = [sort for sort in ("rates", "evo_vit") if sort in row["plan"]]
    return named[0] if named else {"method": "one method", "methods": "methods"}.get(row["kind"], "each step")


def precisions_table(document: dict) -> str:
    """A row per model, a column per file."""
    rows = document["rows"]
    lines = [["task", "model", "torch", *(f"{target} {kind}" for target, kind in FILES)]]
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in rows):
        own = {(row["target"], row["precision"]): row for row in rows if (row["task"], row["model"]) == (task, model)}
        cells = [f"{100 * own[file]['top1']:.2f}{' *' if own[file]['failures'] else ''}" for file in FILES]
        lines.append([task, model, f"{100 * own[FILES[0]]['torch_top1']:.2f}", *cells])
    images = ", ".join(f"{task} {count}" for task, count in {row["task"]: row["images"] for row in rows}.items())
    kept = [
        f"{row['model']} in {row['target']}: blocks {', '.join(map(str, row['float_blocks']))} in float."
        for row in rows
        if row["float_blocks"]
    ]
    failed = [f"* {row['model']} in {row['target']}: {'; '.join(row['failures'])}." for row in rows if row["failures"]]
    note = f"Top-1 in %; held-out images: {images}. {document['environment']['cpu']}. Command: `{document['command']}`."
    return "\n\n".join([as_table(lines), *kept, *failed, note])


def kernels_table(document: dict) -> str:
    """A row per launch of each model; waves of an H100, at each batch."""
    rows = document["rows"]
    batches, architectures = sorted({row["batch"] for row in rows}), list(rows[0]["compiled"])
    lines = [["model", "launch", *(f"waves, batch {batch}" for batch in batches), "registers", "spilled", "shared KiB"]]
    for model, launch in dict.fromkeys((row["model"], row["launch"]) for row in rows):
        own = {row["batch"]: row for row in rows if (row["model"], row["launch"]) == (model, launch)}
        waves = [f"{own[batch]['programs'] / own[batch]['at_once']:.2f}" for batch in batches]
        # Of the forms that the batches compile, the one that takes most.
        most = [max(row["compiled"][one] for row in own.values()) for one in architectures]
        registers = " ".join(str(one[0]) for one in most)
        spilled, shared = max(one[1] for one in most), max(one[2] for one in most)
        lines.append([model, launch, *waves, registers, f"{spilled} B" if spilled else "-", f"{shared / 1024:.1f}"])
    note = (
        f"bf16; registers of a thread on sm_{', '.join(architectures)}; most bytes spilled and most shared memory of "
        "them; a wave is what an H100 runs at once. "
        f"torch {document['environment']['torch']}. Command: `{document['command']}`."
    )
    return "\n".join([as_table(lines), "", note])


def demo_table(document: dict) -> str:
    speeds = {row["model"]: row["speedup_vs_dense"] for row in document["rows"]}
    settings = list(next(iter(speeds.values())))
    figures = ("model", "top-1", "vs fine-tuned", "parameters", "MACs")
    columns = [name for name in figures if name in document["table"][0]]
    lines = [[*columns, *settings]]
    for row in document["table"]:
        # The teacher is the dense model itself.
        ratios = speeds.get(row["model"], dict.fromkeys(settings, 1.0))
        lines.append([*(row[name] for name in columns), *(f"{ratios[name]:.2f}x" for name in settings)])
    return "\n".join([as_table(lines), "", *document["notes"], f"Command: `{document['command']}`."])


def baselines_table(document: dict) -> str:
    """The most accurate first; ± is the half width of the 95 % interval of one accuracy, by the number of images."""
    rows = sorted(document["rows"], key=lambda row: -fmean(row["top1"].values()))
    finetuned = next(row["top1"] for row in rows if row["model"] == "dense-finetuned")
    lines = [["student", "top-1, mean", "of each seed", "vs fine-tuned", "MACs of dense", "fewer MACs", "parameters"]]
    for row in rows:
        # The dense model varies from seed to seed too: each student is compared with that of its seeds.
        difference = fmean(value - finetuned[seed] for seed, value in row["top1"].items())
        lines.append(
            [
                row["model"],
                f"{100 * fmean(row['top1'].values()):.2f} %",
                ", ".join(f"{100 * one:.2f}" for one in row["top1"].values()),
                f"{100 * difference:+.2f}",
                f"{100 * row['macs'] / row['dense_macs']:.0f} %",
                f"{row['dense_macs'] / row['macs']:.2f}x",
                f"{100 * row['params'] / row['dense_params']:.0f} %",
            ]
        )
    images, share = rows[0]["images"], fmean(finetuned.values())
    half_width = 196 * (share * (1 - share) / images) ** 0.5
    note = (
        f"The built-in model ({100 * rows[0]['teacher_top1']:.2f} % before fine-tuning), {images} held-out images, so "
        f"that one accuracy is known to ±{half_width:.2f}; {document['steps']} steps of distillation for every row, "
        f"seeds {', '.join(finetuned)}; a row with fewer figures has only the first seeds. Command: "
        f"`{document['command']}`."
    )
    return "\n".join([as_table(lines), "", note])


def support_table() -> str:
    """Every method after every other, with default options, on the plan of a DeiT-S."""
    dense = dense_plan(vit_shape(width=384, depth=12, heads=6, image_size=(224, 224), patch=16))
    alone = {name: converted(name, dense) for name in METHOD_NAMES}
    lines, notes = [["first \\ then", *METHOD_NAMES]], []
    for first, plan in alone.items():
        lines.append([first])
        for second in METHOD_NAMES:
            if first == second:
                lines[-1].append("–")
                continue
            try:
                converted(second, plan, Conversion(first, {}))
            except ConfigError as refusal:
                # What holds of one step is said of all of them.
                notes.append(str(refusal).partition("; step")[0])
                lines[-1].append(f"no [{len(notes)}]")
            else:
                lines[-1].append("yes")
    footnotes = [f"* [{number}] {note}" for number, note in enumerate(notes, start=1)]
    more = "DeiT-S with default options; `vitslim list pairs --json` has all forms and families, on four blocks."
    return "\n".join([as_table(lines), "", *footnotes, "", more])


def converted(method: str, plan: ModelPlan, *history: Conversion) -> ModelPlan:
    return planned(*read_method(method, {}), plan, None, history)


def as_table(lines: list[list[str]]) -> str:
    """Markdown; the first line is the header, all columns but the first are figures."""
    (header, *rows) = lines
    ruled = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def digits_table(document: dict) -> str:
    rows = document["comparison"]["rows"]
    settings = [(one["backend"], one["batch"]) for one in rows[0]["speed"]]
    speeds = [f"{backend}, batch {batch}" for backend, batch in settings]
    header = ["model", "top-1", "agreement", "GMAC", *speeds, "ort batch 8 against dense torch"]
    lines = [header]
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
    return "\n".join([as_table(lines), "", "\n\n".join(notes)])


TABLES = {
    "planner_best": (planner_best, "vitslim bench planner"),
    "planner_cpu": (planner_table, "vitslim bench planner"),
    "planner_gpu": (planner_table, "vitslim bench planner --preset gpu --minutes 9"),
    "demo": (demo_table, "make demo"),
    "baselines": (baselines_table, "python examples/measure.py baselines"),
    "suite_cpu": (suite_table, "make bench"),
    "suite_cpu_precisions": (suite_table, "make bench"),
    "suite_headline": (suite_table, "vitslim bench suite --preset headline --out out/suite-headline"),
    "suite_gpu": (suite_table, "vitslim bench suite --preset gpu --out out/suite-gpu"),
    "suite_gpu_triton": (suite_table, "vitslim bench suite --preset gpu --triton 0,1 --out out/triton"),
    "accuracy_gpu": (suite_table, "vitslim bench accuracy --preset gpu --out out/accuracy-gpu"),
    "digits": (digits_table, "python examples/measure.py digits"),
    "precisions": (precisions_table, "python examples/measure.py precisions"),
    "shapes": (shapes_table, "python examples/measure.py shapes"),
    "kernels_compiled": (kernels_table, "python examples/compiled_kernels.py"),
}
"""What renders the JSON of a table, and the command that measures it."""


def main(words: list[str]) -> None:
    makers = {
        "demo": demo,
        "baselines": baselines,
        "digits": digits,
        "precisions": precisions,
        "shapes": shapes,
        "collect": collect,
        "readme": readme,
        "check": check,
    }
    name, *arguments = words or [""]
    if name not in makers or len(arguments) != (name == "collect"):
        sys.exit(f"usage: python examples/measure.py {'|'.join(makers)} [FOLDER]; given {json.dumps(words)}")
    makers[name](*arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
