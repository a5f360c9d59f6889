"""Opening images by name."""

from vitslim.data.augment import AugmentConfig
from vitslim.data.batch import Contents, Loader, Preprocessing
from vitslim.data.fractal import FractalConfig, Split, open_fractals
from vitslim.data.order import Order, spread
from vitslim.data.tensors import TensorSource


def open_fractal_loader(
    config: FractalConfig,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    training: bool,
    augment: AugmentConfig | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Loader:
    dataset = open_fractals(config, split)
    images, labels = dataset.tensors()
    subset = spread(labels, len(labels), limit or len(labels), seed)
    order = Order(len(subset), batch_size, training, augment.repeats if augment else 0, seed)
    source = TensorSource(images, labels, subset, order, preprocessing, augment if training else None)
    contents = Contents(f"fractals ({split})", len(subset), True, config.classes, tuple(dataset.classes))
    return Loader(source, contents)
