"""What an export guarantees of its file, in the JSON beside it."""

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json
from vitslim.models.digest import tensors_sha256
from vitslim.runtime import Precision
from vitslim.runtime.engine import file_sha256
from vitslim.shapes import Result
from vitslim.targets.input_format import InputFormat
from vitslim.targets.parity.guarantee import Guarantee

RECORD_FORMAT = 1
_STRICTEST_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")


class ExportRecord(Result):
    """model.onnx.json: what ``verify`` holds model.onnx to, whatever that file says of itself.

    ``model_sha256`` is of the weights that it was made from, ``sha256`` of the file as it was written; ``opset`` and
    ``is_inlined`` are those of an ONNX file.
    """

    format: int = RECORD_FORMAT
    precision: Precision
    input_format: InputFormat
    model_sha256: str
    sha256: str
    opset: int | None = None
    is_inlined: bool | None = None


def export_record_path(file: str | Path) -> Path:
    """Where the record of an exported file lies: ``model.onnx.json`` beside ``model.onnx``."""
    return Path(f"{file}.json")


def read_export_record(file: str | Path) -> ExportRecord | None:
    """The record beside an exported file; ``None`` where there is none.

    Raises:
        CheckpointError: it is damaged, or of a later format.
    """
    path = export_record_path(file)
    if not path.exists():
        return None
    try:
        record = ExportRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged ({error.errors()[0]['msg']}); export the model again") from None
    if record.format != RECORD_FORMAT:
        raise CheckpointError(f"{path} has format {record.format}, wanted {RECORD_FORMAT}: update vitslim")
    return record


def guaranteed(
    file: Path, asked: Precision | None, model: nn.Module, *, says: str | None, holds: Precision | None
) -> Guarantee:
    """What was guaranteed of a file: by the record beside it, else by who asks, else fp32.

    Args:
        file: that was exported.
        asked: the precision that somebody asks for.
        model: that it was made from.
        says: the precision that the file says it has.
        holds: that of its weights; where it is finer than what is guaranteed, it counts. ``None``: they tell nothing.

    Raises:
        ConfigError: another precision is asked for than the record has.
        CheckpointError: the record is damaged.
    """
    record, place = read_export_record(file), export_record_path(file).name
    if record is None:
        precision = _stricter(asked or "fp32", holds)
        if asked is not None or says in (None, "fp32"):
            return Guarantee(precision)
        hint = f"{file.name} calls itself {says}; no {place} beside it names a guarantee, so it is compared as fp32"
        return Guarantee(precision, notes=(f"{hint} (--precision {says} compares it as that)",))
    if asked not in (None, record.precision):
        raise ConfigError(
            f"{file.name} was exported as {record.precision} ({place}); --precision {asked} contradicts it"
        )
    broken: list[str] = []
    if says not in (None, record.precision):
        broken.append(f"it says {says} of itself, exported was {record.precision}")
    if record.sha256 != file_sha256(file):
        broken.append(f"it was changed after it was exported; export it again, or remove {place}")
    notes: tuple[str, ...] = ()
    if record.model_sha256 != tensors_sha256(model.state_dict()):
        notes = (f"{file.name} was exported from other weights than the model has now; export it again",)
    return Guarantee(_stricter(record.precision, holds), tuple(broken), notes)


def _stricter(first: Precision, second: Precision | None) -> Precision:
    return next(precision for precision in _STRICTEST_FIRST if precision in (first, second))
