import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import change
from vitslim.errors import CheckpointError
from vitslim.report import read_parts
from vitslim.report.charts import shortest_ties, spread
from vitslim.report.numbers import amount, block_list, half_width, plain
from vitslim.report.parts import PART_FILES, STAGE_FILES
from vitslim.report.training_log import TrainingLog

JSON_FILES = [*(name for name in PART_FILES if name.endswith(".json")), *STAGE_FILES.values()]


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_truncated_file_and_one_of_another_form_are_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    other_form = "plan.json.*wanted a plan" if name == "plan.json" else rf"{path.name} .*expected form.*again"
    for text, message in ((path.read_text()[:-5], path.name), ('"a string"', other_form)):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_parts(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("analysis.json", lambda found: found["cka"]["z"].pop(), r"cka\.z is not 4×4"),
        ("analysis.json", lambda found: found["block_influence"].pop(), "block_influence has 3 entries for 4 layers"),
        ("metrics.json", lambda found: found["student"].update(images=-1), "images"),
        ("metrics.json", lambda found: found["student"].update(images=10**400), "is no count or size"),
        ("metrics.json", lambda found: found["student"].update(agreement=1.5), "agreement"),
        ("bench.json", lambda found: found["rows"][0].pop("latency_ms_p50"), "rows.0.latency_ms_p50"),
    ],
)
def test_figures_that_no_stage_gives_are_refused(folder: Path, name: str, edit: Any, message: str) -> None:
    change(folder / name, edit)
    with pytest.raises(CheckpointError, match=message):
        read_parts(folder)


def log_of(folder: Path) -> TrainingLog:
    log = read_parts(folder).log
    assert log is not None
    return log


def test_log_lines_belong_to_the_stage_that_started_before_them(folder: Path) -> None:
    log = log_of(folder)
    assert set(log.stages()) == {"dense", "warm_start", "distill"} or log.stages() == ["warm_start", "distill"]
    assert [line.step for line in log.of("distill", "train")] == [1, 2, 3]
    assert all(line.images_per_second and line.lr for line in log.of("distill", "train"))


def test_a_repeated_step_counts_once_as_it_ran_last(folder: Path) -> None:
    with (folder / "train" / "log.jsonl").open("a") as log:
        log.write('{"event": "train", "stage": "distill", "step": 3, "loss": 7.0}\n')
    assert [line.loss for line in log_of(folder).of("distill", "train")][2:] == [7.0]


def test_a_cut_last_line_is_no_error_but_a_broken_one_before_it_is(folder: Path) -> None:
    path = folder / "train" / "log.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "tr')
    assert log_of(folder).is_cut
    path.write_text(whole + "{oops}\n")
    with pytest.raises(CheckpointError, match=r"line \d+: .*JSON"):
        read_parts(folder)


def test_a_diverged_loss_is_read_whether_number_or_text(folder: Path) -> None:
    path = folder / "train" / "log.jsonl"
    path.write_text('{"stage": "own", "step": 1, "loss": NaN}\n{"step": 2, "loss": "inf"}\n')
    assert [str(line.loss) for line in log_of(folder).of("own", "train")] == ["nan", "inf"]


def test_the_lines_from_names_to_their_points_do_not_cross() -> None:
    draw = random.Random(0)
    for _ in range(20):
        places = [(draw.random(), draw.random()) for _ in range(12)]
        heights = spread(sorted((y for _, y in places), reverse=True), 0.08)
        order = shortest_ties(places, heights)
        assert sorted(order) == list(range(12))
        ends = [(complex(*places[index]), complex(1.04, height)) for index, height in zip(order, heights, strict=True)]
        for (a, b), (c, d) in combinations(ends, 2):
            sides = [
                ((q - p) * (r - p).conjugate()).imag > 0 for p, q, r in ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
            ]
            assert sides[0] == sides[1] or sides[2] == sides[3]


def test_numbers_are_written_with_their_units() -> None:
    assert (amount(22_160_000), amount(4_439_000_000, "MAC"), amount(950)) == ("22.16\u202fM", "4.439\u202fGMAC", "950")
    assert [plain(value) for value in ([1, 2.5, "a"], {"a": None}, [], True)] == ["1, 2.5, a", "a –", "none", "yes"]
    assert block_list([3, 4, 5, 8]) == "3–5, 8"
    assert half_width(0.5, 10_000) == pytest.approx(0.0098)
