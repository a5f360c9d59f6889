"""The suite over its folder: cases, resuming, what goes wrong, time that is over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitslim.bench import environment
from vitslim.bench.suite import Case, SuiteReport
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError
from vitslim.files import read_json, write_json
from vitslim.pipeline import baselines
from vitslim.pipeline.suite import SuitePreset, changed_ratios, competitors, list_suite, read_suite, run_suite
from vitslim.pipeline.suite import runner as runners
from vitslim.pipeline.suite.competitors import open_dense
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
        "refused": {"convert": [{"method": "skipat", "layers": [0]}]},
    },
    "groups": [
        {"models": ["tiny"], "sizes": [32], "batches": [1, 2], "competitors": COMPETITORS},
        {"models": ["tiny"], "sizes": [32], "backends": ["train"], "batches": [2], "competitors": ["evo-vit"]},
        {"models": ["tiny"], "sizes": [64], "backends": ["compiled-graph"]},
        {"kernels": [17]},
    ],
}
NAMES = ["tiny-32-fp32-torch-b1+2", "tiny-32-fp32-train-b2", "tiny-64-fp32-compiled-graph-b1", "kernels-fp32-b1"]


def preset(**changes: Any) -> SuitePreset:
    return SuitePreset.model_validate(DOCUMENT | changes)


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


def run(folder: Path, measure: Any, settings: SuitePreset | None = None, **options: Any) -> SuiteReport:
    return run_suite(folder, preset=settings or preset(), measure=measure, isolate=False, **options)


def measured(folder: Path, settings: SuitePreset | None = None, **options: Any) -> list[str]:
    """The names of the cases that one more call measures."""
    measure = Measured()
    run(folder, measure, settings, **options)
    return measure.names


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteReport, Path]:
    """Every kind of case, really measured. Shared between tests: never change the folder."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    return run_suite(folder, preset=preset(), isolate=False), folder


# --- what is measured ------------------------------------------------------------------------------------------------


def test_every_case_has_its_file_and_the_report_has_them_all(whole: tuple[SuiteReport, Path]) -> None:
    report, folder = whole
    assert [case.piece.name for case in report.pieces] == NAMES
    assert {path.stem for path in (folder / "cases").iterdir()} == set(NAMES)
    assert report.left == []
    assert read_suite(folder) == read_suite(folder / "suite.json") == report
    assert str(Path.cwd()) not in (folder / "suite.json").read_text()


def test_competitors_of_a_case_are_beside_dense_with_their_kind(whole: tuple[SuiteReport, Path]) -> None:
    rows = whole[0].pieces[0].rows
    assert {row.model: row.kind for row in rows} == {
        "dense": "dense",
        "evo-vit": "method",
        "pair": "pair",
        "smaller-sibling": "baseline",
        "lower-resolution": "baseline",
        "depth-drop": "baseline",
    }
    assert {row.batch for row in rows} == {1, 2}
    by_name = {row.model: row for row in rows}
    assert by_name["lower-resolution"].image_size == (24, 24)
    assert by_name["smaller-sibling"].params < by_name["dense"].params
    assert by_name["depth-drop"].macs < by_name["dense"].macs
    assert all((row.base, row.size) == ("tiny", 32) for row in rows)


def test_rows_have_their_point_on_the_roofline_of_their_own_run(whole: tuple[SuiteReport, Path]) -> None:
    case = whole[0].pieces[0]
    assert case.ceilings is not None
    for row in case.rows:
        assert row.tflops == pytest.approx(2 * row.macs * row.batch / row.latency_ms_p50 / 1e9)
        attainable = min(case.ceilings.tflops, row.intensity * case.ceilings.gbytes_s / 1e3)
        assert row.roofline_share == pytest.approx(row.tflops / attainable)
    assert all(row.roofline_share is None for row in whole[0].pieces[1].rows)  # training steps


