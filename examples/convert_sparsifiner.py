"""Sparsifiner on the built-in model: its two phases, who shares a key set, and which keys a query keeps.

First the predictor alone learns what the dense attention looks like, then the backbone gets used to the keys that are
kept. Needs no download.

python examples/convert_sparsifiner.py
"""

from typing import Any

import torch
from torch import Tensor, nn

import vitslim
from vitslim.bench import count_macs
from vitslim.data import open_data
from vitslim.models import preprocessing, trace
from vitslim.trunk import BoundBlock, Stream, trunk_of

DATA = "fractals:train_per_class=5,val_per_class=2"
BLOCK, QUERY = 6, 27  # the block and the patch that the picture is of


def main(data: str = DATA, steps: int = 15) -> None:
    teacher = vitslim.open_model("builtin")
    print(f"dense            {count_macs(teacher) / 1e6:.1f} MMAC")
    for granularity in ("query", "tile", "image"):
        options = {"tile": 16} if granularity == "tile" else {}
        shared = vitslim.convert(teacher, "sparsifiner", granularity=granularity, **options)
        print(f"one set per {granularity:5s} {count_macs(shared) / 1e6:.1f} MMAC")

    student = vitslim.convert(teacher, "sparsifiner", granularity="query")
    images = next(iter(open_data(data, split="val", preprocessing=preprocessing(student), batch_size=16))).images
    print("\nshare of the dense attention that lies on the kept keys, mean over queries, heads and blocks")
    report(student, teacher, images, "at the start")
    vitslim.warm_start(student, teacher, data, steps=steps)  # the first phase
    report(student, teacher, images, f"after {steps} steps of the predictor")
    vitslim.distill(student, teacher, data, steps=steps, lr=1e-4, tokens=0.5, validate=False)  # the second phase
    found = vitslim.evaluate(student, data, teacher=teacher)
    print(
        f"after {steps} steps of the backbone it agrees with the dense model on {found.agreement:.1%} of the images\n"
    )

    kept, _ = choice(student, teacher, images[:1], BLOCK)
    print(f"block {BLOCK}, first head: keys (#) that the patch Q keeps")
    print(picture(kept[0, 0, QUERY], trunk_of(student).layout))


def report(student: nn.Module, teacher: nn.Module, images: Tensor, when: str) -> None:
    found = [choice(student, teacher, images, block) for block in range(len(trunk_of(student)))]
    held = torch.stack([rows.gather(3, kept).sum(dim=3).mean() for kept, rows in found]).mean()
    best = torch.stack([rows.topk(kept.shape[3]).values.sum(dim=3).mean() for kept, rows in found]).mean()
    keys, tokens = found[0][0].shape[3], found[0][1].shape[3]
    print(f"{when}: {held:.1%} on {keys} of {tokens} keys (the best {keys} hold {best:.1%}, any {keys / tokens:.1%})")


@torch.no_grad()
def choice(student: nn.Module, teacher: nn.Module, images: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The kept keys of every patch query (b, h, p, k), and the attention that the dense model pays all keys."""
    dense = trace(teacher, images)
    bound = BoundBlock(dense.adapter, dense.blocks[block])
    query, key, _ = bound.queries_keys_values(dense.attention_inputs[block], dense.contexts[block])
    rows = (bound.scale * query @ key.transpose(-2, -1)).softmax(dim=3)[:, :, dense.layout.prefix :]
    mixing: Any = trunk_of(student).plan.steps[block].mixing
    kept = mixing.choose(query, key, Stream(dense.layout), keys=mixing.rule.keys(dense.layout), tile=1)
    return kept, rows


def picture(kept: Tensor, layout: Any) -> str:
    marks = ["."] * layout.patches
    for token in kept.tolist():
        if token >= layout.prefix:
            marks[token - layout.prefix] = "#"
    marks[QUERY] = "Q"
    columns = layout.grid[1]
    return "\n".join(" ".join(marks[start : start + columns]) for start in range(0, layout.patches, columns))


if __name__ == "__main__":
    main()
