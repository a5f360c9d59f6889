import pytest
import torch

pytest.importorskip("triton")
from vitslim.kernels.triton.linear_cases import linear_cases, maps_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_case_maps_as_its_twin_does_but_for_the_residual(device: str) -> None:
    cases = linear_cases(device, torch.float32, 5, 2)
    assert len(cases) == 8
    operands = [one.operands for width in (384, 768) for one in maps_of(device, torch.float32, width, 10)]
    for case, (tokens, _, up, down, _) in zip(cases, operands, strict=True):
        found = case.call()
        assert not found.requires_grad
        torch.testing.assert_close(found, case.dense() + tokens @ down.T @ up.T, atol=1e-4, rtol=1e-4)


def test_bytes_and_operations_are_those_of_one_pass() -> None:
    fc1 = next(case for case in linear_cases("cpu", torch.bfloat16, 197, 1) if case.name.endswith("384 to 1536"))
    assert fc1.flops == 2 * 197 * (384 * 1536 + 32 * (384 + 1536))
    assert fc1.bytes == 2 * (197 * 384 + 384 * 1536 + 32 * (384 + 1536) + 1536 + 197 * 1536)
