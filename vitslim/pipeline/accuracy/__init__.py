"""The accuracy benchmark: presets, trainings that resume, one report."""

from vitslim.pipeline.accuracy.preset import AccuracyPreset, read_accuracy_preset
from vitslim.pipeline.accuracy.running import run_accuracy

__all__ = ["AccuracyPreset", "read_accuracy_preset", "run_accuracy"]