def test_what_could_not_take_part_is_named(whole: tuple[SuiteReport, Path]) -> None:
    first, _, graph, kernels = whole[0].pieces
    assert {skip.model for skip in first.skipped} >= {"refused"}
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
    group = {"models": ["tiny"], "sizes": [32], "competitors": ["tome", "depth-drop"]}
    (case,) = run(tmp_path / "out", measure_case, preset(groups=[group])).pieces
    assert case.status == "measured"
    assert {row.model for row in case.rows} == {"dense", "depth-drop"}
    (skip,) = case.skipped
    assert (skip.model, skip.batch, skip.out_of_memory) == ("tome", 1, True)


def test_a_case_whose_dense_model_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(competitors, "open_dense", lambda *given: Hungry(open_dense(*given)))
    group = {"models": ["tiny"], "sizes": [32], "competitors": ["evo-vit"]}
    (case,) = run(tmp_path / "out", measure_case, preset(groups=[group])).pieces
    assert (case.status, case.rows) == ("out of memory", [])


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_second_call_measures_nothing_anew(tmp_path: Path) -> None:
    assert measured(tmp_path / "out") == NAMES
    before = read_suite(tmp_path / "out")
    assert measured(tmp_path / "out") == []
    assert read_suite(tmp_path / "out") == before


def test_an_interrupted_run_keeps_its_rows_and_goes_on_with_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", Measured(KeyboardInterrupt(), at=NAMES[2]))
    assert read_suite(tmp_path / "out").left == NAMES[2:]
    assert measured(tmp_path / "out") == NAMES[2:]


def test_other_settings_are_measured_anew_where_they_matter(tmp_path: Path) -> None:
    assert measured(tmp_path / "out") == NAMES
    assert measured(tmp_path / "out", preset(rounds=6)) == NAMES
    pair = {"convert": [{"method": "skipat", "identity": True, "layers": [2]}]}
    changed = preset(rounds=6, competitors=DOCUMENT["competitors"] | {"pair": pair})
    assert measured(tmp_path / "out", changed) == NAMES[:1]


@pytest.mark.parametrize(
    ("name", "found"),
    [("version", "99"), ("code_digest", "other"), ("environment", environment() | {"driver": "570.86.15"})],
)
def test_other_versions_code_or_hardware_are_measured_anew(
    name: str, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path / "out")
    monkeypatch.setattr(f"vitslim.pipeline.suite.speed.{name}", lambda *_: found)
    assert measured(tmp_path / "out") == NAMES


def test_what_failed_is_kept_until_it_is_asked_for_again(tmp_path: Path) -> None:
    run(tmp_path / "out", Measured(ValueError("broken")))
    assert read_suite(tmp_path / "out").pieces[0].reason == "ValueError: broken"
    assert measured(tmp_path / "out") == []
    assert measured(tmp_path / "out", again=True) == NAMES


