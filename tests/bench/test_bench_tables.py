import re

import pytest
from inline_snapshot import snapshot

from vitslim.bench import (
    BenchReport,
    BenchRow,
    Skipped,
    caption,
    replace_between_markers,
    skipped_lines,
    text_table,
)
from vitslim.bench.tables import share_of_mac_ratio, significant
from vitslim.errors import ConfigError


def row(model: str, latency_ms: float, speedup: float) -> BenchRow:
    return BenchRow(
        model=model,
        backend="ort",
        precision="fp32",
        batch=8,
        image_size=(224, 224),
        latency_ms_p50=latency_ms,
        latency_ms_p90=latency_ms * 1.1,
        latency_ms_p99=latency_ms * 1.2,
        throughput_img_s=8 / latency_ms * 1e3,
        speedup_vs_dense=speedup,
        speedup_p10=speedup - 0.1,
        speedup_p90=speedup + 0.1,
        params=22_050_664,
        macs=4_598_882_304,
        peak_memory_mib=None,
        rounds=30,
    )


ROWS = [row("dense", 123.4, 1.0), row("skipat", 98.76, 1.25)]


def test_text_is_aligned():
    assert text_table(ROWS) == snapshot("""\
model   backend  precision  batch  p50 ms  p90 ms  img/s  speed-up  spread p10–p90  params M   GMAC
dense   ort      fp32       8         123     136   64.8     1.00x       0.90–1.10     22.05  4.599
skipat  ort      fp32       8        98.8     109   81.0     1.25x       1.15–1.35     22.05  4.599\
""")


def test_verdicts_ratios_across_backends_and_other_sizes_have_columns_where_there_are_any():
    torch = ROWS[0].model_copy(update={"backend": "torch", "speedup_vs_dense_torch": 1.0})
    changes = {"verdict": "too noisy", "speedup_vs_dense_torch": 1.8, "other_image_size": True, "image_size": (32, 64)}
    changed = ROWS[1].model_copy(update=changes)
    header, first, second = (re.split(r"  +", line) for line in text_table([torch, changed]).splitlines())
    columns = [header.index(name) for name in ("px", "verdict", "vs dense torch")]
    assert [first[column] for column in columns] == ["224x224", "baseline", "1.00x"]
    assert [second[column] for column in columns] == ["32x64*", "too noisy", "1.80x"]


def test_the_share_of_the_mac_ratio_is_shown_beside_a_baseline():
    half = ROWS[1].model_copy(update={"macs": ROWS[0].macs // 2})
    header, dense, cheaper = text_table([ROWS[0], half], "dense").splitlines()
    assert header.endswith("GMAC  of MAC ratio")
    assert dense.endswith("100 %")
    # Half of the operations could be 2x; 1.25x is 62 % of that (62.5, to even).
    assert cheaper.split()[-3:] == ["2.299", "62", "%"]


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (99.96, "100.0"), (7.0, "7.00"), (0.01234, "0.0123")])
def test_numbers_have_three_digits(value: float, text: str):
    assert significant(value) == text


def test_a_full_saving_is_a_share_of_one():
    half = ROWS[1].model_copy(update={"macs": ROWS[0].macs // 2, "speedup_vs_dense": 2.0})
    assert share_of_mac_ratio(half, ROWS[0].macs) == 1
    assert share_of_mac_ratio(ROWS[0], ROWS[0].macs) == 1


def test_no_rows_are_a_header():
    assert len(text_table([]).splitlines()) == 1


def test_the_caption_names_hardware_method_and_command():
    report = BenchReport(
        baseline="dense",
        settings={"device": "cpu", "threads": 1, "rounds": 30},
        environment={
            "cpu": "Some CPU",
            "gpu": [],
            "load_average": [0.5, 0, 0],
            "torch": "2.15.0",
            "onnxruntime": "1.31",
        },
        load_average_end=None,
        rows=ROWS,
        skipped=[Skipped(backend="compiled", precision="fp32", batch=8, reason="RuntimeError: no compiler")],
        notes=[],
    )
    assert caption(report) == (
        "Some CPU, 1 thread; median of up to 30 interleaved rounds; "
        "speed-up against 'dense' with fused attention in the same run; "
        "torch 2.15.0, onnxruntime 1.31; load average 0.5."
    )
    assert skipped_lines(report) == ["compiled fp32, batch 8: RuntimeError: no compiler"]


TEXT = "before\n<!-- begin speed -->\nold\n<!-- end speed -->\nafter\n"


def test_only_what_lies_between_the_markers_is_replaced():
    replaced = replace_between_markers(TEXT, "speed", "| a \\1 |\n")
    assert replaced == "before\n<!-- begin speed -->\n| a \\1 |\n<!-- end speed -->\nafter\n"
    assert replace_between_markers(replaced, "speed", "| a \\1 |") == replaced


@pytest.mark.parametrize("text", ["", TEXT + TEXT, "<!-- end speed --> <!-- begin speed -->"])
def test_markers_that_are_missing_or_doubled_are_refused(text):
    with pytest.raises(ConfigError, match="wanted one '<!-- begin speed -->'"):
        replace_between_markers(text, "speed", "new")
