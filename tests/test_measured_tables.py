"""That no figure of the README is typed: its tables are what the committed JSON gives."""

import pytest

from tests.test_examples import opened
from vitslim.errors import ConfigError

measure = opened("measure")


def test_every_committed_table_is_what_its_json_gives() -> None:
    measure.check()


def test_a_typed_figure_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (measure.GUIDES / "benchmark.md").read_text()
    assert "| evo-vit |" in text
    changed = tmp_path / "README.md"
    changed.write_text(text.replace("| evo-vit |", "| evo-vit, twice as good |"))
    monkeypatch.setattr(measure, "PAGES", {changed: measure.PAGES[measure.GUIDES / "benchmark.md"]})
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "tables", dict)
    with pytest.raises(SystemExit, match=r"README\.md: a table is not what it should be; run `make readme`"):
        measure.check()
    measure.readme()
    assert changed.read_text() == text


@pytest.mark.parametrize("name", sorted(measure.TABLES))
def test_without_json_a_table_names_the_command(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    text = measure.rendered(f"<!-- begin {name} --><!-- end {name} -->", (name,))
    assert f"Not measured yet; the command is `{measure.TABLES[name][1]}`" in text


def test_a_lost_marker_is_an_error() -> None:
    with pytest.raises(ConfigError, match="begin demo"):
        measure.rendered(measure.README.read_text().replace("<!-- begin demo -->", ""), ("demo",))


def test_what_kernels_gain_goes_where_the_switch_reads_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.report.test_suite_report import REPORT, SWITCHED
    from vitslim.files import read_json, write_json

    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    path = tmp_path / "vitslim" / "assets" / "triton_measured.json"
    old = {"family": "token_selection", "capability": "9.0", "dtype": "bfloat16", "images": 1, "tokens": 197}
    other = old | {"capability": "8.0", "speedup": 1.3}
    write_json(path, {"rows": [old | {"speedup": 0.8}, other]})
    report = REPORT.model_copy(update={"cases": [SWITCHED]})
    write_json(tmp_path / "suite" / "suite.json", report.model_dump(mode="json"))
    measure.collect(str(tmp_path / "suite"))
    new, kept = read_json(path)["rows"]
    assert new == old | {"speedup": pytest.approx(1.02)}
    assert kept == other
    assert (tmp_path / "results" / "suite_gpu_triton.json").is_file()


def test_precisions_have_figures_of_their_own_beside_those_of_an_earlier_run(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.report.test_suite_report import MIXED, REPORT
    from vitslim.files import read_json, write_json

    results = tmp_path / "results"
    monkeypatch.setattr(measure, "RESULTS", results)
    left = ["deit_tiny-224-fp32+int8-ort-b1", "deit_small-512-fp32-ort-b1"]
    run = REPORT.model_copy(update={"preset": "cpu", "cases": [MIXED], "left": left})
    for report in (REPORT.model_copy(update={"preset": "cpu"}), run):
        write_json(tmp_path / "suite" / "suite.json", report.model_dump(mode="json"))
        measure.collect(str(tmp_path / "suite"))
    assert len(read_json(results / "suite_cpu.json")["cases"]) == len(REPORT.cases)
    found = read_json(results / "suite_cpu_precisions.json")
    assert found["left"] == left[:1]
    text = measure.table("suite_cpu_precisions")
    assert "| ort int8 b1 | 1.00 | 2.00x | 2.80x (1.40x) |" in text
    assert "Not measured yet: 1 of 2 cases." in text
    assert "`examples/results/suite_cpu_precisions.md`" in text


def test_a_run_of_the_suite_is_collected_with_its_tables(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.report.test_suite_report import ACCURACY, REPORT
    from vitslim.files import write_json
    from vitslim.report.suite import render_tables

    results = tmp_path / "results"
    monkeypatch.setattr(measure, "RESULTS", results)
    for name, report in (("suite", REPORT), ("accuracy", ACCURACY)):
        write_json(tmp_path / name / "suite.json", report.model_dump(mode="json"))
    for name in ("suite", "accuracy"):
        measure.collect(str(tmp_path / name))
    assert (results / "suite_gpu.md").read_text() == render_tables(REPORT) + "\n"
    assert {path.name for path in results.iterdir()} == {
        *("suite_gpu.json", "suite_gpu.md", "accuracy_gpu.json", "accuracy_gpu.md"),
    }
    text = measure.table("suite_gpu") + measure.table("accuracy_gpu")
    assert "| evo-vit | 1.45x (95 %) | 0.97x (63 %) |" in text
    assert "1.45x, 1.38 ms" in text


def test_the_benchmark_of_the_planner_is_collected_with_its_pictures(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitslim.files import write_json
    from vitslim.planner.comparison import REPORT_FILE, PlannerBenchReport, Student

    def student(way: str, share: float, **top1: float) -> Student:
        seeds = {name.removeprefix("seed"): value for name, value in top1.items()}
        return Student(
            task="digits", runtime="ort-b1-fp32", speedup=2.0, way=way, entries=[], digest=way, share=share,
            top1=seeds, loss={}, macs=1, params=1,
        )  # fmt: skip

    report = PlannerBenchReport(
        preset="cpu",
        command="vitslim bench planner",
        settings={"tasks": {"digits": {"distill": {"steps": 100}}}, "close": 1.0},
        environment={"cpu": "a CPU", "onnxruntime": "1", "torch": "2"},
        finetuned={"digits": {"0": 0.9, "1": 0.92}},
        students=[student("planner", 0.5, seed0=0.9, seed1=0.91), student("depth", 0.45, seed0=0.89)],
        planning=[],
        unreached=[{"task": "digits", "runtime": "ort-b1-fp32", "speedup": 2.0, "way": "heads", "best": 1.3}],
        times=[],
        images={"digits": 899},
        foretold={"digits": {"KL at the start": 0.7}},
    )
    write_json(tmp_path / "run" / REPORT_FILE, report.model_dump(mode="json"))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.collect(str(tmp_path / "run"))
    assert (tmp_path / "planner_cpu_digits_ort-b1-fp32.svg").read_text().count("<svg")
    table = measure.table("planner_cpu")
    assert "**digits** in ONNX Runtime, batch 1, fp32" in table
    assert "| planner | *90.50 ± 0.50 (2.00x)* |" in table
    assert "| depth | 89.00 (2.22x) |" in table
    assert "| heads | at most 1.30x |" in table
    assert "| KL at the start | +0.70 |" in table
    assert "| heads |" not in measure.table("planner_best")


def test_a_quick_run_is_not_collected(tmp_path) -> None:
    from tests.report.test_suite_report import REPORT
    from vitslim.files import write_json

    write_json(tmp_path / "suite.json", REPORT.model_copy(update={"quick": True}).model_dump(mode="json"))
    with pytest.raises(SystemExit, match="quick run, whose figures mean little"):
        measure.collect(str(tmp_path))
