"""What a speed ratio says, and what it does not."""

import pytest

from vitslim.bench import BenchRow, remarks
from vitslim.bench.ratios import against_dense_torch, is_crowded, verdict

QUIET = {"load_average": [0.2, 0.3, 0.3], "cores_usable": 4}
BUSY = {"load_average": [3.4, 3.0, 2.0], "cores_usable": 4}


def row(model: str, backend: str, ms: float, ratio: float, **changes: object) -> BenchRow:
    found = BenchRow(
        model=model,
        backend=backend,
        precision="fp32",
        batch=1,
        image_size=(32, 32),
        latency_ms_p50=ms,
        latency_ms_p90=ms,
        latency_ms_p99=ms,
        throughput_img_s=1000 / ms,
        speedup_vs_dense=ratio,
        speedup_p10=ratio,
        speedup_p90=ratio,
        params=1,
        macs=1,
        peak_memory_mib=None,
        rounds=5,
    )
    return found.model_copy(update=changes)


def session(rows: list[BenchRow]) -> list[BenchRow]:
    return [one.model_copy(update={"speedup_vs_dense_torch": against_dense_torch(one, rows, "dense")}) for one in rows]


@pytest.mark.parametrize(
    ("ratio", "spread", "crowded", "said"),
    [
        (0.97, None, False, "slower"),
        (0.99, None, False, "even"),
        (1.015, None, True, "even"),
        (1.03, None, False, "faster"),
        (1.04, (0.98, 1.07), False, "even"),
        (1.04, (0.98, 1.07), True, "too noisy"),
        (1.0, (0.85, 1.2), False, "too noisy"),
        (1.1, (0.95, 1.2), False, "too noisy"),
        (1.5, (1.1, 2.0), True, "faster"),
        (0.6, (0.4, 0.9), True, "slower"),
        (1.0, (0.99, 1.01), True, "even"),
    ],
)
def test_a_ratio_is_a_gain_a_loss_even_or_too_noisy_to_tell(
    ratio: float, spread: tuple[float, float] | None, crowded: bool, said: str
) -> None:
    assert verdict(ratio, spread, crowded=crowded) == said


def test_a_machine_is_crowded_where_other_work_and_the_benchmark_need_more_than_its_cores() -> None:
    assert not is_crowded(QUIET, threads=1)
    assert is_crowded(BUSY, threads=1)
    assert is_crowded(QUIET, threads=4)
    assert not is_crowded({"load_average": None, "cores_usable": 4}, threads=1)
    assert not is_crowded({}, threads=1)


def test_the_second_ratio_is_against_dense_in_torch_at_the_same_batch() -> None:
    rows = [row("dense", "torch", 10.0, 1.0), row("dense", "ort", 5.0, 1.0), row("student", "ort", 4.0, 1.25)]
    other = row("student", "ort", 4.0, 1.25, batch=8)
    assert [against_dense_torch(one, rows, "dense") for one in [*rows, other]] == [1.0, 2.0, 2.5, None]
    assert against_dense_torch(rows[1], rows[1:], "dense") is None
    assert against_dense_torch(rows[1], rows, None) is None


def test_an_export_that_gains_more_than_the_conversion_is_said_in_words() -> None:
    rows = [row("dense", "torch", 10.0, 1.0), row("dense", "ort", 5.0, 1.0), row("student", "ort", 4.0, 1.25)]
    (sentence, rule) = remarks(session(rows), "dense", QUIET)
    assert sentence == (
        "Batch 1: the unchanged dense model in ort fp32 is 2.00 times as fast as in torch fp32, which is more than the "
        "conversion gives there (student: 1.25 times dense in the same backend; both together 2.50 times dense in "
        "torch)."
    )
    assert "one after the other, not in the same rounds" in rule
    better = [*rows[:2], row("student", "ort", 2.0, 2.5)]
    assert remarks(session(better), "dense", QUIET) == [rule]
    assert remarks(session(rows[:1]), "dense", QUIET) == []


def test_noise_and_another_resolution_are_said_in_words() -> None:
    noisy = row("student", "torch", 9.9, 1.01, speedup_p10=0.8, speedup_p90=1.3, verdict="too noisy")
    (sentence,) = remarks([noisy], "dense", BUSY)
    assert sentence.startswith(
        "Too noisy to tell at a load average of 3.4: student in torch fp32, batch 1 (spread 0.80"
    )
    (sentence,) = remarks([row("large", "torch", 20.0, 0.5, other_image_size=True)], "dense", QUIET)
    assert sentence == "The input of large is not as large as the baseline's: at another resolution."
