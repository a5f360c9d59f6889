"""Images: loaders over folders, Hugging Face data sets, shards, with the built-in fractals."""

from vitslim.data.augment import AugmentConfig
from vitslim.data.batch import Batch, CorruptCount, Loader, Preprocessing, warn_of_shared_images
from vitslim.data.fractal import FractalConfig
from vitslim.data.open import open_data
from vitslim.data.rendered import open_rendered
from vitslim.data.spec import DataConfig

__all__ = [
    "AugmentConfig",
    "Batch",
    "CorruptCount",
    "DataConfig",
    "FractalConfig",
    "Loader",
    "Preprocessing",
    "open_data",
    "open_rendered",
    "warn_of_shared_images",
]
