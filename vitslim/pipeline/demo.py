"""The built-in main job: every method on the shipped model and images, beside dense-finetuned, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn

from vitslim.bench import BenchReport, benchmark, count_parameters
from vitslim.checkpoint import load
from vitslim.files import read_json, write_json
from vitslim.methods import convert, read_method
from vitslim.opening import open_model
from vitslim.pipeline.choices import CHOICES_FILE, reads_analysis
from vitslim.pipeline.cost import COST_FILE
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.running import BENCH_FILE, METRICS_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import AnalyzeSection, Recipe, read_recipe
from vitslim.report import read_comparison, write_comparison
from vitslim.train import DistillConfig

FINETUNED = "dense-finetuned"
DEMO_FILE = "demo.json"


def run_demo(
    out: str | Path,
    *,
    everything: bool = False,
    quick: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Run the pipeline for every student, measure speed at deployment size, and write the comparison.

    Finished parts are skipped when the demo is started again in the same folder.

    Args:
        everything: all methods and a pair, not only the default students.
        quick: a smoke run; its figures mean little.

    Returns:
        ``{"table": rows for a person, "rows": the figures, "notes", "report": path of the page}``.

    Raises:
        ConfigError: the folder holds something else.
    """
    settings = _settings(everything=everything, quick=quick)
    recipes = _recipes(settings)
    folder = RunFolder(out)
    folder.begin(yaml.safe_dump(dict(settings), sort_keys=False), overwrite=overwrite)
    with folder:
        root = folder.path
        run_side_by_side(recipes, root, overwrite=True, progress=progress)
        speed = _bench(folder, settings, progress)
        notes = _notes(speed, settings, quick=quick)
        page = write_demo_page(root, notes)
        rows = [_row(root, name, speed) for name in recipes]
        document = {
            "rows": rows,
            "table": [_cells(row, rows) for row in [_teacher_row(root, speed), *rows]],
            "notes": notes,
        }
        write_json(root / DEMO_FILE, document)
    return {**document, "report": str(folder.path / page.name)}


def train_with_seed(out: str | Path, *, steps: int, seed: int, progress: ProgressCallback = silent) -> None:
    """Train the dense model and every student of the demo with one budget; what an earlier call did is taken over.

    Args:
        out: holds a folder for every seed.
        steps: of distillation, for each.
    """
    recipes = _recipes(_settings(everything=True, quick=False))
    budget = {"steps": steps, "seed": seed}
    seeded = {
        name: recipe.model_copy(
            update={"seed": seed, "distill": cast(DistillConfig, recipe.distill).model_copy(update=budget)}
        )
        for name, recipe in recipes.items()
    }
    run_side_by_side(seeded, Path(out) / f"seed-{seed}", overwrite=False, progress=progress)