def test_a_case_whose_file_was_cut_off_is_measured_anew(tmp_path: Path) -> None:
    measured(tmp_path / "out")
    (tmp_path / "out" / "cases" / f"{NAMES[1]}.json").write_text('{"piece": ')
    assert measured(tmp_path / "out") == [NAMES[1]]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that this benchmark did not write"):
        measured(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        measured(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "cases").mkdir()
    write_json(tmp_path / "suite.json", [1])
    with pytest.raises(ConfigError, match=r"suite\.json is not the report of a run of preset own"):
        measured(tmp_path)
    write_json(tmp_path / "suite.json", {"rows": []})
    with pytest.raises(CheckpointError, match="is no report of the suite"):
        read_suite(tmp_path)


def test_a_quick_run_of_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("models: {tiny: {name: builtin}}\ngroups: [{models: [tiny]}]\n")
    for call in (run_suite, list_suite):
        with pytest.raises(ConfigError, match="preset own: no group is marked quick: true"):
            call(tmp_path / "out", preset=str(own), quick=True)
    assert not (tmp_path / "out").exists()


def test_a_quick_run_does_not_replace_a_whole_one(tmp_path: Path) -> None:
    quick = preset(groups=[group | {"quick": True} for group in DOCUMENT["groups"]])
    measured(tmp_path / "out", quick)
    with pytest.raises(ConfigError, match="is not the report of a quick run of preset own; name another folder"):
        measured(tmp_path / "out", quick, quick=True)


# --- time ------------------------------------------------------------------------------------------------------------


class Slow(Measured):
    """Measuring that takes half a minute by the clock of the tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ending: Any = None) -> None:
        super().__init__(ending)
        self._now = 0.0
        monkeypatch.setattr(runners.time, "perf_counter", lambda: self._now)

    def __call__(self, *given: Any) -> dict[str, Any]:
        self._now += 30.0
        return super().__call__(*given)


def test_no_case_is_begun_that_would_end_too_late_and_the_first_is_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the first one each is expected to last as long as it.
    settings = preset(groups=[{"models": ["tiny"], "sizes": [32, 40, 48, 56]}], case_seconds=1000)
    for minutes, begun in ((0.1, [32]), (1.1, [40, 48]), (None, [56])):
        slow = Slow(monkeypatch)
        run(tmp_path / "out", slow, settings, minutes=minutes)
        assert slow.names == [f"tiny-{size}-fp32-torch-b1" for size in begun]


def test_a_case_that_was_stopped_is_attempted_twice_and_then_when_there_is_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = preset(groups=DOCUMENT["groups"][:1])
    for minutes, is_begun, too_long in ((0.5, True, []), (0.5, True, NAMES[:1]), (0.55, False, NAMES[:1])):
        slow = Slow(monkeypatch, "too long")
        report = run(tmp_path / "out", slow, settings, minutes=minutes)
        assert (report.left, report.too_long, slow.names) == (NAMES[:1], too_long, NAMES[:1] if is_begun else [])
    assert measured(tmp_path / "out", settings, minutes=0.7) == NAMES[:1]
    assert read_suite(tmp_path / "out").left == []


# --- comparing -------------------------------------------------------------------------------------------------------


def test_a_ratio_that_moved_beyond_its_spread_is_named(whole: tuple[SuiteReport, Path], tmp_path: Path) -> None:
    report, folder = whole
    assert changed_ratios(report, report, 0.1) == []
    document = read_json(folder / "suite.json")
    row = next(one for one in document["pieces"][0]["rows"] if one["model"] == "evo-vit")
    row |= {"speedup_vs_dense": 90.0, "speedup_p10": 80.0, "speedup_p90": 99.0}
    write_json(tmp_path / "other.json", document)
    (sentence,) = changed_ratios(report, read_suite(tmp_path / "other.json"), 0.1)
    assert sentence.startswith("evo-vit on tiny 32 px, torch fp32 b1: ")
    assert sentence.endswith("became 90.00x (faster)")


def test_a_ratio_that_vanished_is_named(whole: tuple[SuiteReport, Path]) -> None:
    report = whole[0]
    first = report.pieces[0]
    rest = [row for row in first.rows if row.model != "evo-vit"]

    def later(**changes: Any) -> SuiteReport:
        return report.model_copy(update={"pieces": [first.model_copy(update=changes), *report.pieces[1:]]})

    found = changed_ratios(report, later(rows=rest), 0.1)
    assert [one.partition(":")[0] for one in found] == [f"evo-vit on tiny 32 px, torch fp32 b{b}" for b in (1, 2)]
    assert all(one.endswith("x is no longer measured") for one in found)
    crashed = changed_ratios(report, later(rows=[], status="crashed"), 0.1)
    assert len(crashed) == len([row for row in first.rows if row.model != "dense"])
    assert changed_ratios(report, later(rows=[], status="too long"), 0.1) == []  # it is left for another call


def test_runs_without_a_common_row_cannot_be_compared(whole: tuple[SuiteReport, Path]) -> None:
    empty = whole[0].model_copy(update={"pieces": []})
    with pytest.raises(CheckFailedError, match="no row in common"):
        changed_ratios(whole[0], empty, 0.1)
