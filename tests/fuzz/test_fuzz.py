"""A small part of ``make fuzz``: a few seconds of it in every run of the tests."""

from pathlib import Path

import pytest

from tests.fuzz.oracle import SURFACES, judge
from tests.fuzz.place import make_originals

CASES = {"recipes": 40, "saved": 20, "commands": 15, "files": 20, "api": 20}
SEED = 11


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITSLIM_CACHE", str(root / "cache"))
        make_originals(root / "originals", trained=False)
    return root / "originals"


@pytest.mark.parametrize("surface", SURFACES)
def test_every_case_ends_well_or_is_refused_and_leaves_nothing(
    surface: str, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(originals.parent / "cache"))
    verdicts = [judge(number, SEED, originals, tmp_path / "case", surface) for number in range(CASES[surface])]
    errors = [f"case {one.number}: {one.what}\n    {one.failure}" for one in verdicts if one.failure]
    assert not errors, f"python -m tests.fuzz --seed {SEED} --surface {surface} --case N\n" + "\n".join(errors)
    # A harness that makes nothing but rubbish would find nothing either.
    assert {"ok", "refused"} <= {one.ended for one in verdicts}
