"""What an ONNX file guarantees: what was written down when it was exported, not what it says of itself."""

from pathlib import Path

from torch import nn

from vitslim.runtime import Precision
from vitslim.targets.onnx.forms import precision_in
from vitslim.targets.onnx.reading import metadata_in, read_header
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.record import guaranteed


def guarantee_of(file: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
    """``guaranteed`` of an ONNX file: where the weights in the graph are of a finer precision, that one.

    Raises:
        ConfigError: another precision is asked for than the record has.
        CheckpointError: the file or its record is missing or damaged.
    """
    header = read_header(file)
    return guaranteed(file, asked, model, says=metadata_in(header).get("precision"), holds=precision_in(header))
