"""The suite over its folder: cases, resuming, what goes wrong, time that is over."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from vitslim.bench import environment
from vitslim.bench.suite import Case, SuiteReport
from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import write_json
from vitslim.pipeline import baselines
from vitslim.pipeline.rendering import read_suite
from vitslim.pipeline.suite import Preset, Suite, competitors, process, running
from vitslim.pipeline.suite import runner as runners
from vitslim.pipeline.suite.measuring import measure_case

SIZE: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 4}
COMPETITORS = ["evo-vit", "pair", "refused", "smaller-sibling", "lower-resolution", "depth-drop", "tome"]
DOCUMENT: dict[str, Any] = {
    "rounds": 5,
    "warmup": 1,
    "energy": True,
    "models": {
        "tiny": {"name": "builtin", "options": SIZE, "smaller": "tinier"},
        "tinier": {"name": "builtin", "options": SIZE | {"embed_dim": 24}},
    },
    "competitors": {
        "evo-vit": {"convert": [{"method": "evo_vit"}]},
        "pair": {"convert": [{"method": "skipat", "identity": True, "layers": [1]}, {"method": "evo_vit"}]},
        "refused": {"convert": [{"method": "skipat", "layers": [9]}]},
    },
    "groups": [
        {"models": ["tiny"], "sizes": [32], "batches": [2], "competitors": COMPETITORS},
        {"models": ["tiny"], "sizes": [32], "backends": ["train"], "batches": [2], "competitors": ["evo-vit"]},
        {"models": ["tiny"], "sizes": [64], "backends": ["compiled-graph"]},
        {"kernels": [17]},
        {"models": ["tiny"], "sizes": [32], "also": ["bf16", "int8"], "batches": [2], "competitors": ["evo-vit"]},
    ],
}
NAMES = [
    "tiny-32-fp32-torch-b2",
    "tiny-32-fp32-train-b2",
    "tiny-64-fp32-compiled-graph-b1",
    "kernels-fp32-b1",
    "tiny-32-fp32+bf16+int8-torch-b2",
]
ONE_CASE = [{"models": ["tiny"], "sizes": [32], "competitors": ["tome", "depth-drop"]}]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "run_in_child", process.attempt)


class Measured:
    """Stands for the measuring of a case, and notes which ones it was asked for."""

    def __init__(self, ending: Any = None, at: str = "") -> None:
        self.names: list[str] = []
        self._ending, self._at = ending, at

    def __call__(self, case: Case, *_: Any) -> dict[str, Any]:
        if self._ending is not None and self._at in ("", case.name):
            if not isinstance(self._ending, str):
                raise self._ending
            self.names.append(case.name)
            return {"status": self._ending}
        self.names.append(case.name)
        return {}


def suite(out: Path, *, quick: bool = False, **changes: Any) -> Suite:
    preset = out.with_name("own.yaml")
    preset.write_text(yaml.safe_dump(DOCUMENT | changes))
    return Suite("suite", out, preset=str(preset), quick=quick)


def run(out: Path, measure: Any, minutes: float | None = None, again: bool = False, **changes: Any) -> SuiteReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "measure_case", measure)
        return suite(out, **changes).run(minutes=minutes, again=again)


def measured(out: Path, **options: Any) -> list[str]:
    """The names of the cases that one more call measures."""
    measure = Measured()
    run(out, measure, **options)
    return measure.names


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteReport, Path]:
    """Every kind of case, really measured. Shared between tests: never change the folder."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners, "run_in_child", process.attempt)
        return suite(folder).run(command="vitslim bench suite"), folder


# --- what is measured ------------------------------------------------------------------------------------------------


def test_every_case_has_its_file_and_the_report_has_them_all(whole: tuple[SuiteReport, Path]) -> None:
    report, folder = whole
    assert [one.case.name for one in report.cases] == NAMES
    assert {path.stem for path in (folder / "cases").iterdir()} == set(NAMES)
    assert report.left == []
    assert read_suite(folder) == report
    assert str(folder.parent) not in (folder / "suite.json").read_text()


def test_competitors_of_a_case_are_beside_dense_with_their_kind(whole: tuple[SuiteReport, Path]) -> None:
    rows = {row.model: row for row in whole[0].cases[0].rows}
    assert {name: row.kind for name, row in rows.items()} == {
        "dense": "dense",
        "evo-vit": "method",
        "pair": "pair",
        "smaller-sibling": "baseline",
        "lower-resolution": "baseline",
        "depth-drop": "baseline",
    }
    assert rows["lower-resolution"].image_size == (24, 24)
    assert rows["smaller-sibling"].params < rows["dense"].params
    assert rows["depth-drop"].macs < rows["dense"].macs


