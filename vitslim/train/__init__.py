"""Training: layer-wise warm start, distillation, evaluation, pretraining, all over one loop."""

from vitslim.train.distill import DistillConfig, distill
from vitslim.train.evaluate import EvalResult, evaluate
from vitslim.train.pretrain import Phase, PretrainConfig, PretrainResult, pretrain
from vitslim.train.settings import LoopConfig, TrainResult
from vitslim.train.warm_start import WarmStartConfig, warm_start

__all__ = [
    "DistillConfig",
    "EvalResult",
    "LoopConfig",
    "Phase",
    "PretrainConfig",
    "PretrainResult",
    "TrainResult",
    "WarmStartConfig",
    "distill",
    "evaluate",
    "pretrain",
    "warm_start",
]
