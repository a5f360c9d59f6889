"""What a forward has to move, what a machine allows, where a time stands between them."""

import pytest
import torch
from torch import nn

from vitslim.bench.peaks import measure_peaks
from vitslim.bench.roofline import MeasuredPeaks, Traffic, count_traffic, numbers_in, roofline_point
from vitslim.methods import convert

PEAKS = MeasuredPeaks(tflops=100.0, gbytes_s=1000.0, gemm_size=8192, copy_mib=1024.0)


def test_the_traffic_of_a_vit_is_what_its_products_read_and_write(dense: nn.Module) -> None:
    # 17 = 1 + 4 * 4 tokens of width 48, 4 blocks: qkv, projection, two layers of the MLP, attention as one operator.
    n, d, blocks = 17, 48, 4
    linear_weights = 12 * d * d + (3 + 1 + 4 + 1) * d
    patch_weights, head_weights = 3 * 8 * 8 * d + d, 10 * d + 10
    block = (n * d + n * 3 * d) + (4 * n * d) + (2 * n * d) + 2 * (n * d + n * 4 * d)
    embedding, head = 3 * 32 * 32 + 16 * d, d + 10
    found = count_traffic(dense)
    assert found.weights == blocks * linear_weights + patch_weights + head_weights
    assert found.per_image == blocks * block + embedding + head


def test_weights_are_read_once_per_batch_and_images_each_time() -> None:
    assert Traffic(weights=1000, per_image=10).gbytes(batch=3, width=2) == pytest.approx(2060e-9)


def test_a_model_with_half_of_the_patches_moves_less_and_shared_weights_are_not_less_to_read(dense: nn.Module) -> None:
    plain = count_traffic(dense)
    assert count_traffic(convert(dense, "evo_vit")).per_image < plain.per_image
    # A block that is run twice is read twice.
    assert count_traffic(convert(dense, "sret", rank=0)).weights == pytest.approx(plain.weights, rel=0.01)


def test_the_kept_keys_of_a_sparse_attention_are_counted(dense: nn.Module) -> None:
    sparse = count_traffic(convert(dense, "sparsifiner", granularity="query"))
    assert sparse.per_image > count_traffic(dense).per_image


def test_below_the_ridge_memory_limits_and_above_it_arithmetic() -> None:
    # The ridge of these peaks lies at 100 operations per byte.
    streaming = roofline_point(flops=1e9, gbytes=0.1, latency_ms=1.0, peaks=PEAKS)
    assert (streaming.tflops, streaming.gbytes_s) == (pytest.approx(1), pytest.approx(100))
    assert streaming.share == pytest.approx(0.1)
    product = roofline_point(flops=1e12, gbytes=1.0, latency_ms=20.0, peaks=PEAKS)
    assert product.share == pytest.approx(0.5)


def test_a_time_at_the_peak_is_a_share_of_one() -> None:
    assert roofline_point(1e12, 10.0, 10.0, PEAKS).share == pytest.approx(1)


def test_what_only_moves_data_has_its_share_of_the_bandwidth() -> None:
    # 100 MB at 1000 GB/s take 0.1 ms.
    copied = roofline_point(flops=0.0, gbytes=0.1, latency_ms=0.4, peaks=PEAKS)
    assert copied.tflops == 0
    assert copied.share == pytest.approx(0.25)


def test_numbers_are_counted_in_nested_values() -> None:
    assert numbers_in(([torch.zeros(2, 3)], {"mask": torch.zeros(4)}, 7, None)) == 10


def test_peaks_are_measured() -> None:
    found = measure_peaks("cpu", "fp32")
    # Any machine of this century: a GFLOP/s and a GB/s, and below a PFLOP/s.
    assert 1e-3 < found.tflops < 1e3
    assert found.gbytes_s > 1