def test_rows_have_their_point_on_the_roofline_of_their_own_run(whole: tuple[SuiteReport, Path]) -> None:
    case = whole[0].cases[0]
    assert case.peaks is not None
    for row in case.rows:
        assert row.tflops == pytest.approx(2 * row.macs * row.batch / row.latency_ms_p50 / 1e9)
        assert row.roofline_share == pytest.approx(
            max(row.tflops / case.peaks.tflops, row.gbytes_s / case.peaks.gbytes_s)
        )
    assert all(row.roofline_share is None for row in whole[0].cases[1].rows)  # training steps


def test_further_precisions_share_the_rounds_of_the_first(whole: tuple[SuiteReport, Path]) -> None:
    case = whole[0].cases[-1]
    assert [(row.model, row.precision, row.kind) for row in case.rows] == [
        ("dense", "fp32", "dense"),
        ("evo-vit", "fp32", "method"),
        ("dense", "bf16", "dense"),
        ("evo-vit", "bf16", "method"),
    ]
    dense = case.row("dense")
    assert dense is not None
    for row in case.rows:
        assert row.speedup_vs_dense == pytest.approx(dense.latency_ms_p50 / row.latency_ms_p50)
        assert (row.roofline_share is None) == (row.precision == "bf16")  # the peaks are those of fp32
    assert case.row("evo-vit", "bf16") == case.rows[3]


def test_a_model_runs_once_without_kernels_and_once_with_them() -> None:
    own = {"evo-vit": DOCUMENT["competitors"]["evo-vit"] | {"kernels": "token_selection"}}
    preset = Preset.model_validate(
        DOCUMENT
        | {"competitors": own, "triton": ["0", "1"], "energy": False}
        | {
            "groups": [
                {
                    "models": ["tiny"],
                    "sizes": [32],
                    "backends": ["compiled-graph"],
                    "competitors": ["evo-vit", "depth-drop"],
                }
            ]
        }
    )
    (case,) = preset.cases()
    assert case.competitors == ("evo-vit",)
    rows = measure_case(case.model_copy(update={"backend": "torch"}), preset)["rows"]  # no GPU to capture on
    assert [(row.model, row.triton, row.kernels, row.tokens) for row in rows] == [
        ("dense", None, None, None),
        ("evo-vit", "0", "token_selection", 17),
        ("evo-vit", "1", "token_selection", 17),
    ]


def test_what_could_not_take_part_is_named(whole: tuple[SuiteReport, Path]) -> None:
    first, _, graph, kernels, mixed = whole[0].cases
    assert {skip.model for skip in first.skipped} >= {"refused"}
    assert [(skip.model, skip.precision) for skip in mixed.skipped] == [
        ("dense int8", "int8"),
        ("evo-vit int8", "int8"),
    ]
    assert "backend torch has no int8" in mixed.skipped[0].reason
    assert any("energy" in note for note in first.notes)
    if not torch.cuda.is_available():
        assert (graph.status, kernels.status) == ("unavailable", "unavailable")
        assert "runs on a GPU" in str(graph.reason)


