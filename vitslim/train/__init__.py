"""Training: layer-wise warm start, distillation, evaluation, pretraining, all over one loop."""

from vitslim.train.distill import DistillConfig, check_distillation, distill, training_errors
from vitslim.train.evaluate import EvalResult, evaluate, evaluate_all
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
    "check_distillation",
    "distill",
    "evaluate",
    "evaluate_all",
    "pretrain",
    "training_errors",
    "warm_start",
]
