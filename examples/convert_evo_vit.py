"""Evo-ViT on the built-in model: which patches rest, and that whoever reads feature maps sees them in natural order.

Half of the training chooses patches anew at every block, as the authors do early on; the model ends stage-wise.
Needs no download.

python examples/convert_evo_vit.py
"""

import torch
from torch import Tensor, nn

import vitslim
from vitslim.bench import count_macs
from vitslim.data import open_data
from vitslim.models import preprocessing
from vitslim.trunk import plan_summary, trunk_of

DATA = "fractals:train_per_class=5,val_per_class=2"


def main(data: str = DATA, steps: int = 15) -> None:
    teacher = vitslim.open_model("builtin")
    student = vitslim.convert(teacher, "evo_vit", keep=0.5)
    for row in plan_summary(student):
        print(f"block {row['block']:2d}  {row['tokens']}")
    print(f"{count_macs(teacher) / 1e6:.1f} -> {count_macs(student) / 1e6:.1f} MMAC per image\n")

    trunk_of(student).choose_early_(True)
    print("early in training block 6:", plan_summary(student)[6]["tokens"])
    trunk_of(student).choose_early_(False)
    print("from then on, and as saved:", plan_summary(student)[6]["tokens"], "\n")

    print(f"agreement with the dense model, untrained: {agreement(student, teacher, data):.1%}")
    vitslim.distill(student, teacher, data, steps=steps, early_tokens=0.5, lr=2e-4, validate=False)
    print(f"after {steps} steps: {agreement(student, teacher, data):.1%}\n")

    image = next(iter(open_data(data, split="val", preprocessing=preprocessing(student), batch_size=1))).images
    for block in (4, 8):
        print(f"patches of one image that take part from block {block} on (#):")
        print(picture(active_in(student, image, block)), "\n")


def agreement(student: nn.Module, teacher: nn.Module, data: str) -> float:
    return vitslim.evaluate(student, data, teacher=teacher).agreement or 0.0


@torch.no_grad()
def active_in(student: nn.Module, image: Tensor, block: int) -> Tensor:
    """Which patches a block changed, on their grid: those that rest leave it as they entered."""
    # (1, d, rows, columns) per block, in natural order although the trunk carries its tokens sorted.
    before, after = student.forward_intermediates(image, indices=[block - 1, block], intermediates_only=True)
    return (before != after).any(dim=1)[0]


def picture(active: Tensor) -> str:
    return "\n".join(" ".join("#" if patch else "." for patch in row) for row in active.tolist())


if __name__ == "__main__":
    main()
