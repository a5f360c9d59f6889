"""The public functions of Python, with one or two arguments of wrong kinds or values."""

import random
from pathlib import Path
from typing import Any

import vitslim
from tests.fuzz import values
from tests.fuzz.place import Case
from tests.pipeline.tiny import IMAGES

STEP = {"steps": 1, "tensorboard": False, "precision": "fp32", "batch_size": 4}
STUDENT, DENSE = object(), object()  # opened within the folder of the case
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("open_model", {"source": "builtin", "pretrained": False, "img_size": 32, "num_classes": 4, "depth": 4}),
    ("convert", {"model": DENSE, "method": "skipat", "layers": (1, 2), "expansion": 0.5}),
    ("convert", {"model": DENSE, "method": "sparsifiner", "keep_rate": 0.5}),
    ("list_methods", {}),
    ("SkipAtConfig", {"layers": (1, 2), "kernel_size": 5}),
    (
        "analyze",
        {"model": DENSE, "data": IMAGES, "images": 8, "replacement_images": 4, "batch_size": 4, "split": "val"},
    ),
    ("warm_start", {"student": STUDENT, "teacher": DENSE, "data": IMAGES, **STEP}),
    ("distill", {"student": STUDENT, "teacher": DENSE, "data": IMAGES, "out_dir": "out", "validate": False, **STEP}),
    ("evaluate", {"model": STUDENT, "data": IMAGES, "teacher": DENSE, "batch_size": 4, "limit": 4, "device": "cpu"}),
    ("evaluate", {"model": "student", "data": "images", "batch_size": 4, "limit": 4, "backend": "ort"}),
    (
        "save",
        {"model": STUDENT, "out": "out", "overwrite": False, "class_names": list("abcd"), "metrics": {"top1": 0.5}},
    ),
    ("load", {"path": "student"}),
    ("export", {"model": "student", "path": "out.onnx", "to": "onnx", "precision": "fp32", "optimize": False}),
    ("verify", {"model": "student", "artifacts": ["student/export/model.onnx"], "images": 2, "batches": (1,)}),
    ("benchmark", {"models": ["student"], "backends": ["torch"], "batches": [1], "rounds": 5, "warmup": 1}),
    ("export", {"model": "student", "to": "triton-server", "path": "models", "name": "vit", "max_batch": 4}),
    ("quantize", {"folder": "student", "data": IMAGES, "precision": "fp8", "images": 2}),
    ("refit", {"engine": "student/export/model.engine", "source": "student"}),
    ("import_checkpoint", {"checkpoint": "student/model.safetensors", "source": "skipat", "base": "builtin"}),
    ("open_runner", {"path": "student", "backend": "ort", "precision": "fp32", "device": "cpu"}),
]


def case(rng: random.Random, folder: Path) -> Case:
    """A call that is nearly right."""
    name, usual = rng.choice(CALLS)
    arguments = dict(usual)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        known = (
            rng.choice(sorted(arguments)) if arguments and rng.random() < 0.85 else rng.choice(["modle", "seed", "x"])
        )
        usual = values.value(rng, arguments.get(known), known)
        arguments[known] = rng.choice([usual, usual, usual, Path(values.text(rng)), STUDENT, object()])
    if rng.random() < 0.1 and arguments:
        del arguments[rng.choice(sorted(arguments))]
    return Case(f"vitslim.{name}({arguments!r})", lambda: _call(name, arguments))


def _call(name: str, arguments: dict[str, Any]) -> None:
    opened: dict[object, Any] = {}
    for placeholder, folder in ((STUDENT, "student"), (DENSE, "dense")):
        if any(one is placeholder for one in arguments.values()):
            opened[id(placeholder)] = vitslim.load(folder)
    function: Any = vitslim
    for part in name.split("."):
        function = getattr(function, part)
    function(**{key: opened.get(id(one), one) for key, one in arguments.items()})
