"""The suite's tables, pictures and pages, from figures made up here."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.reading import words
from vitslim.bench.kernels import KernelRow
from vitslim.bench.result import Skipped
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.suite import (
    AccuracyRow,
    Case,
    CaseResult,
    GainTarget,
    SuiteReport,
    SuiteRow,
    TrainedModel,
    triton_measurements,
)
from vitslim.report.charts import Point, pareto_front, spread
from vitslim.report.suite import caption, main_tables, render_tables, write_suite
from vitslim.report.suite.tables import accuracy_table, case_table, overviews, targets_table, triton_tables

ENVIRONMENT: dict[str, Any] = {
    "cpu": "A CPU",
    "gpu": [{"name": "NVIDIA H100", "compute_capability": "9.0"}],
    "torch": "2.11.0",
}


def row(model: str, speedup: float, batch: int = 1, **changes: Any) -> SuiteRow:
    plain: dict[str, Any] = {
        "model": model,
        "backend": "compiled-graph",
        "precision": "bf16",
        "batch": batch,
        "image_size": (224, 224),
        "latency_ms_p50": 2.0 / speedup,
        "latency_ms_p90": 2.2 / speedup,
        "latency_ms_p99": 3.0 / speedup,
        "throughput_img_s": 500.0 * speedup * batch,
        "speedup_vs_dense": speedup,
        "speedup_p10": speedup - 0.05,
        "speedup_p90": speedup + 0.05,
        "params": 22_000_000,
        "macs": 4_600_000_000 if model == "dense" else 3_000_000_000,
        "peak_memory_mib": 100.0,
        "rounds": 30,
        "kind": {"dense": "dense", "evo-vit": "method", "pair": "pair"}.get(model, "baseline"),
        "tflops": 100.0 * speedup,
        "gbytes_s": 900.0,
        "roofline_share": 0.2,
    }
    return SuiteRow(**{**plain, **changes})


PEAKS = MeasuredPeaks(tflops=700.0, gbytes_s=2900.0, gemm_size=8192, copy_mib=1024.0)
GRAPH = Case(
    model="deit_small",
    image_size=224,
    precision="bf16",
    backend="compiled-graph",
    competitors=("evo-vit", "pair", "depth-drop", "tome"),
)
SETTING: dict[str, Any] = {"backend": "compiled-graph", "precision": "bf16"}
MEASURED = CaseResult(
    case=GRAPH,
    digest="0",
    status="measured",
    seconds=60.0,
    environment=ENVIRONMENT,
    peaks=PEAKS,
    rows=[
        row("dense", 1.0),
        row("evo-vit", 1.45, energy_mj_per_image=3.0, power_w=420.0, sm_clock_mhz=1755),
        row("pair", 1.9),
        row("depth-drop", 1.5),
    ],
    skipped=[Skipped(**SETTING, reason="not installed", model="tome")],
    notes=["no energy and clocks: none here"],
)
LARGE = MEASURED.model_copy(
    update={
        "case": GRAPH.model_copy(update={"batch": 8}),
        "rows": [row("dense", 1.0, 8), row("evo-vit", 0.97, 8)],
        "skipped": [Skipped(**SETTING, reason="no room", model="pair", batch=8, out_of_memory=True)],
    }
)
ABSENT = CaseResult(
    case=Case(model="deit_small", image_size=224, precision="fp16", backend="tensorrt"),
    digest="0",
    status="unavailable",
    reason="tensorrt needs tensorrt",
    seconds=0.1,
)
KERNELS = CaseResult(
    case=Case(precision="bf16", batch=32, tokens=(197, 1025)),
    digest="0",
    status="measured",
    seconds=5.0,
    kernel_rows=[
        KernelRow(
            kernel="sparse tile",
            tokens=1025,
            batch=32,
            precision="bf16",
            latency_ms_p50=0.1,
            latency_ms_p90=0.1,
            dense_ms_p50=0.21,
            speedup_vs_dense=2.1,
            speedup_p10=2.0,
            speedup_p90=2.2,
            roofline_share=0.35,
            rounds=30,
        )
    ],
    skipped=[Skipped(backend="kernels", precision="bf16", model="sparse tile, 197 tokens", reason="too small")],
)
TILE = {"kernel": "sparse tile", "tokens": 1025, "batch": 32}  # as in a target
REPORT = SuiteReport(
    benchmark="suite",
    preset="gpu",
    quick=False,
    command="vitslim bench suite --preset gpu",
    settings={"device": "cuda", "threads": 1, "rounds": 30, "training": None},
    trained=[],
    cases=[MEASURED, LARGE, ABSENT, KERNELS],
    left=["deit_base-512-bf16-compiled-graph-b32"],
    targets=[],
)
MIXED = CaseResult(
    case=Case(model="deit_small", image_size=224, backend="ort", also=("int8",), competitors=("evo-vit", "tome")),
    digest="0",
    status="measured",
    seconds=60.0,
    environment=ENVIRONMENT,
    rows=[
        row("dense", 1.0, precision="fp32"),
        row("evo-vit", 1.5, precision="fp32"),
        row("dense", 2.0, precision="int8"),
        row("evo-vit", 2.8, precision="int8"),
    ],
)
SWITCHED = CaseResult(
    case=GRAPH.model_copy(update={"competitors": ("evo-vit", "evo-vit-aligned"), "triton": ("0", "1")}),
    digest="0",
    status="measured",
    seconds=60.0,
    environment=ENVIRONMENT,
    rows=[
        row("dense", 1.0),
        *(
            row(name, speedup, triton=mode, kernels="token_selection", tokens=197)
            for name, speeds in (("evo-vit", (1.4, 1.61)), ("evo-vit-aligned", (1.5, 1.53)))
            for mode, speedup in zip("01", speeds, strict=True)
        ),
    ],
)
EMPTY = REPORT.model_copy(update={"cases": []})


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_precisions_of_one_run_stand_against_dense_in_the_first_and_in_their_own() -> None:
    (table,) = overviews(REPORT.model_copy(update={"cases": [MIXED]}))
    assert table.title == "deit_small, 224 px, precisions"
    assert list(table.header) == ["speed", "dense ms", "dense", "evo-vit", "tome"]
    assert [list(line) for line in table.rows] == [
        ["ort fp32 b1", "2.00", "1.00x", "1.50x (1.50x)", "–"],
        ["ort int8 b1", "1.00", "2.00x", "2.80x (1.40x)", "–"],
    ]
    target = GainTarget(
        what="INT8",
        at_least=2.5,
        precision="int8",
        model="deit_small",
        image_size=224,
        backend="ort",
        competitors=("evo-vit",),
    )
    (reached,) = targets_table(REPORT.model_copy(update={"cases": [MIXED], "targets": [target]}))
    assert [str(cell) for cell in reached.rows[0]][:4] == ["INT8", "2.50x", "2.80x", "evo-vit"]
    assert [line[:2] for line in case_table(MIXED).rows] == [
        ["dense", "fp32"],
        ["evo-vit", "fp32"],
        ["dense", "int8"],
        ["evo-vit", "int8"],
    ]


def test_kernels_in_whole_models_stand_against_the_same_models_without() -> None:
    report = REPORT.model_copy(update={"cases": [SWITCHED]})
    (table,) = triton_tables(report)
    assert list(table.header) == ["model", "method", "224 px, bf16, b1"]
    assert [list(line) for line in table.rows] == [
        ["deit_small", "evo-vit", "1.15x"],
        ["deit_small", "evo-vit-aligned", "1.02x"],
    ]
    assert overviews(report) == []
    assert "Triton kernels in whole models" in render_tables(report)
    (measured,) = triton_measurements(report)  # what gains least
    assert measured[:-1] == ("token_selection", "9.0", "bfloat16", 1, 197)
    assert measured.speedup == pytest.approx(1.02)
    assert triton_measurements(REPORT) == []


def test_the_overview_has_a_column_per_setting_and_a_row_per_competitor() -> None:
    (table,) = overviews(REPORT)
    text = table.markdown()
    assert cells(text, "speed (of the MAC ratio)") == ["224 px, b1", "224 px, b8"]
    assert cells(text, "dense, ms per batch") == ["2.00", "2.00"]
    assert cells(text, "evo-vit") == ["1.45x (95 %)", "0.97x (63 %)"]
    assert cells(text, "pair") == ["1.90x (124 %)", "no memory"]
    assert cells(text, "depth-drop") == ["1.50x (98 %)", "–"]
    assert "tome" not in text


def case_of(model: str, size: int, batch: int) -> CaseResult:
    own = GRAPH.model_copy(update={"model": model, "image_size": size, "batch": batch})
    rows = [row(name, 1.0, batch) for name in ("dense", "evo-vit")]
    return MEASURED.model_copy(update={"case": own, "rows": rows, "skipped": []})


def test_every_model_has_an_overview_of_its_own_with_its_settings_in_order() -> None:
    cases = [case_of("b", 512, 8), case_of("a", 224, 256), case_of("b", 224, 256), case_of("b", 224, 1)]
    first, second = overviews(REPORT.model_copy(update={"cases": cases}))
    assert (first.title, second.title) == ("b, compiled-graph bf16", "a, compiled-graph bf16")
    assert list(first.header)[1:] == ["224 px, b1", "224 px, b256", "512 px, b8"]


def test_a_whole_grid_has_a_table_per_size_and_the_main_ones_are_those_with_targets() -> None:
    grid = [case_of(model, size, batch) for model in "abc" for size in (224, 384, 512) for batch in (1, 8, 32)]
    target = GainTarget(what="t", precision="bf16", model="b", image_size=224, competitors=("evo-vit",), at_least=1.0)
    report = REPORT.model_copy(update={"cases": grid, "targets": [target]})
    found = overviews(report)
    assert [table.title[0] for table in found] == [*"aaabbbccc"]
    assert found[0].cells[0][1:] == ["224 px, b1", "224 px, b8", "224 px, b32"]
    assert main_tables(report)[1:] == found[3:6]
    kernels = GainTarget(what="t", precision="bf16", kernel="sparse tile", tokens=1025, at_least=1.0)
    for targets in ([kernels], [target.model_copy(update={"model": "d"})]):
        assert main_tables(report.model_copy(update={"targets": targets}))[1:] == found


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ({"competitors": ("evo-vit", "pair"), "at_least": 1.8}, ["1.80x", "1.90x", "pair", "yes"]),
        ({"competitors": ("evo-vit",), "at_least": 1.5}, ["1.50x", "1.45x", "evo-vit", "no"]),
        ({"competitors": ("evo-vit",), "batch": 256, "at_least": 1.0}, ["1.00x", "not measured", "–", "–"]),
        ({"competitors": ("tome",), "at_least": 1.0}, ["1.00x", "not measured", "–", "–"]),
        ({"competitors": ("depth-drop",), "of": "weights", "at_least": 1.6}, ["1.60x", "1.47x", "depth-drop", "no"]),
        ({"competitors": ("depth-drop",), "of": "memory", "at_least": 1.2}, ["1.20x", "1.25x", "depth-drop", "yes"]),
        ({"competitors": ("pair",), "of": "memory", "at_least": 1.2}, ["1.20x", "not measured", "–", "–"]),
        # 4.6 over 3 GMAC
        ({"competitors": ("evo-vit",)}, ["1.46x, 95 % of the MACs' ratio", "1.45x", "evo-vit", "no"]),
        ({"competitors": ("evo-vit", "pair")}, ["1.46x, 95 % of the MACs' ratio", "1.90x", "pair", "yes"]),
        ({"competitors": ("tome",)}, ["95 % of the MACs' ratio", "not measured", "–", "–"]),
        (TILE | {"at_least": 2.0}, ["2.00x", "2.10x", "sparse tile", "yes"]),
        (TILE | {"kernel": "tile", "at_least": 2.0}, ["2.00x", "not measured", "–", "–"]),
        (TILE | {"tokens": 4097, "at_least": 3.0}, ["3.00x", "not measured", "–", "–"]),
        (TILE | {"batch": 1, "at_least": 2.0}, ["2.00x", "not measured", "–", "–"]),
    ],
)
def test_targets_say_whether_they_are_met(target: dict[str, Any], line: list[str]) -> None:
    setting = {"what": "a target", "precision": "bf16", "model": "deit_small", "image_size": 224}
    rows = [
        *(one for one in MEASURED.rows if one.model in ("dense", "evo-vit")),
        row("pair", 1.9, peak_memory_mib=None),
        row("depth-drop", 1.5, params=15_000_000, peak_memory_mib=80.0),
    ]
    cases = [MEASURED.model_copy(update={"rows": rows}), KERNELS]
    report = REPORT.model_copy(update={"targets": [GainTarget(**setting | target)], "cases": cases})
    assert cells(render_tables(report), "a target") == line
    assert targets_table(REPORT) == []


def test_the_details_say_what_of_the_saved_work_became_speed_and_name_the_peaks() -> None:
    table = case_table(MEASURED)
    line = dict(zip(table.cells[0], table.cells[2], strict=True))
    assert line["model"] == "evo-vit"
    # 1.45 * 3.0 / 4.6
    assert line["of MAC ratio"] == "95 %"
    assert (line["mJ/img"], line["W"], line["MHz"]) == ("3.00", "420", "1755")
    assert (line["of roofline"], line["memory MiB"]) == ("20 %", "100")
    assert "700 TFLOP/s (matrix product of 8192), 2900 GB/s" in table.note
    assert dict(zip(table.cells[0], table.cells[3], strict=True))["mJ/img"] == "-"


def test_weights_are_float32_where_they_are_trained() -> None:
    # 22 million parameters of four bytes
    assert row("dense", 1.0, backend="train").weights_mib == 2 * row("dense", 1.0).weights_mib == 22e6 * 4 / 2**20


def test_figures_that_nobody_has_get_no_column() -> None:
    bare = MEASURED.model_copy(update={"rows": [row("dense", 1.0, tflops=None, roofline_share=None)]})
    assert not {"mJ/img", "TFLOP/s", "of roofline", "file MiB"} & set(case_table(bare).cells[0])


def test_what_has_no_figure_is_listed_with_its_reason() -> None:
    stopped = ABSENT.model_copy(update={"case": GRAPH, "status": "too long", "reason": "not done after 60 s"})
    report = REPORT.model_copy(update={"cases": [MEASURED, LARGE, ABSENT, KERNELS, stopped]})
    lines = render_tables(report).splitlines()
    for sentence in (
        "* deit_small-224-fp16-tensorrt-b1: unavailable, tensorrt needs tensorrt",
        "* deit_small-224-bf16-compiled-graph-b1, tome: not installed",
        "* deit_small-224-bf16-compiled-graph-b8, pair: no room",
        "* deit_small-224-bf16-compiled-graph-b1: too long, not done after 60 s",
        "* kernels-bf16-b32, sparse tile, 197 tokens: too small",
        "* no energy and clocks: none here",
        "* 1 of 5 cases are not begun",
    ):
        assert lines.count(sentence) == 1
    assert "kernels-bf16-b32: measured" not in lines


def test_kernels_stand_beside_their_share_of_the_roofline() -> None:
    assert cells(render_tables(REPORT), "sparse tile") == ["2.10x (35 %)"]


def test_the_caption_names_machine_method_and_command() -> None:
    assert caption(REPORT) == (
        "NVIDIA H100; random weights; medians of up to 30 interleaved rounds; speed against dense with fused attention "
        "in the same rounds; torch 2.11.0; `vitslim bench suite --preset gpu`."
    )


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "Nothing measured yet" in render_tables(EMPTY)
    assert overviews(EMPTY) == []
    page = write_suite(EMPTY, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {page.name, "tables.md"}
    assert "Not measured: run" in words(page.read_text())


def test_the_page_stands_alone_and_has_its_figures_in_it(tmp_path: Path) -> None:
    page = write_suite(REPORT, tmp_path)
    html = page.read_text()
    assert html.count("<svg") == 2  # two batches
    assert not re.search(r"http|<script|<link|<img", html)
    for phrase in ("1.45x (95 %)", "tensorrt needs tensorrt", "2.10x (35 %)"):
        assert phrase in words(html)
    assert ">evo-vit</text>" in html
    assert (tmp_path / "tables.md").read_text() == render_tables(REPORT) + "\n"


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.9, 0.5, 0.1], [0.9, 0.5, 0.1]),
        ([0.5, 0.5, 0.5], [0.5, 0.4, 0.3]),
        ([0.1, 0.05, 0.0], [0.2, 0.1, 0.0]),
        ([], []),
    ],
)
def test_names_are_moved_apart_and_stay_on_the_picture(places: list[float], expected: list[float]) -> None:
    assert spread(places, 0.1) == pytest.approx(expected)


# --- accuracy --------------------------------------------------------------------------------------------------------


def trained(model: str, top1: float, **changes: Any) -> TrainedModel:
    plain = {"kind": "method", "top1": top1, "agreement": 0.95, "images": 10_000, "params": 22_000_000}
    own = AccuracyRow(**{**plain, "macs": 3_000_000_000, "steps": 500, **changes})
    return TrainedModel(model=model, row=own, digest="0", status="measured", seconds=9.0, environment=ENVIRONMENT)


ACCURACY = REPORT.model_copy(
    update={
        "benchmark": "accuracy",
        "command": "vitslim bench accuracy --preset gpu",
        "settings": REPORT.settings
        | {
            "training": {
                "batch_size": 256,
                "data": {"classes": 400},
                "teacher": {"steps": 4000},
                "budget": {"steps": 500},
            }
        },
        "trained": [
            trained("teacher", 0.905, kind="dense", agreement=None),
            trained("dense-finetuned", 0.92, kind="dense"),
            trained("evo-vit", 0.914),
            trained("pair", 0.905),
            trained("not-timed", 0.9),
        ],
        "cases": [MEASURED],
        "left": [],
    }
)


def test_the_accuracy_table_compares_with_the_fine_tuned_baseline() -> None:
    text = render_tables(ACCURACY)
    table = "\n".join(text.split("**Accuracy and speed**")[1].splitlines()[:12])
    # 1.96 * sqrt(0.914 * 0.086 / 10000)
    assert cells(table, "evo-vit")[:4] == ["91.40 %", "0.55", "-0.60", "95.00 %"]
    assert cells(table, "evo-vit")[-1] == "1.45x, 1.38 ms"
    assert cells(table, "teacher")[2:] == ["-1.50", "–", "22.00", "3", "1.00x, 2.00 ms"]
    assert cells(table, "not-timed")[-1] == "–"
    assert "400 fractals" in text


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ({"at_least": 1.4, "max_loss": 0.6}, ["1.40x, at most 0.6 points lost", "1.45x", "evo-vit", "yes"]),
        ({"at_least": 1.5, "max_loss": 0.6}, ["1.50x, at most 0.6 points lost", "1.45x", "evo-vit", "no"]),
        ({"at_least": 1.4, "max_loss": 0.5}, ["1.40x, at most 0.5 points lost", "none is as accurate", "–", "no"]),
        ({"at_least": 1.4}, ["1.40x", "1.90x", "pair", "yes"]),
        ({"at_least": 1.4, "batch": 8}, ["1.40x", "not measured", "–", "–"]),
    ],
)
def test_a_target_of_both_counts_who_is_accurate_enough(target: dict[str, Any], line: list[str]) -> None:
    setting: dict[str, Any] = {"what": "a target", "precision": "bf16", "model": "deit_small", "image_size": 224}
    wanted = GainTarget(**setting, competitors=("evo-vit", "pair", "not-timed"), **target)
    assert cells(render_tables(ACCURACY.model_copy(update={"targets": [wanted]})), "a target") == line


def test_the_accuracy_page_has_the_front_in_it_and_says_what_failed(tmp_path: Path) -> None:
    failed = ACCURACY.trained[-1].model_copy(update={"row": None, "status": "failed", "reason": "broken"})
    report = ACCURACY.model_copy(update={"trained": [*ACCURACY.trained[:-1], failed]})
    text = write_suite(report, tmp_path).read_text()
    assert text.count("<svg") == 1
    assert "91.40 %" in words(text)
    assert "not-timed: failed, broken" in words(text)
    alone = ACCURACY.model_copy(update={"trained": [trained("teacher", 0.5)], "cases": []})
    (table,) = accuracy_table(alone)
    assert table.cells[1][3] == "–"


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    places = {
        "dense": (1.0, 80.0),
        "worse": (0.9, 79.0),
        "fast": (1.4, 70.0),
        "middle": (1.2, 75.0),
        "lost": (1.1, 74.0),
    }
    points = [Point(name, *place) for name, place in places.items()]
    assert [point.name for point in pareto_front(points)] == ["fast", "middle", "dense"]
