import math
import re
from itertools import pairwise
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.variants import dense
from vitslim.analysis.colour import LIGHTNESS, heat_colour
from vitslim.methods import convert
from vitslim.report.axes import Axis, fit_axis, tick_label
from vitslim.report.bars import Series, block_bars, size_bars, speed_bars
from vitslim.report.curve import step_curve
from vitslim.report.documents import BenchRow, PlanStep
from vitslim.report.heatmap import heat_map, runs
from vitslim.report.markup import Markup, element, table
from vitslim.report.numbers import amount, block_list, fixed, half_width, percent, plain, points
from vitslim.report.scatter import Point, accuracy_speed_scatter, pareto_front
from vitslim.report.strip import plan_key, plan_strip, reuse_groups
from vitslim.trunk import plan_summary


def oklab(colour: str) -> tuple[float, float, float]:
    """sRGB to OKLab, the way opposite to the one under test."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    r, g, b = ((c / 12.92) if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def test_equal_steps_of_the_value_look_equally_far_apart() -> None:
    path = [oklab(heat_colour(step / 15)) for step in range(16)]
    distances = [math.dist(before, after) for before, after in pairwise(path)]
    # Chords of a curved path, and colours rounded to 1/255: a tenth is far below what the eye tells apart.
    assert max(distances) / min(distances) < 1.1


def test_the_scale_grows_lighter_all_the_way() -> None:
    lightness = [oklab(heat_colour(step / 63))[0] for step in range(64)]
    assert all(before < after for before, after in pairwise(lightness))
    assert (lightness[0], lightness[-1]) == pytest.approx(LIGHTNESS, abs=0.01)


def test_values_outside_the_scale_take_its_ends() -> None:
    assert heat_colour(-0.1) == heat_colour(0.0)
    assert heat_colour(1.2) == heat_colour(1.0)


def test_ticks_are_round_and_inside_the_range() -> None:
    assert Axis(0, 1, 0, 100).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Axis(0.01, 100, 0, 100, is_log=True).ticks() == [0.01, 0.1, 1, 10, 100]
    axis = fit_axis([3.0, 3.0], 0, 100)
    assert axis.low < 3 < axis.high
    assert tick_label(0.00002) == "2e−5"


def test_an_axis_maps_its_range_onto_its_pixels() -> None:
    axis = Axis(1, 100, 10, 30, is_log=True)
    assert [axis.position(value) for value in (1, 10, 100, 1000)] == [10, 20, 30, 30]


def test_a_heat_map_has_a_cell_per_pair_and_outlines_the_marked_runs() -> None:
    drawing = heat_map([[1.0, None, 0.5]] * 3, ["a", "b", "c"], [0, 2], "three layers")
    assert drawing.count("<title>") == 9
    assert drawing.count('class="undefined"') == 3
    assert drawing.count('class="marked"') == 2
    assert "a and c: 0.500" in drawing
    assert runs([3, 1, 2, 7]) == [(1, 3), (7, 7)]


def test_bars_leave_out_what_was_not_measured() -> None:
    drawing = block_bars([Series("R²", [None, 0.5, 0.25], "first")], ["a", "b", "c"], [1], "R²")
    heights = [float(found) for found in re.findall(r'class="first"[^>]* height="([\d.]+)"', drawing)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(2 * heights[1])


def test_a_long_name_stands_whole_above_its_bar() -> None:
    name = "skipat-identity-evo-vit: torch fp32, batch 1"
    row = BenchRow(model="m", backend="torch", batch=1, latency_ms_p50=1.0, speedup_vs_dense=1.2, verdict="faster")
    for drawing in (speed_bars({name: row}, ""), size_bars({name: (1, "1")}, "")):
        texts = re.findall(r"<text ([^>]*)>([^<]*)</text>", drawing)
        assert [attributes.split()[0] for attributes, text in texts if text == name] == ['x="0"']
        width = float(re.findall(r'viewBox="0 0 ([\d.]+)', drawing)[0])
        # DejaVu Sans at this size takes six units and a half for a letter.
        assert 6.5 * len(name) < width < 530


def test_a_noisy_ratio_is_drawn_in_grey_with_its_verdict() -> None:
    row = BenchRow(model="m", backend="torch", batch=1, latency_ms_p50=1.0, speedup_vs_dense=1.2, verdict="too noisy")
    assert 'class="speed-too-noisy"' in speed_bars({"m": row}, "")
    assert "m: 1.20×, too noisy" in speed_bars({"m": row}, "")


def test_a_curve_breaks_where_the_loss_is_not_a_number() -> None:
    curve = step_curve("loss", [1, 2, 3, 4], [2.0, math.nan, 1.0, 0.5])
    assert curve is not None
    path = re.findall(r'<path d="([^"]+)"', curve)[0]
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert step_curve("loss", [1], [math.inf]) is None
    assert step_curve("loss", [], []) is None


def plan(depth: int, method: str, **options: Any) -> list[PlanStep]:
    student = convert(dense("vit_plain", depth=depth), method, **options)
    return TypeAdapter(list[PlanStep]).validate_python(plan_summary(student))


def test_reusing_steps_take_the_last_output_computed_before_them() -> None:
    steps = plan(6, "skipat", layers=(1, 2, 5), identity=True)
    assert reuse_groups(steps) == [(0, [1, 2]), (4, [5])]
    for strip in re.findall(r"<svg.*?</svg>", plan_strip(steps)):
        assert strip.count("<g>") == len(steps)
        # one tip per reusing step, one dot per source
        assert strip.count('class="arrow"') == 3 + 2


@pytest.mark.parametrize("source", [10, 11])
def test_a_strip_of_two_rows_carries_lines_over_the_edge(source: int) -> None:
    steps = plan(source + 4, "skipat", layers=tuple(range(source + 1, source + 4)), identity=True)
    wide, narrow = re.findall(r"<svg.*?</svg>", plan_strip(steps))
    assert (wide.count('class="arrow"'), narrow.count('class="arrow"')) == (4, 4)
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', narrow)[0])
    assert width < 330 < height  # four to a row: readable on a telephone without scrolling


def test_steps_that_share_weights_are_tied_in_the_strip_and_explained() -> None:
    steps = plan(4, "sret", groups=((0, 1), (2, 3)))
    assert [step.shares_with for step in steps] == [None, 0, None, 2]
    assert "applies the same weights again" in plan_key(steps)
    assert plan_strip(steps).count('class="sharing"') == 2 * 2


def test_the_narrow_form_is_named_in_full_in_its_box() -> None:
    wide, _ = re.findall(r"<svg.*?</svg>", plan_strip(plan(2, "skipat", layers=(1,), expansion=0.25)))
    assert ">expansion 0.25</text>" in wide
    assert wide.count("textLength") == 1


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points_at = {
        "dense": (1.0, 0.8),
        "worse": (0.9, 0.79),
        "fast": (1.4, 0.7),
        "middle": (1.2, 0.75),
        "lost": (1.1, 0.74),
    }
    models = [Point(name, speedup, top1, 10 / speedup) for name, (speedup, top1) in points_at.items()]
    assert [point.name for point in pareto_front(models)] == ["fast", "middle", "dense"]
    assert accuracy_speed_scatter(models, "five models").count("<circle") == 5


def test_names_in_a_scatter_lie_apart_and_inside_it() -> None:
    names = ("dense", "skipat-identity-evo-vit", "evo-vit", "skipat")
    models = [Point(name, 1.0 + 0.02 * place, 0.9, 31.4) for place, name in enumerate(names)]
    drawing = accuracy_speed_scatter(models, "four models at one height")
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="label haloed">([^<]*)</text>'
    spans: list[tuple[float, float, float]] = []
    for x, y, anchor, text in re.findall(pattern, drawing):
        length = 7.4 * len(text)
        start = float(x) - (length if anchor == "end" else 0)
        assert 0 <= start < start + length <= 480
        assert not any(abs(float(y) - other) < 14 and a < start + length and start < b for other, a, b in spans)
        spans.append((float(y), start, start + length))
    assert len(spans) == 4


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "a < b", Markup("<br>"), title='"') == '<p title="&quot;">a &lt; b<br></p>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert '<th scope="row">x &amp; y</th>' in table("c", ["h"], [["x & y"]])


def test_numbers_are_written_with_their_units() -> None:
    assert (amount(22_160_000), amount(4_439_000_000, "MAC"), amount(950)) == ("22.16\u202fM", "4.439\u202fGMAC", "950")
    assert (percent(0.7981), percent(None)) == ("79.81\u202f%", "–")
    assert (points(-0.004), points(0.01), points(0.0)) == ("−0.40 points", "+1.00 points", "0.00 points")
    assert (fixed(1234.5, 1), fixed(None)) == ("1\u202f234.5", "–")
    assert [plain(value) for value in ([1, 2.5, "a"], {"a": None}, [], True)] == ["1, 2.5, a", "a –", "none", "yes"]
    assert block_list([3, 4, 5, 8]) == "3–5, 8"
    assert half_width(0.5, 10_000) == pytest.approx(0.0098)
