import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from torch import nn

from tests.variants import dense
from vitslim.errors import CheckpointError
from vitslim.methods import convert
from vitslim.report import read_parts
from vitslim.report.documents import Bench, PlanStep
from vitslim.report.parts import PART_FILES, STAGE_FILES
from vitslim.trunk import plan_summary

JSON_FILES = [*(name for name in PART_FILES if name.endswith(".json")), *STAGE_FILES.values()]


@pytest.mark.parametrize("name", JSON_FILES)
def test_truncated_json_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(CheckpointError, match=path.name):
        read_parts(folder)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_another_form_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_text('"a string"')
    with pytest.raises(CheckpointError, match="expected form"):
        read_parts(folder)


def test_a_matrix_of_the_wrong_size_is_refused(folder: Path, parts: dict) -> None:
    parts["analysis.json"]["cka"]["z"].pop()
    (folder / "analysis.json").write_text(json.dumps(parts["analysis.json"]))
    with pytest.raises(CheckpointError, match=r"cka\.z is not 4×4"):
        read_parts(folder)


def test_a_latency_of_zero_and_infinite_numbers_are_refused(folder: Path, parts: dict) -> None:
    for broken in (0, float("inf")):
        parts["bench.json"]["rows"][0]["latency_ms_p50"] = broken
        (folder / "bench.json").write_text(json.dumps(parts["bench.json"]))
        with pytest.raises(CheckpointError, match=r"latency_ms_p50|Infinity is no JSON"):
            read_parts(folder)


def test_unknown_fields_are_left_alone(folder: Path, parts: dict) -> None:
    parts["metrics.json"]["student"]["novel"] = 1
    (folder / "metrics.json").write_text(json.dumps(parts["metrics.json"] | {"more": {}}))
    assert read_parts(folder).metrics is not None


def test_log_lines_belong_to_the_stage_that_started_before_them(folder: Path) -> None:
    log = read_parts(folder).log
    assert log is not None
    assert log.stages() == ["warm_start", "distill"]
    assert [line.step for line in log.of("warm_start", "train")] == [1, 2, 3]
    assert [line.img_s for line in log.of("distill", "train")] == [50.0, 50.0]
    assert [line.top1 for line in log.of("distill", "eval")] == [0.7875]


def test_logs_in_folders_of_their_own_are_read_too(folder: Path) -> None:
    (folder / "train" / "control").mkdir()
    (folder / "train" / "control" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    log = read_parts(folder).log
    assert log is not None
    assert set(log.stages()) == {"control", "warm_start", "distill"}


def test_a_repeated_step_counts_once_as_it_ran_last(folder: Path) -> None:
    with (folder / "train" / "log.jsonl").open("a") as log:
        log.write('{"event": "train", "stage": "distill", "step": 20, "loss": 7.0}\n')
    read = read_parts(folder).log
    assert read is not None
    assert [(line.step, line.loss) for line in read.of("distill", "train")] == [(10, 0.1), (20, 7.0)]


def test_a_cut_last_line_is_no_error_but_a_broken_one_before_it_is(folder: Path) -> None:
    path = folder / "train" / "log.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "tr')
    log = read_parts(folder).log
    assert log is not None
    assert log.is_cut
    path.write_text(whole + "{oops}\n")
    with pytest.raises(CheckpointError, match="line 9 is not JSON"):
        read_parts(folder)


def test_a_diverged_loss_is_read_whether_number_or_text(folder: Path) -> None:
    path = folder / "train" / "log.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": "inf"}\n')
    log = read_parts(folder).log
    assert log is not None
    assert [str(line.loss) for line in log.lines] == ["nan", "inf"]


def test_sizes_of_the_files_to_deploy_are_taken_from_the_disk(folder: Path) -> None:
    assert read_parts(folder).file_bytes == {"model.safetensors": 2**20}


def test_every_method_says_in_typed_fields_what_it_did_to_a_step() -> None:
    """Nothing is read out of the words that stand beside them."""
    source = dense("vit_plain")
    kinds = {
        "skipat": {"layers": (1,)},
        "sparsifiner": {"layers": (1,)},
        "evo_vit": {"stages": (2,), "keep": 0.5},
        "sret": {"groups": ((0, 1), (2, 3)), "slices": 2},
    }
    found = {name: plan_of(convert(source, name, **options)) for name, options in kinds.items()}
    assert {name: [step.attention for step in plan] for name, plan in found.items()} == {
        "skipat": ["dense", "reuse", "dense", "dense"],
        "sparsifiner": ["dense", "sparse", "dense", "dense"],
        "evo_vit": ["dense"] * 4,
        "sret": ["sliced"] * 4,
    }
    assert [(step.kept, step.of) for step in found["evo_vit"]] == [(16, 16), (16, 16), (8, 16), (8, 16)]
    assert [step.shares_with for step in found["sret"]] == [None, 0, None, 2]
    assert {name: [step.converted for step in plan] for name, plan in found.items()} == {
        "skipat": [False, True, False, False],
        "sparsifiner": [False, True, False, False],
        "evo_vit": [False, False, True, True],
        "sret": [True] * 4,
    }


def plan_of(student: nn.Module) -> list[PlanStep]:
    return TypeAdapter(list[PlanStep]).validate_python(plan_summary(student))


def test_the_baseline_is_found_without_being_named(parts: dict) -> None:
    unnamed = {name: value for name, value in parts["bench.json"].items() if name != "baseline"}
    bench = Bench.model_validate(unnamed)
    assert (bench.dense_name, bench.student_name) == ("dense", "student")


def test_a_file_without_verdicts_is_given_those_of_its_own_figures(parts: dict) -> None:
    document = parts["bench.json"] | {"environment": {"load_average": [0.1, 0.1, 0.1], "cores": 2}}
    assert [row.verdict for row in Bench.model_validate(document).rows] == [None, "faster", None, "slower"]
    document["rows"][1] |= {"speedup_p10": 0.99, "speedup_p90": 1.05}
    assert Bench.model_validate(document).rows[1].verdict == "even"
    document["rows"][1] |= {"speedup_p90": 1.4}
    assert Bench.model_validate(document).rows[1].verdict == "too noisy"
    # The dense model takes 10 ms in torch.
    ratios = [row.speedup_vs_dense_torch for row in Bench.model_validate(document).rows]
    assert ratios == [pytest.approx(10 / ms) for ms in (10, 8, 9, 10)]


@pytest.mark.parametrize(("field", "value"), [("images", -1), ("images", 10**400), ("top1", 1.5), ("agreement", -0.1)])
def test_figures_that_no_evaluation_gives_are_refused(folder: Path, parts: dict, field: str, value: float) -> None:
    parts["metrics.json"]["student"][field] = value
    (folder / "metrics.json").write_text(json.dumps(parts["metrics.json"]))
    with pytest.raises(CheckpointError, match=rf"metrics\.json .*({field}|is no count or size)"):
        read_parts(folder)
