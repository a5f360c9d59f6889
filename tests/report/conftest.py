"""An output folder with every part of a report, small enough to write in each test."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.variants import dense
from vitslim.methods import convert
from vitslim.train.settings import TrainResult
from vitslim.trunk import plan_summary

LAYERS = 4


def matrix(off_diagonal: float) -> list[list[float]]:
    return [[1.0 if row == column else off_diagonal for column in range(LAYERS)] for row in range(LAYERS)]


def bench_row(model: str, backend: str, batch: int, latency_ms: float, speedup: float) -> dict[str, Any]:
    is_dense = model == "dense"
    return {
        "model": model,
        "backend": backend,
        "precision": "fp32",
        "batch": batch,
        "image_size": [32, 32],
        "latency_ms_p50": latency_ms,
        "latency_ms_p90": latency_ms * 1.1,
        "latency_ms_p99": latency_ms * 1.3,
        "throughput_img_s": 1000 * batch / latency_ms,
        "speedup_vs_dense": speedup,
        "speedup_p10": speedup - 0.01,
        "speedup_p90": speedup + 0.01,
        "params": 2_000_000 if is_dense else 1_500_000,
        "macs": 40_000_000 if is_dense else 30_000_000,
        "peak_memory_mib": None,
        "rounds": 30,
    }


@cache
def plan_rows() -> list[dict[str, Any]]:
    """The plan of a student that has every kind of step but those of SReT."""
    student = convert(dense("vit_plain"), "skipat", layers=(1,), expansion=0.5)
    return plan_summary(convert(student, "evo_vit", stages=(3,), keep=0.5))


def result(stage: str, before: dict[int, float] | None = None, after: dict[int, float] | None = None) -> dict[str, Any]:
    """What a stage of training leaves behind."""
    return TrainResult(
        stage=stage,
        settings={"lr": 5e-4},
        steps=20,
        planned_steps=20,
        epochs=1.0,
        images=320,
        seconds=2.5,
        images_per_second=128.0,
        parameters=27_936,
        precision="no",
        stopped="finished",
        losses={"total": 0.25},
        evaluations=[],
        corrupt=0,
        step_losses_before=before,
        step_losses_after=after,
    ).model_dump(mode="json")


def documents() -> dict[str, Any]:
    """Every JSON part by its path, in the shapes that the stages write."""
    return {
        "config.json": {
            "format_version": 1,
            "base": {"architecture": "vit_toy"},
            "conversions": [{"method": "skipat", "options": {"layers": [2, 3], "expansion": 0.5, "residual": None}}],
            "input": {"image_size": [32, 32]},
            "versions": {"vitslim": "0.1.0"},
        },
        "analysis.json": {
            "model": "vit_toy",
            "images": 64,
            "layers": [f"blocks.{layer}" for layer in range(LAYERS)],
            "cka": {"z": matrix(0.871), "cls_attention": matrix(0.6), "block": matrix(0.95)},
            "linear_r2": [None, 0.512, 0.9, 0.93],
            "replacement": [
                {"layer": layer, "kind": kind, "kl": 0.123, "top1_agreement": 0.917, "feature_change": None}
                for layer in (1, 2, 3)
                for kind in ("identity", "linear")
            ],
            "replacement_images": 32,
            "recommended": {
                "layers": [2, 3],
                "reason": "They are the cheapest.",
                "measured": [{"kind": "linear", "kl": 0.4, "top1_agreement": 0.765}],
            },
            "notes": ["Few images."],
        },
        "plan.json": plan_rows(),
        "cost.json": {"params": 1_500_000, "macs": 30_000_000, "dense_params": 2_000_000, "dense_macs": 40_000_000},
        "choices.json": [
            {"method": "skipat", "option": "layers", "recommended": [2, 3], "used": [1], "reason": "given"},
        ],
        "metrics.json": {
            "teacher": {"images": 400, "top1": 0.8125, "top5": 0.95, "agreement": None, "kl": None},
            "student": {"images": 400, "top1": 0.7875, "top5": 0.94, "agreement": 0.9025, "kl": 0.0321},
            "dense_control": {"images": 400, "top1": 0.8175, "top5": 0.95, "agreement": 0.93, "kl": 0.01},
        },
        "train/warm_start/result.json": result("warm_start", {2: 0.66}, {2: 0.022}),
        "train/result.json": result("distill"),
        "export/parity.json": {
            "checks": [
                {"artifact": "model.onnx", "precision": "fp32", "batch": 3, "max_abs": 3.1e-6, "passed": True},
                {"artifact": "half.onnx", "precision": "fp16", "batch": 1, "max_abs": 0.5, "passed": False}
                | {"tolerance": 0.02, "failures": ["max_abs is above the tolerance"]},
            ]
        },
        "bench.json": {
            "baseline": "dense",
            "settings": {"threads": 1, "rounds": 30},
            "environment": {"cpu": "Toy CPU"},
            "rows": [
                bench_row("dense", "torch", 1, 10.0, 1.0),
                bench_row("student", "torch", 1, 8.0, 1.25),
                bench_row("dense", "ort", 1, 9.0, 1.0),
                bench_row("student", "ort", 1, 10.0, 0.9),
            ],
            "skipped": [{"backend": "tensorrt", "precision": "fp16", "reason": "no GPU"}],
            "notes": [],
        },
        "env.json": {"python": "3.11", "cores": 2, "gpu": []},
    }


def write_documents(folder: Path, parts: dict[str, Any]) -> None:
    for name, document in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))


@pytest.fixture
def parts() -> dict[str, Any]:
    return documents()


@pytest.fixture
def folder(tmp_path: Path, parts: dict[str, Any]) -> Path:
    out = tmp_path / "out"
    write_documents(out, parts)
    log = [
        {"event": "start", "step": 0, "stage": "warm_start"},
        *({"event": "train", "step": step, "loss": 2.0 / step, "lr": 1e-3, "img_per_s": 100.0} for step in (1, 2, 3)),
        {"event": "start", "step": 0, "stage": "distill"},
        *({"event": "train", "step": step, "loss": 1.0 / step, "lr": 1e-4, "img_per_s": 50.0} for step in (10, 20)),
        {"event": "eval", "step": 20, "top1": 0.7875},
    ]
    (out / "train" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (out / "recipe.yaml").write_text("model: vit_toy\n")
    (out / "model.safetensors").write_bytes(bytes(2**20))
    return out