class Hungry(nn.Module):
    """A baseline that does not fit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.patch_embed, self.default_cfg = model, model.patch_embed, model.default_cfg

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not images.is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 81 GiB")
        return self.model(images)


def test_running_out_of_memory_is_a_record_of_that_competitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(baselines.BASELINES, "tome", Hungry)
    (case,) = suite(tmp_path / "out", groups=ONE_CASE).run().cases
    assert case.status == "measured"
    assert {row.model for row in case.rows} == {"dense", "depth-drop"}
    (skip,) = case.skipped
    assert (skip.model, skip.batch, skip.out_of_memory) == ("tome", 1, True)


def test_a_case_whose_dense_model_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = competitors.open_model
    monkeypatch.setattr(competitors, "open_model", lambda *given, **options: Hungry(opened(*given, **options)))
    (case,) = suite(tmp_path / "out", groups=ONE_CASE).run().cases
    assert (case.status, case.rows) == ("out of memory", [])


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_second_call_measures_nothing_anew(tmp_path: Path) -> None:
    assert measured(tmp_path / "out") == NAMES
    before = read_suite(tmp_path / "out")
    assert measured(tmp_path / "out") == []
    assert read_suite(tmp_path / "out") == before


def test_an_interrupted_run_keeps_its_rows_and_goes_on_with_what_is_left(tmp_path: Path) -> None:
    for index in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", Measured(KeyboardInterrupt(), at=NAMES[index]))
        assert read_suite(tmp_path / "out").left == NAMES[index:]
    assert measured(tmp_path / "out") == NAMES[2:]


def test_other_settings_are_measured_anew_where_they_matter(tmp_path: Path) -> None:
    assert measured(tmp_path / "out") == NAMES
    assert measured(tmp_path / "out", rounds=6) == NAMES
    pair = {"convert": [{"method": "skipat", "identity": True, "layers": [2]}]}
    assert measured(tmp_path / "out", rounds=6, competitors=DOCUMENT["competitors"] | {"pair": pair}) == NAMES[:1]


@pytest.mark.parametrize(
    ("name", "found"),
    [("installed_version", "99"), ("code_digest", "other"), ("environment", environment() | {"driver": "570.86.15"})],
)
def test_other_versions_code_or_hardware_are_measured_anew(
    name: str, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path / "out")
    monkeypatch.setattr(running, name, lambda *_: found)
    assert measured(tmp_path / "out") == NAMES


def test_what_failed_is_kept_until_it_is_asked_for_again(tmp_path: Path) -> None:
    run(tmp_path / "out", Measured(ValueError("broken")))
    assert read_suite(tmp_path / "out").cases[0].reason == "ValueError: broken"
    assert measured(tmp_path / "out") == []
    assert measured(tmp_path / "out", again=True) == NAMES


def test_a_case_whose_file_was_cut_off_is_measured_anew(tmp_path: Path) -> None:
    measured(tmp_path / "out")
    (tmp_path / "out" / "cases" / f"{NAMES[1]}.json").write_text('{"case": ')
    assert measured(tmp_path / "out") == [NAMES[1]]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="of benchmark=suite, preset=own, quick=False"):
        measured(folder)
    with pytest.raises(ConfigError, match="is a file"):
        measured(folder / "notes.txt")
    write_json(folder / "suite.json", [1])
    with pytest.raises(ConfigError, match="something else"):
        measured(folder)
    with pytest.raises(CheckpointError, match="is no report of a benchmark"):
        read_suite(folder)
    assert not (folder / "cases").exists()


def test_a_quick_run_of_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group is marked quick: true"):
        suite(tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()


def test_a_quick_run_does_not_replace_a_whole_one(tmp_path: Path) -> None:
    groups = [group | {"quick": True} for group in DOCUMENT["groups"]]
    measured(tmp_path / "out", groups=groups)
    with pytest.raises(ConfigError, match="preset=own, quick=True; name another"):
        measured(tmp_path / "out", groups=groups, quick=True)


# --- time ------------------------------------------------------------------------------------------------------------


class Slow(Measured):
    """Measuring that takes half a minute by the clock of the tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ending: Any = None, at: str = "") -> None:
        super().__init__(ending, at)
        self._now = 0.0
        monkeypatch.setattr(runners.time, "perf_counter", lambda: self._now)

    def __call__(self, *given: Any) -> dict[str, Any]:
        self._now += 30.0
        return super().__call__(*given)


SIZES = [{"models": ["tiny"], "sizes": [32, 40, 48, 56]}]


def names_of(*sizes: int) -> list[str]:
    return [f"tiny-{size}-fp32-torch-b1" for size in sizes]


def test_no_case_is_begun_that_would_end_too_late_and_the_first_is_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the first one each is expected to last as long as it.
    for minutes, begun in ((0.1, [32]), (1.1, [40, 48]), (None, [56])):
        slow = Slow(monkeypatch)
        run(tmp_path / "out", slow, minutes=minutes, groups=SIZES)
        assert slow.names == names_of(*begun)


def test_a_case_that_was_stopped_is_tried_again_when_all_others_had_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Slow(monkeypatch, "too long", at=names_of(32)[0])
    report = run(tmp_path / "out", stopped, minutes=0.5, groups=SIZES)
    assert report.left == names_of(40, 48, 56, 32)
    assert report.statuses == {names_of(32)[0]: "too long"}
    assert measured(tmp_path / "out", groups=SIZES) == names_of(40, 48, 56, 32)


def test_a_case_that_had_but_the_rest_of_a_call_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Slow(monkeypatch, "too long", at=names_of(40)[0])
    report = run(tmp_path / "out", stopped, minutes=5.0, groups=SIZES)
    assert (list(report.statuses), report.left) == (names_of(32), names_of(40, 48, 56))
