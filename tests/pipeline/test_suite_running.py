"""The suite over its folder: pieces, resuming, what goes wrong, time that is over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vitslim.pipeline.suite.running import _Sitting

from vitslim.bench import baselines, environment
from vitslim.bench.roofline import Ceilings
from vitslim.bench.suite import Piece, PieceResult, SuiteReport
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError
from vitslim.files import read_json, write_json
from vitslim.kernels.triton.token_cases import token_cases
from vitslim.pipeline.suite import Preset, changed_ratios, list_suite, read_suite, run_suite
from vitslim.pipeline.suite.measuring import _timed_kernels, measure_piece

SIZE: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 4}
WHOLE = Preset.model_validate(
    {
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
            {
                "models": ["tiny"],
                "sizes": [32],
                "batches": [1, 2],
                "competitors": [
                    "evo-vit",
                    "pair",
                    "refused",
                    "smaller-sibling",
                    "lower-resolution",
                    "depth-drop",
                    "tome",
                ],
            },
            {"models": ["tiny"], "sizes": [32], "backends": ["train"], "batches": [2], "competitors": ["evo-vit"]},
            {"models": ["tiny"], "sizes": [64], "backends": ["compiled-graph"]},
            {"kernels": [17]},
        ],
    }
)
NAMES = ["tiny-32-fp32-torch-b1+2", "tiny-32-fp32-train-b2", "tiny-64-fp32-compiled-graph-b1", "kernels-fp32-b1"]


class Measured:
    """Stands for the measuring of a piece, and notes which ones it was asked for."""

    def __init__(self, fail_at: str = "", status: str = "measured") -> None:
        self.names: list[str] = []
        self._fail_at, self._status = fail_at, status

    def __call__(self, piece: Piece, preset: Preset, digest: str) -> PieceResult:
        if piece.name == self._fail_at:
            raise KeyboardInterrupt
        self.names.append(piece.name)
        return PieceResult(piece=piece, digest=digest, status=self._status, seconds=30.0)


def run(folder: Path, measure: Any, **options: Any) -> SuiteReport:
    preset = options.pop("preset", WHOLE)
    return run_suite(folder, preset=preset, measure=measure, isolate=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteReport, Path]:
    """Every kind of piece, really measured. Shared between tests: never change the folder."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    return run_suite(folder, preset=WHOLE, isolate=False), folder


# --- what is measured ------------------------------------------------------------------------------------------------


def test_every_piece_has_its_file_and_the_report_has_them_all(whole: tuple[SuiteReport, Path]) -> None:
    report, folder = whole
    assert [piece.piece.name for piece in report.pieces] == NAMES
    assert {path.stem for path in (folder / "pieces").iterdir()} == set(NAMES)
    assert report.left == []
    assert read_suite(folder) == report
    assert read_suite(folder / "suite.json") == report
    assert str(Path.cwd()) not in (folder / "suite.json").read_text()


