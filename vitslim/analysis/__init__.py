"""What is redundant in a dense ViT: similarity of layers, linear predictability, effect of replacement."""

from vitslim.analysis.cache import analyze_once
from vitslim.analysis.cka import CkaAccumulator, linear_cka
from vitslim.analysis.linear_map import AdjacentMaps, LinearMap
from vitslim.analysis.passes import analyze
from vitslim.analysis.recommend import by_preference, recommend
from vitslim.analysis.result import AnalysisReport, Recommendation, Replacement, Similarity

__all__ = [
    "AdjacentMaps",
    "AnalysisReport",
    "CkaAccumulator",
    "LinearMap",
    "Recommendation",
    "Replacement",
    "Similarity",
    "analyze",
    "analyze_once",
    "by_preference",
    "linear_cka",
    "recommend",
]