def rows_by_seed(out: str | Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What ``train_with_seed`` has measured so far.

    Returns:
        A row for every student: held-out accuracy by seed (fractions of 1), parameters, multiply-accumulates.
    """
    rows: list[dict[str, Any]] = []
    for name in _recipes(_settings(everything=True, quick=False)):
        folders = {seed: Path(out) / f"seed-{seed}" / name for seed in seeds}
        done = {seed: folder for seed, folder in folders.items() if (folder / METRICS_FILE).is_file()}
        if not done:
            continue
        metrics = {seed: read_json(folder / METRICS_FILE) for seed, folder in done.items()}
        first = min(done)
        rows.append(
            {
                "model": name,
                "teacher_top1": metrics[first]["teacher"]["top1"],
                "top1": {str(seed): found["student"]["top1"] for seed, found in metrics.items()},
                "images": metrics[first]["student"]["images"],
                **read_json(done[first] / COST_FILE),
            }
        )
    return rows


def write_demo_page(folder: Path, notes: Sequence[str] | None = None) -> Path:
    """Write the comparison of a demo's students.

    Args:
        notes: what the reader has to mind; those in the folder's demo.json by default.

    Raises:
        CheckpointError: no student lies there, or one of the files cannot be read.
    """
    mind = cast("Sequence[str]", read_json(folder / DEMO_FILE)["notes"]) if notes is None else notes
    comparison = read_comparison(folder, "Built-in demo")
    return write_comparison(replace(comparison, cautions=[*comparison.cautions, *mind]), folder / "report.html")


def _recipes(settings: Mapping[str, Any]) -> dict[str, Recipe]:
    """The recipe of the fine-tuned dense model, which has everything but a conversion, and those of the students.

    Those that read the analysis share the one in the cache.
    """
    students = cast("dict[str, dict[str, Any]]", settings["students"])
    analyze = AnalyzeSection(**settings["analyze"])
    recipes = {
        name: read_recipe(_merged(settings["recipe"], changes), origin=f"demo, {name}")
        for name, changes in {FINETUNED: {"convert": []}, **students}.items()
    }
    return {
        name: recipe.model_copy(update={"analyze": analyze}) if reads_analysis(recipe) else recipe
        for name, recipe in recipes.items()
    }


def _settings(*, everything: bool, quick: bool) -> dict[str, Any]:
    text = (resources.files("vitslim") / "assets" / "demo.yaml").read_text()
    settings = cast("dict[str, Any]", yaml.safe_load(text))
    changes, default = settings.pop("quick"), settings.pop("default")
    settings = _merged(settings, changes) if quick else settings
    if not everything:
        settings["students"] = {name: settings["students"][name] for name in default}
    return settings


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _bench(folder: RunFolder, settings: Mapping[str, Any], progress: ProgressCallback) -> BenchReport:
    section, root = settings["bench"], folder.path
    if folder.enter("bench", [section, settings["students"]], BENCH_FILE):
        torch.manual_seed(0)
        dense = open_model(section["model"], pretrained=False)
        models: dict[str, nn.Module] = {"dense": dense}
        for name, student in settings["students"].items():
            models[name] = _converted(dense, student["convert"], root / name)
        report = benchmark(models, baseline="dense", progress=progress, **section["settings"])
        write_json(root / BENCH_FILE, report.model_dump(mode="json"))
        folder.finish("bench")
    return BenchReport(**read_json(root / BENCH_FILE))


def _converted(dense: nn.Module, conversions: list[dict[str, Any]], student: Path) -> nn.Module:
    """The dense model in the student's form; the blocks that the student's analysis chose are taken over."""
    found = student / CHOICES_FILE
    chosen = {one["method"]: one["used"] for one in read_json(found)} if found.exists() else {}
    for entry in conversions:
        options = {name: value for name, value in entry.items() if name != "method"}
        method, config = read_method(str(entry["method"]), options)
        if method.reads_analysis(config):
            # Widths are of this model's size; blocks have the same numbers.
            option = str(method.advised)
            options[option] = chosen[method.name] if option == "layers" else method.usual
            options = {name: value for name, value in options.items() if name != "keep" or option != "layers"}
        dense = convert(dense, method.name, **options)
    return dense


def _row(root: Path, name: str, speed: BenchReport) -> dict[str, Any]:
    folder = root / name
    metrics = read_json(folder / METRICS_FILE)["student"]
    model = load(folder)
    return {
        "model": name,
        "top1": metrics["top1"],
        "agreement": metrics["agreement"],
        "params": count_parameters(model),
        **_speed_of("dense" if name == FINETUNED else name, speed),
    }


def _teacher_row(root: Path, speed: BenchReport) -> dict[str, Any]:
    metrics = read_json(root / FINETUNED / METRICS_FILE)["teacher"]
    params = count_parameters(load(root / FINETUNED))
    own = {"model": "teacher", "top1": metrics["top1"], "agreement": None, "params": params}
    return {**own, **_speed_of("dense", speed)}


def _speed_of(name: str, speed: BenchReport) -> dict[str, Any]:
    rows = [row for row in speed.rows if row.model == name]
    ratios = {f"{row.backend} b{row.batch}": row.speedup_vs_dense for row in rows}
    return {"macs": rows[0].macs if rows else None, "speedup_vs_dense": ratios}


def _cells(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    finetuned = next(one["top1"] for one in rows if one["model"] == FINETUNED)
    ratios = row["speedup_vs_dense"]
    return {
        "model": row["model"],
        "top-1": f"{100 * row['top1']:.2f} %",
        "vs fine-tuned": f"{100 * (row['top1'] - finetuned):+.2f}",
        "agreement": "-" if row["agreement"] is None else f"{100 * row['agreement']:.2f} %",
        "parameters": f"{row['params'] / 1e6:.2f} M",
        "MACs": "-" if row["macs"] is None else f"{row['macs'] / 1e9:.3f} G",
        **{name: f"{ratio:.2f}x" for name, ratio in ratios.items()},
    }


def _notes(speed: BenchReport, settings: Mapping[str, Any], *, quick: bool) -> list[str]:
    model = settings["bench"]["model"]
    threads = settings["bench"]["settings"]["threads"]
    notes = [
        "Accuracy and parameters: the built-in 12-block model on held-out fractal images.",
        f"MACs and speed: {model} at 224 px, random weights, {threads} CPU thread, against dense with fused attention "
        "in the same run; below 1x is slower.",
    ]
    notes += [f"Not measured: {one.backend} ({one.reason})" for one in speed.skipped]
    return [*notes, "This was a quick run: the figures mean little."] if quick else notes
