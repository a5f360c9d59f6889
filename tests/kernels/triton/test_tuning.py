import json

import pytest
import torch

from tests.kernels.triton.closeness import interprets
from vitslim.errors import CheckpointError, MissingDependencyError

pytest.importorskip("triton")
from vitslim.kernels.triton import autotuning, tuning
from vitslim.kernels.triton.autotuning import Tunable, autotune, linear_tunables, tunables, tune
from vitslim.kernels.triton.compiling import SHARED_BYTES
from vitslim.kernels.triton.tuning import Blocks, Tiles

RUNS = pytest.mark.skipif(
    not (torch.cuda.is_available() or interprets()), reason="no GPU, and Triton's interpreter is off or too old"
)
SLOW, FAST, BROKEN = Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 3), Blocks(128, 128, 8, 4)
COST = {SLOW: 2.0, FAST: 1.0}


def tunable(kernel: str, *candidates: Blocks, capability: int = 90, tokens: int = 577) -> Tunable:
    return Tunable(tuning.row_name(kernel, capability, "float16", 48, tokens), call, candidates)


@pytest.fixture
def table(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "blocks.json"
    path.write_text('{"rows": {}}')
    monkeypatch.setattr(tuning, "TABLE", path)
    tuning.forget()
    yield path
    tuning.forget()


def call(blocks: Blocks) -> float:
    if blocks is BROKEN:
        from triton.runtime.errors import OutOfResources

        raise OutOfResources(300_000, 232_448, "shared memory")
    return COST[blocks]


def measured(run) -> float:
    return run()


def test_the_fastest_blocks_are_kept_and_those_that_do_not_fit_passed_over(table) -> None:
    found = tune([tunable("tile_attention", SLOW, FAST, BROKEN)], measured, table)
    assert found == {"tile_attention/sm_90/float16/64/1024": FAST}
    assert tuning.read_table(table) == found


def test_other_rows_stay(table) -> None:
    first = tune([tunable("tile_attention", SLOW)], measured, table)
    second = tune([tunable("bit_attention", FAST)], measured, table)
    assert tuning.read_table(table) == first | second


def test_where_nothing_fits_there_is_no_row(table) -> None:
    assert tune([tunable("bit_attention", BROKEN)], measured, table) == {}


def test_a_measured_row_is_taken_before_the_rule(table) -> None:
    # Capability 0 stands for Triton's interpreter.
    tune([tunable("bit_attention", FAST, capability=0, tokens=37)], measured, table)
    for tokens, expected in ((37, FAST), (64, FAST), (65, tuning.rule("bit_attention", "float16", 64, 128))):
        query = torch.zeros(1, 1, tokens, 48, dtype=torch.float16)
        assert tuning.blocks_for("bit_attention", query, query) == expected


@pytest.mark.parametrize(("width", "value_width"), [(16, 128), (128, 16)])
def test_the_wider_of_queries_and_values_decides(width: int, value_width: int, table) -> None:
    query, value = (torch.zeros(1, 1, 37, each) for each in (width, value_width))
    assert tuning.blocks_for("tile_attention", query, value) == tuning.rule("tile_attention", "float32", 128, 64)


@RUNS
def test_the_tunable_kernels_run_with_a_candidate(table) -> None:
    for problem in tunables("cuda" if torch.cuda.is_available() else "cpu", torch.float32, 16, 26, 1):
        assert problem.row.split("/")[2:] == ["float32", "16", "32"]
        problem.call(problem.candidates[0])


@RUNS
def test_the_tunable_linear_maps_run_with_a_candidate_and_are_looked_up_again(table) -> None:
    problems = list(linear_tunables("cuda" if torch.cuda.is_available() else "cpu", torch.float32, 48, 17))
    shapes = ["48x144x16", "48x48x16", "48x192x16", "192x48x16"]
    assert [problem.row.split("/")[2:] for problem in problems] == [["float32", shape, "32"] for shape in shapes]
    for problem in problems:
        problem.call(problem.candidates[0])
    odd = Tiles(16, 32, 16, warps=2, stages=1)
    tune([Tunable(problems[0].row, lambda tiles: 1.0, (odd,))], measured, table)
    tokens, weight = torch.zeros(17, 48), torch.zeros(144, 48)
    if torch.cuda.is_available():
        tokens, weight = tokens.cuda(), weight.cuda()
    assert tuning.tiles_for("low_rank_linear", tokens, weight, 4) == odd
    assert tuning.tiles_for("low_rank_linear", tokens, weight[:48], 4) == tuning.tile_rule("float32", (48, 48, 16), 32)


def test_maps_that_the_kernel_is_not_called_for_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotuning, "MOST_PRODUCTS", 17 * 48 * 144)
    rows = [problem.row.split("/")[3] for problem in linear_tunables("cpu", torch.float32, 48, 17)]
    assert rows == ["48x144x16", "48x48x16"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [16, 32, 128])
@pytest.mark.parametrize("columns", [48, 384, 4096])
@pytest.mark.parametrize("rows", [1, 256, 4096])
def test_the_rule_for_tiles_fits_every_architecture(rows: int, columns: int, rank: int, dtype: str) -> None:
    tiles = tuning.tile_rule(dtype, (384, columns, rank), rows)
    entry = 4 if dtype == "float32" else 2
    stage_bytes = (tiles.rows + tiles.columns + rank) * tiles.depth * entry
    assert tiles.stages >= 2
    assert tiles.stages * stage_bytes <= min(SHARED_BYTES.values())


def test_few_rows_are_cut_into_smaller_tiles() -> None:
    # 197 and 1576 rows of DeiT-S's projection: one image, and eight.
    one, eight = (tuning.tile_rule("bfloat16", (384, 384, 32), rows) for rows in (256, 2048))
    assert (one.rows, one.columns) == (32, 32)
    assert (eight.rows, eight.columns) == (64, 128)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_nothing_is_tuned() -> None:
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU; torch sees none"):
        autotune()


def test_a_broken_table_is_refused(table) -> None:
    table.write_text(json.dumps({"rows": {"bit_attention/sm_90/float16/64/1024": {"queries": 64}}}))
    with pytest.raises(CheckpointError, match=r"is no table of blocks .* write it again with autotune\(\)"):
        tuning.read_table()


def test_the_shipped_table_is_empty_until_a_gpu_has_measured_it() -> None:
    assert tuning.read_table(tuning.TABLE) == {}
