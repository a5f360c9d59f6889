import json

import pytest
import torch

from vitslim.errors import CheckpointError

pytest.importorskip("triton")
from vitslim.kernels.triton import tuning
from vitslim.kernels.triton.tuning import Blocks

SLOW, FAST, BROKEN = Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 3), Blocks(128, 128, 8, 4)
COST = {SLOW: 2.0, FAST: 1.0}


@pytest.fixture
def table(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "blocks.json"
    path.write_text('{"rows": {}}')
    monkeypatch.setattr(tuning, "TABLE", path)
    tuning._looked_up.cache_clear()
    yield path
    tuning._looked_up.cache_clear()


def call(blocks: Blocks) -> float:
    if blocks is BROKEN:
        from triton.runtime.errors import OutOfResources

        raise OutOfResources(300_000, 232_448, "shared memory")
    return COST[blocks]


def measured(run) -> float:
    return run()


def test_the_fastest_blocks_are_kept_and_those_that_do_not_fit_passed_over(table) -> None:
    problem = ("tile_attention", 90, "float16", 48, 577, call)
    found = tuning.tune([problem], measured, [SLOW, FAST, BROKEN], table)
    assert found == {"tile_attention/sm_90/float16/64/1024": FAST}
    assert tuning.read_table(table) == found


def test_other_rows_stay(table) -> None:
    first = tuning.tune([("tile_attention", 90, "float16", 64, 577, call)], measured, [SLOW], table)
    second = tuning.tune([("bit_attention", 90, "float16", 64, 577, call)], measured, [FAST], table)
    assert tuning.read_table(table) == first | second


def test_where_nothing_fits_there_is_no_row(table) -> None:
    assert tuning.tune([("bit_attention", 90, "float16", 64, 577, call)], measured, [BROKEN], table) == {}


def test_a_measured_row_is_taken_before_the_rule(table) -> None:
    # Device 0 stands for Triton's interpreter.
    tuning.tune([("bit_attention", 0, "float32", 16, 37, call)], measured, [FAST], table)
    assert tuning.blocks_for("bit_attention", torch.zeros(1, 1, 37, 16), 37) == FAST
    assert tuning.blocks_for("bit_attention", torch.zeros(1, 1, 37, 16), 33) == FAST
    assert tuning.blocks_for("bit_attention", torch.zeros(1, 1, 37, 16), 90) == tuning.rule("", "float32", 16, 128)


def test_a_broken_table_is_refused(table) -> None:
    table.write_text(json.dumps({"rows": {"bit_attention/sm_90/float16/64/1024": {"queries": 64}}}))
    with pytest.raises(CheckpointError, match=r"is no table of blocks .* write it again with tune\(\)"):
        tuning.read_table()


def test_the_shipped_table_can_be_read() -> None:
    assert all(row.queries >= 16 for row in tuning.read_table(tuning.TABLE).values())