def test_competitors_of_a_piece_stand_beside_dense_with_their_kind(whole: tuple[SuiteReport, Path]) -> None:
    rows = whole[0].pieces[0].rows
    kinds = {row.model: row.kind for row in rows}
    assert kinds == {
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


def test_rows_stand_on_the_roofline_of_their_own_run(whole: tuple[SuiteReport, Path]) -> None:
    piece = whole[0].pieces[0]
    assert piece.ceilings is not None
    for row in piece.rows:
        assert row.tflops == pytest.approx(2 * row.macs * row.batch / row.latency_ms_p50 / 1e9)
        attainable = min(piece.ceilings.tflops, row.intensity * piece.ceilings.gbytes_s / 1e3)
        assert row.roofline_share == pytest.approx(row.tflops / attainable)
    assert all(row.roofline_share is None for row in whole[0].pieces[1].rows)  # training steps


def test_what_could_not_take_part_is_named(whole: tuple[SuiteReport, Path]) -> None:
    first, _, graph, kernels = whole[0].pieces
    assert {skip.model for skip in first.skipped} >= {"refused"}
    assert any("energy" in note for note in first.notes)
    if not torch.cuda.is_available():
        assert (graph.status, kernels.status) == ("unavailable", "unavailable")
        assert "runs on a GPU" in str(graph.reason)


def test_running_out_of_memory_is_a_record_of_that_competitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Hungry(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.patch_embed, self.default_cfg = model, model.patch_embed, model.default_cfg

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not images.is_meta:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 81 GiB")
            return self.model(images)

    monkeypatch.setitem(baselines.BASELINES, "tome", Hungry)
    group = {"models": ["tiny"], "sizes": [32], "competitors": ["tome", "depth-drop"]}
    preset = Preset.model_validate(WHOLE.model_dump() | {"groups": [group], "energy": False})
    report = run(tmp_path / "out", measure_piece, preset=preset)
    (piece,) = report.pieces
    assert piece.status == "measured"
    assert {row.model for row in piece.rows} == {"dense", "depth-drop"}
    (skip,) = piece.skipped
    assert (skip.model, skip.batch, skip.out_of_memory) == ("tome", 1, True)


def test_kernels_whose_tensors_do_not_fit_leave_the_others_to_be_timed() -> None:
    def too_large(*_: Any) -> list[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    piece = Piece(kind="kernels", tokens=(17,))
    ceilings = Ceilings(tflops=1.0, gbytes_s=1.0, gemm_size=64, copy_mib=1.0)
    where = (17, 1, piece, WHOLE, ceilings, torch.device("cpu"))
    rows, (skip,) = _timed_kernels(too_large, *where)
    assert rows == []
    assert (skip.kernel, skip.tokens, skip.out_of_memory) == ("too large", 17, True)
    rows, skipped = _timed_kernels(token_cases, *where)
    assert (len(rows), skipped) == (len(token_cases("cpu", torch.float32, 17, 1)), [])


def test_a_piece_whose_dense_model_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vitslim.pipeline.suite.measuring.open_runners", refuse)
    report = run(tmp_path / "out", measure_piece)
    assert [piece.status for piece in report.pieces[:2]] == ["out of memory", "out of memory"]
    assert report.rows == []


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_second_call_measures_nothing_anew(tmp_path: Path) -> None:
    first, second = Measured(), Measured()
    before = run(tmp_path / "out", first)
    assert first.names == NAMES
    assert run(tmp_path / "out", second) == before
    assert second.names == []


def test_an_interrupted_run_goes_on_with_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", Measured(fail_at=NAMES[2]))
    assert read_suite(tmp_path / "out").left == NAMES[2:]
    rest = Measured()
    assert run(tmp_path / "out", rest).left == []
    assert rest.names == NAMES[2:]


@pytest.mark.parametrize("change", [{"rounds": 6}, {"threads": 2}])
def test_other_settings_are_measured_anew(change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "out", Measured())
    again = Measured()
    run(tmp_path / "out", again, preset=WHOLE.model_copy(update=change))
    assert again.names == NAMES


def test_a_changed_competitor_is_measured_anew_with_its_pieces_alone(tmp_path: Path) -> None:
    run(tmp_path / "out", Measured())
    document = WHOLE.model_dump()
    document["competitors"]["pair"]["convert"][0]["layers"] = [2]
    again = Measured()
    run(tmp_path / "out", again, preset=Preset.model_validate(document))
    assert again.names == NAMES[:1]


def test_other_versions_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out", Measured())
    again = Measured()
    monkeypatch.setattr("vitslim.pipeline.suite.running._version", lambda name: "99")
    run(tmp_path / "out", again)
    assert again.names == NAMES


def test_other_code_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out", Measured())
    again = Measured()
    monkeypatch.setattr("vitslim.pipeline.suite.running.code_digest", lambda: "other")
    run(tmp_path / "out", again)
    assert again.names == NAMES


def test_another_driver_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out", Measured())
    again = Measured()
    machine = environment() | {"driver": "570.86.15"}
    monkeypatch.setattr("vitslim.pipeline.suite.running.environment", lambda: machine)
    run(tmp_path / "out", again)
    assert again.names == NAMES


def test_what_failed_is_kept_until_it_is_asked_for_again(tmp_path: Path) -> None:
    run(tmp_path / "out", Measured(status="failed"))
    quiet, again = Measured(), Measured()
    run(tmp_path / "out", quiet)
    assert quiet.names == []
    run(tmp_path / "out", again, again=True)
    assert again.names == NAMES


def test_a_piece_that_was_cut_off_is_measured_anew(tmp_path: Path) -> None:
    run(tmp_path / "out", Measured())
    (tmp_path / "out" / "pieces" / f"{NAMES[1]}.json").write_text('{"piece": ')
    again = Measured()
    run(tmp_path / "out", again)
    assert again.names == [NAMES[1]]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that no suite wrote"):
        run(tmp_path, Measured())
    with pytest.raises(ConfigError, match="is a file"):
        run(tmp_path / "notes.txt", Measured())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_report_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    write_json(tmp_path / "suite.json", [1])
    with pytest.raises(ConfigError, match="is no report of the suite"):
        run(tmp_path, Measured())


def test_a_quick_run_of_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("models: {tiny: {name: builtin}}\ngroups: [{models: [tiny]}]\n")
    for call in (run_suite, list_suite):
        with pytest.raises(ConfigError, match="preset own: no group is marked quick: true"):
            call(tmp_path / "out", preset=str(own), quick=True)
    assert not (tmp_path / "out").exists()


def test_a_quick_run_does_not_replace_a_whole_one(tmp_path: Path) -> None:
    groups = [group.model_copy(update={"quick": True}) for group in WHOLE.groups]
    preset = WHOLE.model_copy(update={"groups": groups})
    run(tmp_path / "out", Measured(), preset=preset)
    with pytest.raises(ConfigError, match="holds the run of preset own; name another folder"):
        run(tmp_path / "out", Measured(), preset=preset, quick=True)


# --- time ------------------------------------------------------------------------------------------------------------


def test_nothing_is_begun_that_would_end_too_late() -> None:
    now = [0.0]
    sitting = _Sitting(2.0, clock=lambda: now[0])
    assert sitting.fits(1000.0)  # the first one is tried in any case
    sitting.begun = True
    assert not sitting.fits(121.0)
    assert sitting.fits(119.0)
    now[0] = 60.0
    assert not sitting.fits(61.0)
    assert sitting.seconds_left() == 60
    assert _Sitting(None).fits(1e9)


def test_pieces_are_taken_to_last_as_long_as_those_of_their_backend(tmp_path: Path) -> None:
    # Each says that it took 30 s: after the first one none like it fits into what is left of half a minute.
    group = {"models": ["tiny"], "sizes": [32, 40, 48]}
    preset = Preset.model_validate(WHOLE.model_dump() | {"groups": [group]})
    first, second = Measured(), Measured()
    assert len(run(tmp_path / "out", first, preset=preset, minutes=0.45).left) == 2
    assert first.names == ["tiny-32-fp32-torch-b1"]
    assert len(run(tmp_path / "out", second, preset=preset, minutes=0.45).left) == 1
    assert second.names == ["tiny-40-fp32-torch-b1"]


def test_a_piece_that_was_stopped_is_tried_twice_and_then_when_there_is_more_time(tmp_path: Path) -> None:
    preset = WHOLE.model_copy(update={"groups": WHOLE.groups[:1]})
    stopped = run(tmp_path / "out", Measured(status="too long"), preset=preset, minutes=0.5)  # after 30 s
    assert (stopped.left, stopped.too_long) == (NAMES[:1], [])
    second, third, more = Measured(status="too long"), Measured(), Measured()
    stopped = run(tmp_path / "out", second, preset=preset, minutes=0.5)
    assert (stopped.left, stopped.too_long, second.names) == (NAMES[:1], NAMES[:1], NAMES[:1])
    run(tmp_path / "out", third, preset=preset, minutes=0.55)
    assert third.names == []
    assert run(tmp_path / "out", more, preset=preset, minutes=0.7).left == []
    assert more.names == NAMES[:1]


# --- comparing -------------------------------------------------------------------------------------------------------


def test_a_ratio_that_moved_beyond_its_spread_is_named(whole: tuple[SuiteReport, Path], tmp_path: Path) -> None:
    report, folder = whole
    assert changed_ratios(report, report, 0.1) == []
    document = read_json(folder / "suite.json")
    row = next(one for one in document["pieces"][0]["rows"] if one["model"] == "evo-vit")
    row |= {"speedup_vs_dense": 90.0, "speedup_p10": 80.0, "speedup_p90": 99.0}
    write_json(tmp_path / "other.json", document)
    (change,) = changed_ratios(report, read_suite(tmp_path / "other.json"), 0.1)
    assert change.what == "evo-vit on tiny 32 px, torch fp32 b1"
    assert change.sentence.endswith("became 90.00x (faster)")


def test_a_ratio_that_vanished_is_named(whole: tuple[SuiteReport, Path]) -> None:
    report = whole[0]
    first = report.pieces[0]
    rest = [row for row in first.rows if row.model != "evo-vit"]

    def later(**changes: Any) -> SuiteReport:
        return report.model_copy(update={"pieces": [first.model_copy(update=changes), *report.pieces[1:]]})

    found = changed_ratios(report, later(rows=rest), 0.1)
    assert [change.what for change in found] == [f"evo-vit on tiny 32 px, torch fp32 b{batch}" for batch in (1, 2)]
    assert all(change.sentence.endswith("x is no longer measured") for change in found)
    crashed = changed_ratios(report, later(rows=[], status="crashed"), 0.1)
    assert len(crashed) == len([row for row in first.rows if row.model != "dense"])
    assert changed_ratios(report, later(rows=[], status="too long"), 0.1) == []  # it is left for another call


def test_runs_without_a_common_row_cannot_be_compared(whole: tuple[SuiteReport, Path]) -> None:
    empty = whole[0].model_copy(update={"pieces": []})
    with pytest.raises(CheckFailedError, match="no row in common"):
        changed_ratios(whole[0], empty, 0.1)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "suite.json", {"rows": []})
    with pytest.raises(CheckpointError, match="is no report of the suite"):
        read_suite(tmp_path)
