"""The suite's tables, pictures and pages, from figures made up here."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.reading import words
from vitslim.bench.accuracy import AccuracyReport, AccuracyRow
from vitslim.bench.kernels import KernelRow, KernelSkip
from vitslim.bench.result import Skipped
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.suite import Case, CaseResult, GainTarget, SuiteReport, SuiteRow
from vitslim.report.charts import Point, pareto_front, spread
from vitslim.report.suite import (
    accuracy_table,
    readme_tables,
    render_accuracy,
    render_overview,
    render_tables,
    write_accuracy,
    write_suite,
)
from vitslim.report.suite.tables import (
    main_overviews,
    overview,
    overviews,
    piece_table,
    shortened,
    targets_table,
)

ENVIRONMENT: dict[str, Any] = {"cpu": "A CPU", "gpu": [{"name": "NVIDIA H100"}], "torch": "2.11.0"}


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
        "base": "deit_small",
        "size": 224,
        "kind": {"dense": "dense", "evo-vit": "method", "pair": "pair"}.get(model, "baseline"),
        "tflops": 100.0 * speedup,
        "gbytes_s": 900.0,
        "intensity": 110.0,
        "roofline_share": 0.2,
    }
    return SuiteRow(**{**plain, **changes})


CEILINGS = MeasuredPeaks(tflops=700.0, gbytes_s=2900.0, gemm_size=8192, copy_mib=1024.0)
GRAPH = Case(
    model="deit_small",
    image_size=224,
    precision="bf16",
    backend="compiled-graph",
    batches=(1, 8),
    competitors=("evo-vit", "pair", "depth-drop", "tome"),
)
MEASURED = CaseResult(
    piece=GRAPH,
    digest="0",
    status="measured",
    seconds=60.0,
    environment=ENVIRONMENT,
    ceilings=CEILINGS,
    rows=[
        row("dense", 1.0),
        row("evo-vit", 1.45, energy_mj_per_image=3.0, power_w=420.0, sm_clock_mhz=1755),
        row("pair", 1.9),
        row("depth-drop", 1.5),
        row("dense", 1.0, 8),
        row("evo-vit", 0.97, 8),
    ],
    skipped=[
        Skipped(backend="compiled-graph", precision="bf16", reason="not installed", model="tome"),
        Skipped(
            backend="compiled-graph", precision="bf16", reason="no room", model="pair", batch=8, out_of_memory=True
        ),
    ],
    notes=["no energy and clocks: none here"],
)
ABSENT = CaseResult(
    piece=Case(model="deit_small", image_size=224, precision="fp16", backend="tensorrt"),
    digest="0",
    status="unavailable",
    reason="tensorrt needs tensorrt",
    seconds=0.1,
)
KERNELS = CaseResult(
    piece=Case(kind="kernels", precision="bf16", batches=(32,), tokens=(197, 1025)),
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
            tflops=200.0,
            gbytes_s=1000.0,
            intensity=200.0,
            roofline_share=0.35,
            rounds=30,
        )
    ],
    kernel_skips=[KernelSkip(kernel="sparse tile", tokens=197, batch=32, reason="too small", out_of_memory=False)],
)
TILE = {"kernel": "sparse tile", "tokens": 1025, "batch": 32}  # as in an aim
REPORT = SuiteReport(
    preset="gpu",
    quick=False,
    command="vitslim bench suite --preset gpu",
    settings={"device": "cuda", "threads": 1, "rounds": 30},
    environment=ENVIRONMENT,
    pieces=[MEASURED, ABSENT, KERNELS],
    left=["deit_base-512-bf16-compiled-graph-b32"],
)
EMPTY = REPORT.model_copy(update={"pieces": [], "environment": {}})


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_overview_has_a_column_per_setting_and_a_row_per_competitor() -> None:
    table = overview(REPORT, ("deit_small", "compiled-graph", "bf16"))
    assert table is not None
    text = table.markdown()
    assert cells(text, "speed against dense (of the MAC ratio)") == ["224 px, b1", "224 px, b8"]
    assert cells(text, "dense, ms per batch") == ["2.00", "2.00"]
    assert cells(text, "evo-vit") == ["1.45x (95 %)", "0.97x (63 %)"]
    assert cells(text, "pair") == ["1.90x (124 %)", "no memory"]
    assert cells(text, "depth-drop") == ["1.50x (98 %)", "–"]
    assert "tome" not in text


def piece_of(model: str, size: int, batch: int) -> CaseResult:
    own = GRAPH.model_copy(update={"model": model, "image_size": size, "batches": (batch,)})
    rows = [row(name, 1.0, batch, base=model, size=size) for name in ("dense", "evo-vit")]
    return MEASURED.model_copy(update={"piece": own, "rows": rows, "skipped": []})


def test_every_model_has_an_overview_of_its_own_with_its_settings_in_order() -> None:
    pieces = [piece_of("b", 512, 8), piece_of("a", 224, 256), piece_of("b", 224, 256), piece_of("b", 224, 1)]
    first, second = overviews(REPORT.model_copy(update={"pieces": pieces}))
    assert (first.title, second.title) == ("b, compiled-graph bf16", "a, compiled-graph bf16")
    assert list(first.header)[1:] == ["224 px, b1", "224 px, b256", "512 px, b8"]


def test_a_whole_grid_has_a_table_per_size_and_the_readme_those_with_aims() -> None:
    grid = [piece_of(model, size, batch) for model in "abc" for size in (224, 384, 512) for batch in (1, 8, 32)]
    aim = GainTarget(what="an aim", precision="bf16", model="b", image_size=224, competitors=("evo-vit",), at_least=1.0)
    report = REPORT.model_copy(update={"pieces": grid, "aims": [aim]})
    titles = [table.title for table in overviews(report)]
    assert titles[:3] == [f"a {size} px, compiled-graph bf16" for size in (224, 384, 512)]
    assert len(titles) == 9
    assert overviews(report)[0].cells[0][1:] == ["224 px, b1", "224 px, b8", "224 px, b32"]
    assert [table.title for table in main_overviews(report)] == titles[3:6]
    assert all(f"**{title}**" in render_tables(report) for title in titles)
    text = readme_tables(report)
    assert [title for title in titles if f"**{title}**" in text] == titles[3:6]
    kernels = GainTarget(what="an aim", precision="bf16", kernel="sparse tile", tokens=1025, at_least=1.0)
    for aims in ([], [kernels], [aim.model_copy(update={"model": "d"})]):
        shown = main_overviews(report.model_copy(update={"aims": aims}))
        assert [table.title for table in shown] == titles


def test_of_many_names_the_first_are_said() -> None:
    names = [f"p{number}" for number in range(11)]
    assert shortened(names[:8]) == ", ".join(names[:8])
    assert shortened(names) == f"{', '.join(names[:8])} and 3 more"


@pytest.mark.parametrize(
    ("aim", "line"),
    [
        ({"competitors": ("evo-vit", "pair"), "at_least": 1.8}, ["1.80x", "1.90x", "pair", "yes"]),
        ({"competitors": ("evo-vit",), "at_least": 1.5}, ["1.50x", "1.45x", "evo-vit", "no"]),
        ({"competitors": ("evo-vit",), "batch": 256, "at_least": 1.0}, ["1.00x", "not measured", "–", "–"]),
        ({"competitors": ("small",), "of": "weights", "at_least": 1.6}, ["1.60x", "1.47x", "small", "no"]),
        ({"competitors": ("small",), "of": "memory", "at_least": 1.2}, ["1.20x", "1.25x", "small", "yes"]),
        ({"competitors": ("none",), "of": "memory", "at_least": 1.2}, ["1.20x", "not measured", "–", "–"]),
        (TILE | {"at_least": 2.0}, ["2.00x", "2.10x", "sparse tile", "yes"]),
        (TILE | {"kernel": "tile", "at_least": 2.0}, ["2.00x", "not measured", "–", "–"]),
        (TILE | {"tokens": 4097, "at_least": 3.0}, ["3.00x", "not measured", "–", "–"]),
        (TILE | {"batch": 1, "at_least": 2.0}, ["2.00x", "not measured", "–", "–"]),
    ],
)
def test_aims_say_whether_they_are_met(aim: dict[str, Any], line: list[str]) -> None:
    setting = {"what": "an aim", "precision": "bf16"}
    if "kernel" not in aim:
        setting |= {"model": "deit_small", "image_size": 224}
    others = [row("small", 1.0, params=15_000_000, peak_memory_mib=80.0), row("none", 1.0, peak_memory_mib=None)]
    measured = MEASURED.model_copy(update={"rows": [*MEASURED.rows, *others]})
    report = REPORT.model_copy(update={"aims": [GainTarget(**setting, **aim)], "pieces": [measured, KERNELS]})
    assert cells(render_tables(report), "an aim") == line
    assert targets_table(REPORT) is None


def test_the_details_say_what_of_the_saved_work_became_speed_and_name_the_ceilings() -> None:
    table = piece_table(MEASURED, 1)
    line = dict(zip(table.cells[0], table.cells[2], strict=True))
    assert line["competitor"] == "evo-vit"
    # 1.45 * 3.0 / 4.6
    assert line["of MAC ratio"] == "95 %"
    assert (line["mJ/img"], line["W"], line["MHz"]) == ("3", "420", "1755")
    assert line["of roofline"] == "20 %"
    # 22 million parameters of two bytes
    assert (line["weights MiB"], line["memory MiB"]) == ("42.0", "100")
    assert "700 TFLOP/s (matrix product of 8192), 2900 GB/s" in table.note
    assert dict(zip(table.cells[0], table.cells[3], strict=True))["mJ/img"] == "–"


def test_weights_are_float32_where_they_are_trained() -> None:
    # 22 million parameters of four bytes
    assert row("dense", 1.0, backend="train").weights_mib == 2 * row("dense", 1.0).weights_mib == 22e6 * 4 / 2**20


def test_figures_that_nobody_has_get_no_column() -> None:
    bare = MEASURED.model_copy(update={"rows": [row("dense", 1.0, tflops=None, roofline_share=None)]})
    assert not {"mJ/img", "TFLOP/s", "of roofline", "file MiB"} & set(piece_table(bare, 1).cells[0])


def test_what_has_no_figure_is_listed_with_its_reason() -> None:
    text = render_tables(REPORT)
    for sentence in (
        "* deit_small-224-fp16-tensorrt-b1: unavailable, tensorrt needs tensorrt",
        "* deit_small-224-bf16-compiled-graph-b1+8, tome: not installed",
        "* deit_small-224-bf16-compiled-graph-b1+8, pair, batch 8: no room",
        "* kernels-bf16-b32, sparse tile, 197 tokens: too small",
        "* no energy and clocks: none here",
        "* not begun: deit_base-512-bf16-compiled-graph-b32",
    ):
        assert sentence in text.splitlines()
    assert "kernels-bf16-b32: measured" not in text


def test_a_piece_that_was_stopped_is_named_once() -> None:
    stopped = ABSENT.model_copy(update={"status": "too long", "reason": "not done after 60 s"})
    report = REPORT.model_copy(update={"pieces": [stopped], "left": [stopped.piece.name]})
    text = render_tables(report)
    assert "* deit_small-224-fp16-tensorrt-b1: too long, not done after 60 s" in text.splitlines()
    assert "not begun" not in text


def test_kernels_stand_beside_their_share_of_the_roofline() -> None:
    assert cells(render_tables(REPORT), "sparse tile") == ["2.10x (35 %)"]


def test_the_readme_has_the_overviews_the_machine_and_what_is_left() -> None:
    text = readme_tables(REPORT)
    assert "NVIDIA H100; medians of up to 30 interleaved rounds" in text
    assert "`vitslim bench suite --preset gpu`." in text
    assert "Not measured yet: 1 of 4 pieces, deit_base-512-bf16-compiled-graph-b32." in text
    assert "p99" not in text


def test_a_terminal_gets_aligned_columns() -> None:
    lines = render_overview(REPORT).splitlines()
    header = next(line for line in lines if line.startswith("speed against dense"))
    evo = next(line for line in lines if line.startswith("evo-vit"))
    assert len(header) == len(evo)
    assert "|" not in evo


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "Nothing measured yet" in render_tables(EMPTY)
    assert overview(EMPTY, ("deit_small", "torch", "fp32")) is None
    page, tables = write_suite(EMPTY, tmp_path)
    assert (page.name, tables.name) == ("suite.html", "tables.md")
    assert "Not measured: run" in words(page.read_text())


def test_the_page_stands_alone_and_has_its_figures_in_it(tmp_path: Path) -> None:
    page, tables = write_suite(REPORT, tmp_path)
    html = page.read_text()
    assert html.count("<svg") == 3  # the roofline, two batches
    assert not re.search(r"http|<script|<link|<img", html)
    for phrase in ("1.45x (95 %)", "tensorrt needs tensorrt", "2.10x (35 %)"):
        assert phrase in words(html)
    assert ">evo-vit</text>" in html
    assert tables.read_text() == render_tables(REPORT) + "\n"


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


def trained(model: str, top1: float, **changes: Any) -> AccuracyRow:
    plain: dict[str, Any] = {
        "model": model,
        "kind": "method",
        "top1": top1,
        "agreement": 0.95,
        "images": 10_000,
        "params": 22_000_000,
        "macs": 3_000_000_000,
        "steps": 500,
        "trained_images_per_second": 3000.0,
        "speed": [row(model, 1.45)],
    }
    return AccuracyRow(**{**plain, **changes})


ACCURACY = AccuracyReport(
    preset="gpu",
    quick=False,
    command="vitslim bench accuracy --preset gpu",
    settings={
        "device": "cuda",
        "batch_size": 256,
        "model": {"name": "deit_small"},
        "data": {"classes": 400, "image_size": 224},
        "teacher": {"steps": 4000},
        "budget": {"steps": 500},
    },
    environment=ENVIRONMENT,
    drawn_images_per_second=60_000.0,
    rows=[
        trained("teacher", 0.905, kind="dense", agreement=None, speed=[row("dense", 1.0)]),
        trained("dense-finetuned", 0.92, kind="dense", speed=[row("dense", 1.0)]),
        trained("evo-vit", 0.914),
        trained("not-timed", 0.9, speed=[]),
    ],
    left=[],
    notes=["The same budget for all."],
)


def test_the_accuracy_table_compares_with_the_fine_tuned_dense_model() -> None:
    text = render_accuracy(ACCURACY)
    # 1.96 * sqrt(0.914 * 0.086 / 10000)
    assert cells(text, "evo-vit")[:4] == ["91.40 %", "0.55", "-0.60", "95.00 %"]
    assert cells(text, "evo-vit")[-1] == "1.45x, 1.38 ms"
    assert cells(text, "teacher")[3] == "–"
    assert cells(text, "not-timed")[-1] == "–"
    assert "400 classes of fractal images at 224 px" in text
    assert "60000 images/s drawn" in text
    assert "* The same budget for all." in text


def test_a_set_too_small_to_time_its_drawing_has_a_dash() -> None:
    assert "; – images/s drawn" in render_accuracy(ACCURACY.model_copy(update={"drawn_images_per_second": None}))


@pytest.mark.parametrize(
    ("aim", "line"),
    [
        ({"at_least": 1.4, "max_loss": 0.6}, ["1.40x", "0.6", "1.45x, -0.60", "evo-vit", "yes"]),
        ({"at_least": 1.5, "max_loss": 0.6}, ["1.50x", "0.6", "1.45x, -0.60", "evo-vit", "no"]),
        ({"at_least": 1.4, "max_loss": 0.5}, ["1.40x", "0.5", "none is as accurate", "–", "no"]),
        ({"at_least": 1.4}, ["1.40x", "–", "1.90x, -1.50", "pair", "yes"]),
        ({"at_least": 1.4, "batch": 8}, ["1.40x", "–", "not measured", "–", "–"]),
    ],
)
def test_an_aim_of_both_counts_who_is_accurate_enough(aim: dict[str, Any], line: list[str]) -> None:
    wanted = GainTarget(
        **{"what": "an aim", "precision": "bf16", "competitors": ("evo-vit", "pair", "not-timed"), **aim}
    )
    rows = [*ACCURACY.rows, trained("pair", 0.905, speed=[row("pair", 1.9)])]
    report = ACCURACY.model_copy(update={"aims": [wanted], "rows": rows})
    assert cells(render_accuracy(report), "an aim") == line


def test_a_run_that_is_not_done_says_what_is_left() -> None:
    assert "Not done yet: evo-vit, speed." in render_accuracy(
        ACCURACY.model_copy(update={"left": ["evo-vit", "speed"]})
    )
    none = ACCURACY.model_copy(update={"rows": []})
    assert render_accuracy(none) == "Not measured yet; the command is `vitslim bench accuracy --preset gpu`."


def test_the_accuracy_page_has_the_front_in_it(tmp_path: Path) -> None:
    page, tables = write_accuracy(ACCURACY, tmp_path)
    assert page.read_text().count("<svg") == 1
    assert "91.40 %" in words(page.read_text())
    assert tables.read_text() == render_accuracy(ACCURACY) + "\n"
    untimed = ACCURACY.model_copy(update={"rows": [trained("teacher", 0.5, speed=[])]})
    assert "Speed is not measured yet." in words(write_accuracy(untimed, tmp_path / "other")[0].read_text())
    assert accuracy_table(untimed).cells[1][3] == "–"


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
