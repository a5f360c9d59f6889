"""Two processes on one machine, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch
from timm.models.vision_transformer import VisionTransformer
from vitslim.data import AugmentConfig, FractalConfig, open_data
from vitslim.methods import convert
from vitslim.models import preprocessing
from vitslim.train import DistillConfig, WarmStartConfig, distill, warm_start

torch.set_num_threads(1)
torch.manual_seed(0)
teacher = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=4).eval()
student = convert(teacher, "skipat", layers=(1, 2)) if sys.argv[2] == "skipat" else convert(teacher, "evo_vit")
images, still = FractalConfig(classes=4, image_size=32, train_per_class=8, val_per_class=5), AugmentConfig(shift=0.0)
train, val = (
    open_data(images, split=split, preprocessing=preprocessing(teacher), batch_size=4, training=split == "train",
              augment=still)
    for split in ("train", "val")
)
plain = {"precision": "no", "tensorboard": False}
if sys.argv[2] == "skipat":
    warm_start(student, teacher, train, WarmStartConfig(steps=2, **plain))
early = 0.0 if sys.argv[2] == "skipat" else 0.5
config = DistillConfig(steps=4, hard=1.0, tokens=1.0, step_outputs=1.0, accumulate=2, early_tokens=early, **plain)
result = distill(student, teacher, train, config, val_loader=val, out_dir=sys.argv[1])
total = sum(float(parameter.detach().double().abs().sum()) for parameter in student.parameters())
print(json.dumps({"images": result.images, "held_out": result.evaluations[-1]["images"], "weights": total}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["skipat", "evo_vit"])
def test_processes_share_the_images_and_end_with_the_same_weights(tmp_path: Path, method: str) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "VITSLIM_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "run.py"), str(tmp_path / "out"), method],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["images"] == 4 * 2 * 2 * 4  # steps, accumulated batches, processes, images of a batch
    assert found[0]["held_out"] == 20
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) >= 3
