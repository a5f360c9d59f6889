"""What an ONNX file guarantees: what was written down when it was exported, not what it says of itself."""

from pathlib import Path

from torch import nn

from vitslim.errors import ConfigError
from vitslim.models.digest import tensors_sha256
from vitslim.runtime import Precision
from vitslim.runtime.engine import file_sha256
from vitslim.targets.onnx.forms import precision_in
from vitslim.targets.onnx.reading import metadata_in, read_header
from vitslim.targets.onnx.record import export_record_path, read_export_record
from vitslim.targets.parity.guarantee import Guarantee

_STRICTEST_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def guarantee_of(file: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
    """What was guaranteed of a file: by the record beside it, else by who asks, else fp32.

    Where the weights in the graph are of a finer precision, that one.

    Raises:
        ConfigError: another precision is asked for than the record has.
        CheckpointError: the file or its record is missing or damaged.
    """
    header = read_header(file)
    own = metadata_in(header).get("precision")
    record, place = read_export_record(file), export_record_path(file).name
    if record is None:
        precision = _stricter(asked or "fp32", precision_in(header))
        if asked is not None or own in (None, "fp32"):
            return Guarantee(precision)
        hint = f"{file.name} calls itself {own}; no {place} beside it names a guarantee, so it is compared as fp32"
        return Guarantee(precision, notes=(f"{hint} (--precision {own} compares it as that)",))
    if asked not in (None, record.precision):
        raise ConfigError(
            f"{file.name} was exported as {record.precision} ({place}); --precision {asked} contradicts it"
        )
    broken = () if own in (None, record.precision) else (f"it says {own} of itself, exported was {record.precision}",)
    notes: list[str] = []
    if record.sha256 != file_sha256(file):
        notes.append(f"{file.name} was changed after it was exported")
    if record.model_sha256 != tensors_sha256(model.state_dict()):
        notes.append(f"{file.name} was exported from other weights than the model has now; export it again")
    return Guarantee(_stricter(record.precision, precision_in(header)), broken, tuple(notes))


def _stricter(first: Precision, second: Precision) -> Precision:
    return next(precision for precision in _STRICTEST_FIRST if precision in (first, second))
