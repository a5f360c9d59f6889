"""A run that takes seconds: a 4-block, 48-wide model on a few fractals of four classes."""

from typing import Any

MODEL: dict[str, Any] = {
    "name": "builtin",
    "pretrained": False,
    "img_size": 32,
    "num_classes": 4,
    "options": {"depth": 4, "embed_dim": 48, "num_heads": 3},
}
IMAGES = "fractals:classes=4,train_per_class=8,val_per_class=4,image_size=32"
QUIET = {"tensorboard": False, "log_every": 1, "precision": "fp32"}

RECIPE: dict[str, Any] = {
    "model": MODEL,
    "convert": [{"method": "skipat", "layers": "paper"}],
    "data": {"source": IMAGES, "batch_size": 16},
    "analyze": {"images": 16, "replacement_images": 8},
    "warm_start": {"steps": 2, **QUIET},
    "distill": {"steps": 3, "checkpoint_every": 1, **QUIET},
    "finetune_dense": True,
    "report": False,
}
"""Without export, bench and report, which take most of the time. The paper's layers: the same with the analysis and
without."""

WHOLE: dict[str, Any] = {
    **RECIPE,
    "report": True,
    "export": {"images": 4, "batches": [1, 3]},
    "bench": {"backends": ["torch"], "batches": [1], "rounds": 5, "warmup": 1},
}
