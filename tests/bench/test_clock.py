import gc
import time
from collections.abc import Callable
from itertools import count

import pytest
import torch

from vitslim.bench.clock import (
    MIN_ROUNDS,
    cpu_clock,
    interleaved_latencies_ms,
    percentile,
    processor_clock,
    torch_threads,
)


def test_every_round_times_the_second_call_of_each_competitor_and_starts_with_another():
    calls: list[str] = []
    competitors = {name: lambda name=name: calls.append(name) for name in "abc"}

    def position(call: Callable[[], object]) -> float:
        call()
        return float(len(calls))

    samples = interleaved_latencies_ms(competitors, rounds=5, warmup=1, clock=position)
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc" + "bbccaa"
    assert samples == {"a": [5, 15, 19, 23, 33], "b": [7, 11, 21, 25, 29], "c": [9, 13, 17, 27, 31]}


def test_a_time_limit_ends_after_the_least_number_of_rounds():
    samples = interleaved_latencies_ms({"a": lambda: None}, rounds=1000, seconds=1e-9)
    assert len(samples["a"]) == MIN_ROUNDS


def test_rounds_go_on_until_the_least_time_is_over(monkeypatch: pytest.MonkeyPatch):
    seconds = count()
    monkeypatch.setattr("vitslim.bench.clock.time.perf_counter", lambda: float(next(seconds)))
    for least, rounds in ((0.0, 2), (10.0, 9)):
        samples = interleaved_latencies_ms({"a": lambda: None}, rounds=2, least_seconds=least, clock=lambda call: 1.0)
        assert len(samples["a"]) == rounds


def test_the_processor_clock_does_not_count_what_waits():
    assert processor_clock(lambda: time.sleep(0.05)) < 25
    assert processor_clock(lambda: sum(range(1_000_000))) > 1


def test_the_clock_is_an_argument():
    ticks = iter(range(100))
    samples = interleaved_latencies_ms(
        {"a": lambda: None, "b": lambda: None}, rounds=2, warmup=0, clock=lambda call: float(next(ticks))
    )
    assert samples == {"a": [0.0, 3.0], "b": [1.0, 2.0]}


def test_milliseconds_are_positive_and_garbage_collection_is_put_back():
    assert cpu_clock(lambda: sum(range(1000))) > 0
    with pytest.raises(RuntimeError, match="broken"):
        interleaved_latencies_ms({"a": broken}, rounds=1, warmup=0)
    assert gc.isenabled()


def broken():
    raise RuntimeError("broken")


def test_threads_are_put_back_even_after_a_failure():
    before, inside = torch.get_num_threads(), []

    @torch_threads(before + 1)
    def fail():
        inside.append(torch.get_num_threads())
        broken()

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_percentiles_interpolate():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([1.0, 2.0], 90) == pytest.approx(1.9)
