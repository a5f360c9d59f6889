"""SReT on the built-in model: how the rank of the residuals trades parameters for likeness, and merging for latency.

Blocks 1-2, 3-4 .. share their matrices; each keeps a residual of rank r. Rank 0 is pure sharing, full rank the dense
model again. Residuals cost two small products per linear map; merged, the model is as fast and as large as the dense
one. Needs no download.

python examples/convert_sret.py
"""

from collections.abc import Sequence

import vitslim
from vitslim.bench import count_macs, count_parameters
from vitslim.methods import merge_residuals

DATA = "fractals:train_per_class=5,val_per_class=2"


def main(data: str = DATA, ranks: Sequence[int | str] = (0, 8, 32, "full"), steps: int = 15, rounds: int = 15) -> None:
    teacher = vitslim.open_model("builtin")
    print(f"dense      {count_parameters(teacher) / 1e6:.2f} M parameters, {count_macs(teacher) / 1e6:.1f} MMAC")
    for rank in ranks:
        student = vitslim.convert(teacher, "sret", rank=rank)
        found = vitslim.evaluate(student, data, teacher=teacher)
        print(
            f"rank {rank!s:5s} {count_parameters(student) / 1e6:.2f} M parameters, "
            f"{count_macs(student) / 1e6:.1f} MMAC, "
            f"agrees with the dense model on {found.agreement:.1%} of the images before any training"
        )

    student = vitslim.convert(teacher, "sret")
    vitslim.distill(student, teacher, data, steps=steps, lr=2e-4, validate=False)
    trained = vitslim.evaluate(student, data, teacher=teacher)
    print(f"\ndefault rank after {steps} steps of distillation: {trained.agreement:.1%}")

    merged = merge_residuals(student)
    print(f"merged: {count_parameters(merged) / 1e6:.2f} M parameters, the same function; latency of one image:")
    report = vitslim.benchmark(
        {"sret": student, "merged": merged}, baseline=teacher, backends=("torch",), batches=(1,), rounds=rounds
    )
    for row in report.rows:
        print(f"{row.model:8s} {row.latency_ms_p50:6.2f} ms, {row.speedup_vs_dense:.2f} x the speed of dense")


if __name__ == "__main__":
    main()
