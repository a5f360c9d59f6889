"""What an export guarantees of its file, in the JSON beside it."""

from pathlib import Path

from pydantic import ValidationError

from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.runtime import Precision
from vitslim.shapes import Result
from vitslim.targets.input_format import InputFormat

RECORD_FORMAT = 1


class ExportRecord(Result):
    """model.onnx.json: what ``verify`` holds model.onnx to, whatever that file says of itself.

    ``model_sha256`` is of the weights that it was made from, ``sha256`` of the file as it was written.
    """

    format: int = RECORD_FORMAT
    precision: Precision
    opset: int
    input_format: InputFormat
    is_inlined: bool
    model_sha256: str
    sha256: str


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
