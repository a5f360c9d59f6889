"""One analysis per model and images, kept on disk for all who convert that model."""

import hashlib
import warnings
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from vitslim.analysis.passes import analyze
from vitslim.analysis.result import AnalysisReport
from vitslim.data import Loader
from vitslim.errors import CheckpointError
from vitslim.files import cache_root, digest_of, read_json, write_json
from vitslim.models import BaseModel, describe
from vitslim.models.digest import tensors_sha256
from vitslim.progress import Progress, ProgressCallback, silent

# A change in these folders may change what an analysis finds.
_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = ("analysis", "models")


def analyze_once(
    model: nn.Module,
    loader: Loader,
    *,
    images: int | None,
    replacement_images: int,
    progress: ProgressCallback = silent,
) -> AnalysisReport:
    """What ``analyze`` finds, from the cache where the same was asked before; a damaged entry is made anew.

    An entry answers for the same weights and architecture, the same first batch and number of images, the same
    settings, and the same code. Images that changed behind the first batch are not noticed. A model that cannot be
    described (``vitslim.models.describe``) is analysed every time. The cache is the folder ``analyses`` in
    $VITSLIM_CACHE, else in ~/.cache/vitslim.

    Raises:
        ConfigError, DataError, UnsupportedModelError: as ``analyze`` does.
    """
    base = describe(model)
    if base is None:
        return analyze(model, loader, images=images, replacement_images=replacement_images, progress=progress)
    path = cache_folder() / f"{_key(base, model, loader, images, replacement_images)}.json"
    known = _read(path)
    if known is not None:
        progress(Progress("analyze", known.images, known.images, "done before"))
        return known
    report = analyze(model, loader, images=images, replacement_images=replacement_images, progress=progress)
    try:
        write_json(path, report.model_dump(mode="json"))
    except CheckpointError as error:
        warnings.warn(f"the analysis was made but not kept for other students: {error}", stacklevel=2)
    return report


def cache_folder() -> Path:
    """Where the analyses lie."""
    return cache_root() / "analyses"


def _read(path: Path) -> AnalysisReport | None:
    """An entry, or None where it is absent or damaged."""
    try:
        return AnalysisReport.model_validate(read_json(path))
    except (CheckpointError, ValidationError):
        return None


def _key(base: BaseModel, model: nn.Module, loader: Loader, images: int | None, replacement_images: int) -> str:
    """A name that changes whenever the analysis might."""
    first = next((batch.images for batch in loader), torch.empty(0))
    words = [
        base.model_dump(mode="json"),
        tensors_sha256(model.state_dict()),
        [tensors_sha256({"images": first}), loader.num_images, loader.batch_size],
        [images, replacement_images],
        [_code_digest(), torch.__version__],
    ]
    return digest_of(words, 32)


def _code_digest() -> str:
    found = hashlib.sha256()
    for path in sorted(path for folder in _CODE for path in (_PACKAGE / folder).glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
